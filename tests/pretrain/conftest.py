from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import pytest

from ammpl.pretrain.glyphs import GlyphSet, build_glyphs, find_fonts

DEJAVU = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf")


@pytest.fixture(scope="session")
def font_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fonts")
    for name in DEJAVU:
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, directory / name)
    return directory


@pytest.fixture(scope="session")
def glyphs(font_directory: Path) -> GlyphSet:
    return build_glyphs(find_fonts([font_directory]))

from __future__ import annotations

import open_clip
import pytest

from ammpl.data.home import DataHome
from tests.training.published import NAMES, VIT, write_published


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_published(folder / "data", "eurosat", "2750", "split_zhou_EuroSAT.json", NAMES)
    write_published(folder / "data", "dtd", "images", "split_zhou_DescribableTextures.json", ("banded", "river"))
    return DataHome(folder / "data", folder / "store")


@pytest.fixture(scope="module")
def small_vit():
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, VIT, architecture)
        yield

"""The documentation as a site: built without a warning, no broken link or anchor, nothing fetched when it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ammpl.cli import COMMANDS
from ammpl.study.space.schema import SETTABLE

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?:|<link[^>]*rel=\"?stylesheet[^>]*href=\"?https?:")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    surroundings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_every_page_is_there_and_fetches_nothing(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix(): path.read_text() for path in site.rglob("*.html")}
    docs = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs <= pages.keys()
    assert "<math " in pages["method"]
    assert "source/search_spaces/default.yaml" in pages  # a page links to it
    for name, text in pages.items():
        assert FETCHED.search(text) is None, name
        assert 'class="arithmatex"' not in text, name  # every formula is drawn
    for name in COMMANDS:
        assert f"<code>tune.py {name}</code>" in pages["reference/commands"]
    for name in SETTABLE:
        assert f"<code>{name}</code>" in pages["reference/space"]
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?https?:", path.read_text()), path

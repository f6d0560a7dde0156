"""The guides, followed from their first block to their last by somebody who does what they say and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import ammpl
from ammpl.config import METHODS
from ammpl.config.methods import Methods
from ammpl.study.space.space_file import read_space
from ammpl.yaml_file import dump_yaml
from tests.docs.blocks import ROOT, SHELL, blocks
from tests.docs.conftest import small_space
from tests.docs.running import Place


@pytest.fixture
def place(empty_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("AMMPL_STORE", str(tmp_path / "store"))
    shutil.copytree(empty_place, tmp_path / "place", symlinks=True)
    return Place(tmp_path / "place")


def follow(page: str, place: Place) -> str:
    """Save what a page says to save and run what it says to run, in its order; return what was printed."""
    said, saved = "", 0
    for block in blocks(ROOT / "docs" / page):
        if block.file:
            path = place.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if block.language == "yaml" and "budget:" in block.text:
                path.write_text(dump_yaml(small_space(path)), encoding="utf-8")
            saved += 1
        elif block.language in SHELL and block.reason is None:
            said += "".join(place.run(command) for command in block.commands)
    assert saved and said
    return said


def test_a_folder_of_pictures(place: Place, one_ray: None) -> None:
    said = follow("own_data.md", place)
    assert "mine: mean ± sd over n fresh repeats" in said
    summary = json.loads((place.folder / "studies" / "mine" / "summary.json").read_text(encoding="utf-8"))
    assert summary["test_openings"] == 1
    assert "pictures, 10 classes" in said  # the dry run's
    assert f"data.name: {place.folder}/pictures" in (place.folder / "studies" / "mine" / "study.yaml").read_text()


def test_a_data_set_with_lists_of_its_own(place: Place, one_ray: None) -> None:
    said = follow("add_data.md", place)
    assert "list, 10 classes" in said
    stored = list(Path(os.environ["AMMPL_STORE"]).rglob("*.arrow"))
    assert len(stored) == 3  # its three lists, as they are


def test_a_saved_space(place: Place, one_ray: None) -> None:
    said = follow("add_space.md", place)
    space = read_space(place.folder / "search_spaces" / "padding_depth.yaml")
    assert space.name == "padding_depth" and "padding_depth: mean ± sd" in said
    assert json.loads((place.folder / "studies" / "tried" / "summary.json").read_text())["counts"]["search"]


def test_a_method(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed by the guide's own command, but for where to and from which registry: nowhere, and from none."""
    place.surroundings = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "installed")]),
        "PIP_TARGET": str(tmp_path / "installed"),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the wrong way round: no isolation
        "PIP_NO_INDEX": "1",
    }
    said = follow("add_method.md", place)
    assert "clip_adapter, trial" in said and "FAILED" not in said
    [study] = (place.folder / "studies").iterdir()
    assert json.loads((study / "environment.json").read_text(encoding="utf-8"))["packages"]["clip-adapter"] == "0.1"
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setitem(vars(METHODS), "_added", Methods({})._added)  # looked for before it was installed
    assert type(ammpl.load(study)._model).__name__ == "ClipAdapter"

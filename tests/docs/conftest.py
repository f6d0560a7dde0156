"""A place like a reader's in which blocks are run: the repository's files, studies of seconds, one Ray for all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ammpl.yaml_file import dump_yaml, read_yaml
from tests.docs.blocks import ROOT
from tests.docs.running import Place

SMALL = {
    "data.shots": 1,
    "data.validation_shots": 1,
    "model.mask.scope": "task",  # one image pass
    "training.steps": 2,
    "training.batch_size": 2,
    "training.evaluate_every": 1,
}
"""What the saved spaces have in tests: the same studies, in seconds."""


def small_space(path: Path) -> dict[str, Any]:
    """Return a saved space that asks the same on two images, two steps and two trials or variants."""
    space: dict[str, Any] = read_yaml(path)
    space["fixed"] = {**space["fixed"], **SMALL}
    if space.get("kind") == "ablation":
        others = [name for name in space["variants"] if name != space["reference"]][:1]
        space["variants"] = {name: space["variants"][name] for name in (*others, space["reference"])}
        space["repeats"] = [1, 2]
    else:
        space |= {"budget": {"trials": 2}, "confirm": {"top": 1, "repeats": 1, "baselines": ["zero_shot"]}}
    return space


@pytest.fixture(scope="package")
def one_ray() -> Iterator[None]:
    """A Ray of two CPUs, which the command line finds connected: a start of its own for each study takes seconds."""
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="package")
def empty_place(tmp_path_factory: pytest.TempPathFactory, empty_sqlite_store: Path) -> Path:
    """A folder with ``tune.py`` and the saved spaces, small."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tune.py").symlink_to(ROOT / "tune.py")
    (folder / "search_spaces").mkdir()
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        (folder / "search_spaces" / path.name).write_text(dump_yaml(small_space(path)), encoding="utf-8")
    shutil.copy(empty_sqlite_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="package")
def studied_place(empty_place: Path, one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two studies that have ended, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("studied") / "place"
    shutil.copytree(empty_place, folder, symlinks=True)
    place = Place(folder)
    for command, name in (
        ("python tune.py", "default-20260101-120000"),
        ("python tune.py search_spaces/ablation_mask.yaml", "ablation_mask-20260101-120000"),
    ):
        place.run(command)
        [study] = set((folder / "studies").iterdir()) - set((folder / "studies").glob("*-20260101-120000"))
        study.rename(folder / "studies" / name)
    return folder

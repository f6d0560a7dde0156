"""A study on a folder of pictures, and ``prepare``, as a person runs them: one command line each, nothing mocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ammpl.data.digits import NAMES, open_digits
from tests.data.on_disk import build

ROOT = Path(__file__).resolve().parents[2]
SPACE = """\
version: 1
name: own
fixed:
  data.shots: 1
  data.validation_shots: 2
  model.mask.scope: task
  training.steps: 2
  training.evaluate_every: 2
parameters:
  model.mask.temperature: {type: float, low: 0.3, high: 2.0}
budget: {trials: 1}
confirm: {top: 1, repeats: 1, baselines: [zero_shot]}
"""


def tune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune.py"), *arguments]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("AMMPL_")}
    surroundings["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder a class: the first hundred of the digits, ten classes."""
    pool = open_digits().train
    for number in range(100):
        label = int(pool.labels[number])
        path = tmp_path / "pictures" / NAMES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pool.pixels[number].permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "pictures"


def test_a_study_on_a_folder_of_pictures(tmp_path: Path, pictures: Path, sqlite_uri: str) -> None:
    (tmp_path / "own.yaml").write_text(SPACE)
    flags = ("--dataset", "pictures", "--output", "out", "--tracking-uri", sqlite_uri)
    done = tune(tmp_path, "own.yaml", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preparing pictures/train" in done.stderr and "Traceback" not in done.stderr
    trials = {row["key"]: row for row in pq.read_table(tmp_path / "out/trials/trials.parquet").to_pylist()}
    assert {row["state"] for row in trials.values()} == {"COMPLETE"}
    assert any(key.startswith("test-zero_shot") for key in trials)
    data = json.loads((tmp_path / "out/environment.json").read_text())["data"]
    assert data["splits"]["pictures"].startswith("folders of classes; 50 % of each class train")
    record = json.loads(next((tmp_path / "out/checkpoints").glob("search-*/data.json")).read_text())
    assert record["classes"] == 10 and record["train_images"] == 10 and record["augmentation"]["mirrored"] == 0.5
    assert f"data.name: {pictures}" in (tmp_path / "out/study.yaml").read_text()
    assert list((tmp_path / "cache/ammpl/pictures").rglob("*.arrow"))

    # A broken picture stops a study before Ray starts, with its name; and may be left out.
    broken = next((pictures / "zero").iterdir())
    broken.write_bytes(b"")
    done = tune(tmp_path, "own.yaml", *flags[:2], "--dry-run")
    assert done.returncode == 2 and f"zero/{broken.name}: the file is empty" in done.stderr
    assert "--skip-broken" in done.stderr and "Traceback" not in done.stderr
    done = tune(tmp_path, "own.yaml", *flags[:2], "--dry-run", "--skip-broken")
    assert done.returncode == 0 and "1 pictures left out" in done.stderr
    assert "study own; trials at most: search 1, confirm 2, test 2" in done.stdout
    (zero,) = (line.split() for line in done.stdout.splitlines() if line.startswith("  zero "))
    assert sum(map(int, zero[1:])) == len(list((pictures / "zero").iterdir()))
    assert "1 training pictures a class are drawn; a trial takes 2 steps" in done.stdout


def test_prepare(tmp_path: Path) -> None:
    build("oxford_pets", tmp_path / "data", published=True)
    flags = ("--backbone", "ViT-B-32", "--pretrained", "openai", "--store", "store")
    done = tune(tmp_path, "prepare", "oxford_pets", "digits", *flags)
    assert done.returncode == 0, done.stderr
    assert "oxford_pets: lists from split_zhou_OxfordPets.json" in done.stderr
    assert "warning: OxfordPets: classes: 3 found, 37 expected" in done.stderr
    assert done.stdout.splitlines() == [
        f"oxford_pets: prepared in {tmp_path}/store", "digits: embedded, nothing to prepare"
    ]  # fmt: skip
    files = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.arrow")}
    assert len(files) == 3
    again = tune(tmp_path, "prepare", "oxford_pets", *flags)
    assert again.returncode == 0 and "preparing" not in again.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.arrow")} == files
    nothing = tune(tmp_path, "prepare", "dtd", *flags)
    assert nothing.returncode == 2 and "Expected there:\ndtd/\n" in nothing.stderr


def test_what_cannot_be_downloaded_says_what_layout_is_expected(tmp_path: Path) -> None:
    """The middle frames of UCF101 are on no host that allows it: nothing is tried, and no network needed."""
    nothing = tune(tmp_path, "prepare", "ucf101", "--download")
    assert nothing.returncode == 2 and "cannot be downloaded from here" in nothing.stderr
    assert "UCF-101-midframes/" in nothing.stderr and "Traceback" not in nothing.stderr

"""``python tune.py rerun`` of the smoke study, which Python ran, and of an ablation: the same to the last bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

import ammpl
from tests.integration.conftest import Tracked

ROOT = Path(__file__).resolve().parents[2]

ABLATION = """\
version: 1
kind: ablation
name: masks
fixed:
  data.shots: 2
  data.validation_shots: 2
  model.mask.scope: task
  training.steps: 3
  training.batch_size: 4
reference: learned
datasets: [digits, digits-distractor]
variants:
  maple: {method: maple, training.steps: 2}
  learned: {}
repeats: [1, 2]
test: true
"""


def _tune(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tune.py"), *map(str, arguments), "--concurrency", "1", "--no-report"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=140, check=False)


def test_the_command_line_repeats_a_study_of_python_to_the_last_bit(
    tracked: Tracked, tmp_path: Path, sqlite_uri: str
) -> None:
    shutil.copytree(tracked.study.folder, tmp_path / "old")
    again = _tune("rerun", "old", "--output", "new", "--tracking-uri", sqlite_uri, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    lines = again.stdout.splitlines()
    assert "identical: all 11 trials," in lines[-1]
    assert (tmp_path / "old" / "study.yaml").read_text() == (tmp_path / "new" / "study.yaml").read_text()
    assert not (tmp_path / "new" / "report").exists()
    for name, drop in (("trials", ["seconds", "started", "ended"]), ("curves", [])):
        ours, theirs = (
            getattr(ammpl.study.open(tmp_path / folder), name)().drop_columns(drop) for folder in ("old", "new")
        )
        assert ours.equals(theirs)

    # One trial of it again, by a process of its own; the winner's test needs what its confirmation has learned.
    files = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    tested = next(path.name for path in (tmp_path / "old" / "checkpoints").iterdir() if path.name.startswith("test-0"))
    for trial, said in (
        ("1", "match: search-0001, "),
        (tested, f"match: {tested}, COMPLETE at step 0; 1 evaluation, "),
    ):
        alone = subprocess.run(
            [sys.executable, str(ROOT / "tune.py"), "rerun-trial", "old", trial],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=140,
            check=False,
        )
        assert alone.returncode == 0, alone.stdout + alone.stderr
        assert "as then: machine, " in alone.stdout  # versions too, where nobody works on the code
        assert alone.stdout.splitlines()[-1].startswith(said)
        assert ("this scores the test split again" in alone.stdout) == (trial == tested)
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == files


def test_an_ablation_and_its_rerun(tmp_path: Path, sqlite_uri: str) -> None:
    (tmp_path / "masks.yaml").write_text(ABLATION)
    store = ("--tracking-uri", sqlite_uri)
    first = _tune("masks.yaml", "--output", "old", *store, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"learned .* reference", first.stdout)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "old" / "trials" / "trials.parquet").to_pylist()}
    assert rows.keys() == {
        f"{phase}-{variant}@{dataset}-r{repeat}"
        for phase in ("ablation", "test")
        for dataset in ("digits", "digits-distractor")
        for variant in ("maple", "learned")
        for repeat in (1, 2)
    }
    assert {row["state"] for row in rows.values()} == {"COMPLETE"}
    summary = json.loads((tmp_path / "old" / "summary.json").read_text())
    assert summary["test_openings"] == 1
    cells = {row["name"]: row["cells"]["validation/accuracy"] for row in summary["rows"]}
    assert len(cells) == 6  # on two data sets, and over them
    maple, learned = cells["maple@digits"], cells["learned@digits"]
    assert learned["values"] == {str(r): rows[f"ablation-learned@digits-r{r}"]["value"] for r in (1, 2)}
    difference = maple["difference"]
    assert difference["n"] == 2
    assert not (tmp_path / "old" / "optuna.sqlite3").exists()

    client = MlflowClient(sqlite_uri)
    parent = json.loads((tmp_path / "old" / "mlflow.json").read_text())
    run = client.get_run(parent["run_id"])
    assert run.data.tags["kind"] == "ablation"
    assert run.data.metrics["maple/digits/validation/accuracy/difference/mean"] == pytest.approx(difference["mean"])
    assert "differences to `learned` paired by repeat" in run.data.tags["mlflow.note.content"]

    again = _tune("rerun", "old", "--output", "new", *store, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "identical: all 16 trials," in again.stdout.splitlines()[-1]

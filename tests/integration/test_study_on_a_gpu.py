"""The same bits on a GPU, through the whole system: run again, alone, and killed and resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.integration.test_resume import ROOT, kill_after

pytestmark = pytest.mark.gpu

SPACE = """\
version: 1
name: same
fixed: {data.shots: 2, data.validation_shots: 2, training.batch_size: 4, training.steps: 8, training.evaluate_every: 4}
parameters:
  model.mask.temperature: {type: float, low: 0.1, high: 2.0}
  model.mask.scope: {type: categorical, choices: [task, class]}
budget: {trials: 4}
confirm: {top: 1, repeats: 1, baselines: [coop]}
"""


def tune(*arguments: object) -> subprocess.Popen[str]:
    """Start the program."""
    command = [sys.executable, str(ROOT / "tune.py"), *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def told(*arguments: object) -> str:
    """Return what the program says when it ends well."""
    process = tune(*arguments)
    text = process.communicate(timeout=170)[0]
    assert process.returncode == 0, text
    return text


def values(folder: Path) -> list[dict[str, Any]]:
    """Return every value of every curve."""
    rows = pq.read_table(folder / "curves" / "curves.parquet").to_pylist()
    return [{name: row[name] for name in ("key", "step", "metric", "value")} for row in rows]


def test_a_study_is_the_same_again_and_after_a_kill_and_so_is_each_trial(tmp_path: Path) -> None:
    space = tmp_path / "same.yaml"
    space.write_text(SPACE)
    alone = ("--concurrency", 1, "--no-report")
    told(space, "--output", tmp_path / "whole", *alone)
    expected = values(tmp_path / "whole")

    assert kill_after(tune(space, "--output", tmp_path / "killed", *alone), tmp_path / "killed", 9)
    told("resume", tmp_path / "killed", "--concurrency", 1)
    assert values(tmp_path / "killed") == expected

    again = told("rerun", tmp_path / "whole", "--output", tmp_path / "again", *alone)
    assert "identical" in again and "different" not in again
    assert values(tmp_path / "again") == expected
    assert "match" in told("rerun-trial", tmp_path / "whole", "test-coop-r2")

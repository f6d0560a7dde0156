"""``tune.py stop``: another process asks a running study to let its trials end, and the study goes on later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.record.folder import STOP, locked, request_stop
from ammpl.study.status import status
from ammpl.study.stop import stop
from ammpl.study.study import Options, resume_study, run_study
from ammpl.study.trial import Trial
from tests.integration.test_resume import outcome
from tests.study.fakes import execute, small_space

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPACE = small_space(budget={"trials": 6}, seed=3, pruner={"name": "none"}, confirm={"top": 1, "repeats": 1})


def _stops(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, and ask the study to stop from within its third trial: from the worker's process."""
    for step, metrics in execute(trial, folder):
        if trial.key == "search-0002" and step == 20:
            said = stop(folder.parents[1])
            (folder / "said.txt").write_text(said + "\n" + status(folder.parents[1])[0])
        yield step, metrics


@pytest.mark.parametrize("concurrency", [1, 2])
def test_running_trials_end_and_the_study_goes_on_later(
    tmp_path: Path, concurrency: int, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    options = Options(study, concurrency=concurrency, tracking=False)
    summary = run_study(SPACE, options, execute=_stops)
    assert summary.interrupted and summary.on_request
    assert "LOST" not in summary.counts["search"]
    assert 3 <= sum(summary.counts["search"].values()) <= 2 + concurrency
    assert "asked to stop: no more trials begin, those that run are let end\n" in capsys.readouterr().out
    said, running = (study / "checkpoints" / "search-0002" / "said.txt").read_text().splitlines()
    assert said.startswith(f"{study}: asked to stop: no more trials begin; let end: ")
    assert "search-0002" in said
    assert running.endswith(", and is asked to stop")
    assert json.loads((study / "summary.json").read_text())["on_request"] is True
    assert "is not running and has not ended; it goes on with" in status(study)[0]
    assert not (study / STOP).exists()

    quiet = Options(concurrency=concurrency, tracking=False, quiet=True)
    with pytest.raises(UserError, match=r"is not running\. Fix: it goes on with: python tune\.py resume"):
        stop(study)
    assert request_stop(study)  # what a driver that died was asked is not for the next one
    resumed = resume_study(study, quiet, execute=execute)
    assert resumed is not None and not resumed.interrupted and not resumed.on_request
    assert cli.main(["stop", str(study)]) == 2
    assert f"{study}: is not running: the study has ended" in capsys.readouterr().err
    if concurrency == 1:
        whole = run_study(SPACE, replace(quiet, output=tmp_path / "whole"), execute=execute)
        assert outcome(study) == outcome(whole.folder)


def test_asking_twice_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stop", str(tmp_path)]) == 2
    assert "is not the folder of a study" in capsys.readouterr().err
    (tmp_path / "study.yaml").write_text("version: 1\n")
    with locked(tmp_path):
        assert stop(tmp_path) == f"{tmp_path}: asked to stop: no trial begins"
        assert stop(tmp_path) == f"{tmp_path}: was asked before to stop: no trial begins"
    assert not (tmp_path / STOP).exists()

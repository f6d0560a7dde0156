from __future__ import annotations

from pathlib import Path

import pytest

from ammpl import cli
from ammpl.study.event_log import FILE, end_log
from ammpl.study.folder import locked
from ammpl.study.plan import Plan
from ammpl.study.records import Records
from ammpl.study.status import status
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import run_inline, small_space


def test_a_study_from_its_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = small_space(seed=3, confirm=None)
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    run_inline(plan, tmp_path)
    records.close()
    dead = status(tmp_path)
    assert dead[0].endswith(f"is not running and has not ended; it goes on with: python tune.py resume {tmp_path}")
    [(trial, value)] = plan.best(1)
    assert dead[2:] == [f"best so far: {trial.key}, validation/accuracy {value:.4f}", "time: 0 s"]
    assert dead[1].startswith("search: 12 trials: ")
    assert "PRUNED" in dead[1]
    with locked(tmp_path):
        assert " is running (process " in status(tmp_path)[0]
    assert status(tmp_path) == dead
    end_log(tmp_path / FILE)
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path}: has ended"


def test_a_study_that_was_cut_off(tmp_path: Path) -> None:
    space = small_space(objective={"metric": "train/loss", "direction": "minimize"}, pruner={"name": "none"})
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    for loss in (0.5, 0.25):
        trial = plan.next()
        plan.report(trial, 10, {"train/loss": loss})  # type: ignore[arg-type]
        plan.finish(trial, 1.0)  # type: ignore[arg-type]
    plan.next()
    records.close()
    assert status(tmp_path)[1:3] == [
        "search: 3 trials: 2 COMPLETE, 1 begun, not ended",
        "best so far: search-0001, train/loss 0.2500",
    ]


def test_a_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "is not the folder of a study" in capsys.readouterr().err

"""``tune.py extend``: real Ray, MLflow on SQLite; training is made up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.plan.extension import Extension
from ammpl.study.record.folder import locked
from ammpl.study.rerun import compare, finished_versions
from ammpl.study.result.summary import Summary
from ammpl.study.status import status
from ammpl.study.study import Options, extend_study, resume_study, run_study
from ammpl.study.trial import Trial
from tests.integration.mlflow_store import parent
from tests.integration.test_resume import check_mlflow
from tests.study.fakes import DEPTH, TEMPERATURE, WIDTH, execute, small_space

pytestmark = pytest.mark.usefixtures("ray_cluster")

PARAMETERS = {
    TEMPERATURE: {"type": "float", "low": 0.1, "high": 2.0, "log": True},
    DEPTH: {"type": "int", "low": 1, "high": 3},
    WIDTH: {"type": "categorical", "choices": [4, 8, 16]},
}
NARROW = {**PARAMETERS, DEPTH: {"type": "int", "low": 1, "high": 2}}


def _space(**changes: Any) -> Any:
    confirm = {"top": 1, "repeats": 1, "baselines": ["coop"]}
    return small_space(**{"parameters": PARAMETERS, "budget": {"trials": 6}, "seed": 3, "confirm": confirm, **changes})


def test_a_study_of_three_versions(tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    options = Options(study, concurrency=1, tracking_uri=sqlite_uri, quiet=True)
    with contextlib.chdir(tmp_path):
        first = run_study(_space(), options, execute=execute)
        run = parent(sqlite_uri, study).info.run_id
        assert cli.main(["tune.py", "--output", str(study)]) == 2  # an unknown command
        assert cli.main(["--output", str(study), "--dry-run"]) == 2
        assert f"add to it: python tune.py extend {study} --trials +50" in capsys.readouterr().err
        assert cli.main(["resume", str(study)]) == 0
        assert f"to add to it: python tune.py extend {study} --trials +50" in capsys.readouterr().out

        # The second version is interrupted in its second trial, and goes on.
        driver = os.getpid()

        def interrupt(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
            for step, metrics in execute(trial, folder):
                if trial.number == 7 and step == 20:
                    os.kill(driver, signal.SIGINT)
                    time.sleep(3600)
                yield step, metrics

        options = replace(options, output=None, tracking_uri=None)  # it is remembered
        assert extend_study(study, Extension(trials=3), options, execute=interrupt).interrupted
        second = resume_study(study, options, execute=execute)
        assert second is not None and not second.interrupted
        assert sum(second.counts["search"].values()) == 9

        third = extend_study(study, Extension(trials=4, space=_space(parameters=NARROW)), options, execute=execute)
    assert isinstance(first, Summary) and isinstance(third, Summary)
    rows = pq.read_table(study / "trials" / "trials.parquet").to_pylist()
    assert [row["key"] for row in rows if row["phase"] == "search"] == [f"search-{n:04d}" for n in range(13)]
    assert all(row[f"params.{DEPTH}"] <= 2 for row in rows[-6:] if row["phase"] == "search")
    assert len({row["key"] for row in rows}) == len(rows)
    tested = {row["candidate"] for row in rows if row["phase"] == "test"} - {"coop"}
    assert third.test_openings == json.loads((study / "summary.json").read_text())["test_openings"] == len(tested)
    check_mlflow(sqlite_uri, study)
    assert parent(sqlite_uri, study).info.run_id == run
    assert {path.name for path in study.glob("study*.yaml")} == {"study.yaml", "study-2.yaml", "study-3.yaml"}
    assert [line.partition(": ")[0] for line in status(study)[4:6]] == ["version 2", "version 3"]
    assert status(study)[5].endswith("13 trials in all (study-3.yaml)")

    # Run again, version by version, it is identical.
    quiet = Options(tmp_path / "again", concurrency=1, tracking=False, quiet=True)
    again, *later = finished_versions(study)
    run_study(again, quiet, execute=execute)
    for space in later:
        extend_study(tmp_path / "again", space, quiet, execute=execute)
    assert compare(study, tmp_path / "again").identical


def test_an_extension_that_does_not_fit_leaves_the_study_as_it_is(tmp_path: Path) -> None:
    study, quiet = tmp_path / "study", Options(concurrency=2, tracking=False, quiet=True)
    run_study(_space(budget={"trials": 3}, confirm=None), replace(quiet, output=study), execute=execute)
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for more, text in (
        (Extension(repeats=2), "--repeats: belongs to an ablation"),
        (Extension(trials=2, space=_space(seed=4)), "--space: seed: must stay 3"),
        (Extension(trials=2, space=_space(confirm=None, fixed={"data.shots": 2})), "data.shots: must stay 16"),
    ):
        with pytest.raises(UserError, match=text):
            extend_study(study, more, quiet, execute=execute)
    with locked(study), pytest.raises(UserError, match=r"is being run by .* or stop it: python tune\.py stop"):
        extend_study(study, Extension(trials=2), quiet, execute=execute)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert status(study)[0] == f"{study}: has ended"

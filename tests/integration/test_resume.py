"""``tune.py resume``: real drivers, killed and resumed, with real Ray and MLflow on SQLite."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.report.results import read_study
from ammpl.study.plan.replay import check_study
from ammpl.study.record.folder import locked
from ammpl.study.status import status
from ammpl.study.study import Options, resume_study, run_study
from ammpl.yaml_file import dump_yaml
from tests.integration.mlflow_store import children, curve, parent, states
from tests.study.fakes import Recorder, execute, log_to_change, small_space

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"time", "seconds", "started", "ended", "chain"}

DRIVER = """
import sys
from pathlib import Path
from ammpl.study.study import Options, resume_study, run_study
from tests.study.fakes import execute, small_space
space = small_space(budget={"trials": int(sys.argv[4])}, seed=3, confirm={"top": 1, "repeats": 1})
folder, how = Path(sys.argv[2]), {"concurrency": 1, "tracking_uri": sys.argv[3] or None, "quiet": True}
how["tracking"] = bool(sys.argv[3])
if sys.argv[1] == "run":
    run_study(space, Options(folder, **how), execute=execute)
else:
    print(resume_study(folder, Options(**how), execute=execute))
"""


def driver(command: str, folder: Path, uri: str, trials: int) -> subprocess.Popen[str]:
    """Start a driver with a Ray of its own; training is made up, and takes no time."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, command, str(folder), uri, str(trials)],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], folder: Path, events: int) -> bool:
    """Kill a driver once its log has so many lines; return whether it had not ended before."""
    log = folder / "events.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < events):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be the same as without a kill."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "events": [
            {name: value for name, value in event.items() if name not in TIMES}
            for event in events
            if event["event"] != "session"
        ],
        "summary": {name: value for name, value in summary.items() if name not in (*TIMES, "folder")},
        **{
            table: [
                {name: value for name, value in row.items() if name not in TIMES}
                for row in pq.read_table(folder / table / f"{table}.parquet").to_pylist()
            ]
            for table in ("trials", "curves")
        },
    }


def check_mlflow(uri: str, folder: Path) -> None:
    """Each trial has one run, in the state of the tables, with each point of its curves once."""
    rows = {row["key"]: row["state"] for row in pq.read_table(folder / "trials" / "trials.parquet").to_pylist()}
    assert states(uri, folder) == rows
    runs = children(uri, folder)
    points = pq.read_table(folder / "curves" / "curves.parquet").to_pylist()
    for metric in ("validation/accuracy", "test/accuracy"):
        for key, run in runs.items():
            expected = [(row["step"], row["value"]) for row in points if (row["key"], row["metric"]) == (key, metric)]
            assert curve(uri, run, metric) == sorted(expected)
    assert parent(uri, folder).info.status == "FINISHED"


def check_optuna(folder: Path) -> None:
    """The copy for Optuna's tools has each trial of the search once, with its state, value and curve."""
    search = [
        row for row in pq.read_table(folder / "trials" / "trials.parquet").to_pylist() if row["phase"] == "search"
    ]
    points = pq.read_table(folder / "curves" / "curves.parquet").to_pylist()
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/optuna.sqlite3")
    assert [trial.number for trial in study.trials] == sorted(row["number"] for row in search)
    for row in search:
        trial = study.trials[row["number"]]
        assert trial.state.name == {"FAILED": "FAIL"}.get(row["state"], row["state"])
        assert row["state"] == "FAILED" or trial.value == row["value"]
        curve = {
            p["step"]: p["value"] for p in points if (p["key"], p["metric"]) == (row["key"], "validation/accuracy")
        }
        assert trial.intermediate_values == curve


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes out of the study when nobody kills it."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    process = driver("run", folder, "", 10)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    return outcome(folder)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_driver(tmp_path: Path, sqlite_uri: str, whole: dict[str, Any], seed: int) -> None:
    folder = tmp_path / "study"
    count = len(whole["events"])
    point = random.Random(seed).randint(1 + seed * count // 3, (seed + 1) * count // 3)
    assert kill_after(driver("run", folder, sqlite_uri, 10), folder, point)
    process = driver("resume", folder, sqlite_uri, 10)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert outcome(folder) == whole
    check_mlflow(sqlite_uri, folder)
    check_optuna(folder)
    sessions = [line for line in (folder / "events.jsonl").read_text().splitlines() if '"session"' in line]
    assert len(sessions) == 2
    assert {path.name for path in folder.glob("environment*.json")} == {"environment.json", "environment-2.json"}


# -- in this process, on a Ray that is there --


@pytest.fixture
def study(ray_cluster: None, tmp_path: Path) -> Path:
    """A study interrupted in its third trial."""
    chosen = os.getpid()

    def interrupt(trial: Any, folder: Path) -> Any:
        for step, metrics in execute(trial, folder):
            if trial.number == 2 and step == 20:
                os.kill(chosen, signal.SIGINT)
                time.sleep(3600)
            yield step, metrics

    space = small_space(budget={"trials": 6}, seed=3, confirm=None, pruner={"name": "none"})
    options = Options(tmp_path / "study", concurrency=1, tracking=False, quiet=True)
    summary = run_study(space, options, execute=interrupt)
    assert summary.interrupted
    assert summary.counts == {"search": {"COMPLETE": 2, "LOST": 1}}
    return summary.folder


OPTIONS = Options(concurrency=1, tracking=False, quiet=True)


def test_an_interrupted_study_goes_on_and_then_has_ended(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    summary = resume_study(study, OPTIONS, execute=execute, observers=[recorder])
    assert summary is not None and not summary.interrupted
    assert sum(summary.counts["search"].values()) == 6
    assert "LOST" not in summary.counts["search"]
    assert [trial.key for trial in recorder.started] == [f"search-{number:04d}" for number in range(6)]
    assert recorder.outcomes.keys() == recorder.curves.keys()
    before = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    assert resume_study(study, OPTIONS, execute=execute) is None
    assert cli.main(["resume", str(study)]) == 0
    assert f"{study}: the study has ended, there is nothing to resume\n" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()} == before


def test_the_end_of_a_study_that_died_after_its_last_trial_is_made_up_for(study: Path) -> None:
    resume_study(study, OPTIONS, execute=execute)
    expected = outcome(study)
    log = study / "events.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    (study / "summary.json").unlink()
    shutil.rmtree(study / "trials")
    assert resume_study(study, OPTIONS, execute=execute) is not None
    assert outcome(study) == expected


def test_a_study_that_was_changed_is_refused_and_left_as_it_is(study: Path) -> None:
    before = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    space = small_space(budget={"trials": 60}, seed=3, confirm=None, pruner={"name": "none"})
    (study / "study.yaml").write_text(dump_yaml(space.resolved()))
    with pytest.raises(UserError, match=r"study\.yaml: is not the file that the study began with\. Fix: put back"):
        resume_study(study, OPTIONS, execute=execute)
    (study / "study.yaml").write_bytes(before["study.yaml"])
    log = (study / "events.jsonl").read_text()
    (study / "events.jsonl").write_text(log.replace('"key":"search-0001"', '"key":"search-0007"'))
    with pytest.raises(
        UserError, match=r"events\.jsonl: line \d+, or one before it, was changed after it was written"
    ):
        resume_study(study, OPTIONS, execute=execute)
    changed = log_to_change(study)  # as an earlier version, or somebody who knows how, would leave it
    (study / "events.jsonl").write_text(changed)
    with pytest.raises(
        UserError, match=r"lacks 1 trial that trials.parquet has \(search-0001\): it was cut or changed"
    ):
        resume_study(study, OPTIONS, execute=execute)
    (study / "events.jsonl").write_text(log)
    assert {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()} == before


def test_a_log_that_was_cut_at_a_lines_end_is_told_by_the_tables(study: Path) -> None:
    """Its checksums hold: only the tables know what came after."""
    log = (study / "events.jsonl").read_text()
    keys = [event["key"] for event in map(json.loads, log.splitlines()) if event["event"] == "finished"]
    cut = log.index('"finished"', log.index('"finished"') + 1)
    (study / "events.jsonl").write_text(log[: log.rindex("\n", 0, cut) + 1])
    with pytest.raises(UserError, match=rf"lacks \d+ trials? that trials.parquet has \({keys[1]}") as caught:
        resume_study(study, OPTIONS, execute=execute)
    assert "put back the whole file" in str(caught.value)
    assert any(line.startswith("warning: events.jsonl lacks") for line in status(study))
    assert any("events.jsonl lacks" in note for note in read_study(study).summary["notes"])
    (study / "events.jsonl").write_text(log)
    assert not any(line.startswith("warning") for line in status(study))
    assert resume_study(study, OPTIONS, execute=execute) is not None


@pytest.mark.parametrize("lost", ["empty", "missing"])
def test_a_space_file_that_a_loss_of_power_took_comes_back_from_the_log(study: Path, lost: str) -> None:
    path, text = study / "study.yaml", (study / "study.yaml").read_text()
    path.unlink()
    if lost == "empty":
        path.touch()
    with pytest.raises(UserError, match=rf"python tune.py resume {study} writes it again from events.jsonl"):
        status(study)
    assert resume_study(study, OPTIONS, execute=execute) is not None
    assert path.read_text() == text

    # A log of an earlier version does not have it; nobody is told to remove what has results.
    first, rest = (study / "events.jsonl").read_text().split("\n", 1)
    event = {name: value for name, value in json.loads(first).items() if name not in ("space", "chain")}
    rest = re.sub(r',"chain":"[0-9a-f]{16}"', "", rest)
    (study / "events.jsonl").write_text(json.dumps(event, separators=(",", ":")) + "\n" + rest)
    path.write_text("")
    for act in (status, lambda folder: resume_study(folder, OPTIONS, execute=execute)):
        with pytest.raises(UserError, match=r"is empty, .* put back a copy; events.jsonl has \d+ trials that ended"):
            act(study)


def test_a_second_driver_is_refused(study: Path) -> None:
    with (
        locked(study),
        pytest.raises(UserError, match=rf"is being run by another process \(process {os.getpid()} on "),
    ):
        resume_study(study, OPTIONS, execute=execute)
    assert resume_study(study, OPTIONS, execute=execute) is not None  # the lock is gone, its file is not


def test_folders_that_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"missing: is not a folder\. Fix: name the folder of a study"):
        check_study(tmp_path / "missing")
    with pytest.raises(UserError, match=r"is not the folder of a study: it has no study\.yaml"):
        check_study(tmp_path)
    (tmp_path / "study.yaml").touch()
    with pytest.raises(UserError, match=r"has a study that died before its begin\. Fix: remove the folder and run"):
        check_study(tmp_path)
    (tmp_path / "study.yaml").write_text("version: 2\nname: a\nparameters: {}\n")
    assert cli.main(["resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "version" in error
    (tmp_path / "study.yaml").write_text(dump_yaml(small_space().resolved()))
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "trials.parquet").write_bytes(b"results")  # and no log
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert "events.jsonl: does not say how the study began, though there are results" in capsys.readouterr().err
    assert (tmp_path / "trials" / "trials.parquet").read_bytes() == b"results"

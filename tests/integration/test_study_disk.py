"""A disk that fills while a study runs, and at its end: a small file system of its own, real Ray, the command line."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest

from ammpl import cli
from ammpl.study import study
from ammpl.study.result.summary import StudySummary
from ammpl.study.study import Options
from ammpl.study.trial import Outcome, Trial
from ammpl.yaml_file import dump_yaml
from tests.integration.mlflow_store import parent
from tests.study.fakes import Recorder, execute, small_space

pytestmark = pytest.mark.usefixtures("ray_cluster")

FULL = "cannot be written (No space left on device). Fix: free some space, or name a folder elsewhere with --output"


class _Filler(Recorder):
    """Leaves no room on a disk once a trial has finished, nor later: the copy for Optuna's tools gives some back."""

    def __init__(self, disk: Path, after: str) -> None:
        super().__init__()
        self._disk, self._after = disk, after
        self.over = threading.Event()

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        super().trial_finished(trial, outcome)
        if trial.key == self._after:
            filler = (self._disk / "filler").open("wb", buffering=0)
            self._fill(filler)
            threading.Thread(target=self._keep_full, args=(filler,), daemon=True).start()

    def _fill(self, filler: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 1024)

    def _keep_full(self, filler: IO[bytes]) -> None:
        with filler:
            while not self.over.wait(0.001):
                self._fill(filler)


Run = Callable[..., tuple[int, _Filler, Path]]


@pytest.fixture
def begin(small_disk: Path, tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a study of six trials on a disk that is full after one of them; return the exit code."""

    def run(after: str, *more: str) -> tuple[int, _Filler, Path]:
        honest, filler = study.run_study, _Filler(small_disk, after)

        def run_study(space: Any, options: Options) -> StudySummary:
            return honest(space, replace(options, concurrency=1), execute=execute, observers=[filler])

        monkeypatch.setattr(study, "run_study", run_study)
        monkeypatch.chdir(tmp_path)
        space = small_space(budget={"trials": 6}, confirm=None, pruner={"name": "none"}, sampler={"name": "random"})
        Path("space.yaml").write_text(dump_yaml(space.resolved()))
        folder = small_disk / "study"
        flags = ["--output", str(folder), "--tracking-uri", sqlite_uri, "--no-report", *more]
        try:
            return cli.main(["space.yaml", *flags]), filler, folder
        finally:
            filler.over.set()

    return run


def test_a_disk_that_is_full_while_trials_run_ends_the_study(
    begin: Run, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, filler, folder = begin("search-0001")
    out, err = capsys.readouterr()
    assert code == 2
    assert err.splitlines()[0] == f"error: {folder}: {FULL}"
    assert "Traceback" not in out + err
    assert "stopped: the study's records cannot be written\n" in out
    assert "best, unconfirmed: trial " in out
    assert 2 < len(filler.started) < 6  # what fits the file's last block is still written
    assert set(filler.outcomes) == {trial.key for trial in filler.started}
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines[:-1]]) >= 2  # whole, but for where the disk ended
    assert parent(sqlite_uri, folder).info.status == "FAILED"


def test_a_disk_that_is_full_at_the_end_does_not_take_the_result(
    begin: Run, sqlite_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The copy for Optuna's tools lies elsewhere: in the folder it would give room back all the time.
    code, filler, folder = begin("search-0005", "--optuna-storage", f"sqlite:///{tmp_path}/optuna.db")
    out, err = capsys.readouterr()
    assert code == 2
    assert len(filler.outcomes) == 6
    assert "best, unconfirmed: trial " in out
    assert "interrupted" not in out
    told = err.splitlines()
    # What gives a page back at the end (a mark, a draft) may make room for one of them; what was not written is said.
    tables, summary = f"error: {folder}: {FULL}", f"error: {folder / 'summary.json'}: {FULL}"
    assert told and set(told) <= {tables, summary}
    assert (summary in told) is not (folder / "summary.json").exists()
    assert (tables in told) is not (pq.read_table(folder / "trials" / "trials.parquet").num_rows == 6)
    assert not list(folder.glob(".*.tmp"))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["key"] for event in events if event["event"] == "finished"] == list(filler.outcomes)
    run = parent(sqlite_uri, folder)
    assert run.info.status == "FAILED"
    assert FULL in run.data.tags["mlflow.note.content"]

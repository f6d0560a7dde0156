"""A tracking server that is away while a study runs: nothing waits for it, and it has everything once in the end."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ammpl import cli
from ammpl.study.study import Options, run_study
from ammpl.study.trial import Outcome, Trial
from tests.integration.mlflow_store import Server, mlflow_server, parent
from tests.integration.test_resume import check_mlflow
from tests.study.fakes import execute, small_space

SPACE = small_space(budget={"trials": 10}, seed=3, confirm={"top": 1, "repeats": 1})


class At:
    """Does something when a trial ends."""

    def __init__(self, what: Mapping[str, Callable[[], None]]):
        self._what = what

    def trial_started(self, trial: Trial) -> None:
        pass

    def trial_reported(self, *told: object) -> None:
        pass

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        if trial.key in self._what:
            self._what[trial.key]()

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def server(empty_sqlite_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("outage")
    shutil.copy(empty_sqlite_store, folder / "server.db")
    with mlflow_server(folder) as server:
        yield server


def test_a_server_that_dies_and_comes_back(server: Server, ray_cluster: None, tmp_path: Path) -> None:
    options = Options(tmp_path / "study", concurrency=2, tracking_uri=server.uri, quiet=True)
    acts = At({"search-0002": server.kill, "search-0008": server.start})
    summary = run_study(SPACE, options, execute=execute, observers=[acts])
    assert summary.problems == ()
    check_mlflow(server.uri, summary.folder)
    assert not (summary.folder / "undelivered.json").exists()


def test_a_server_that_is_still_away_at_the_end(
    server: Server,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    options = Options(tmp_path / "study", concurrency=2, tracking_uri=server.uri, quiet=True)
    acts = At({"search-0003": lambda: server.signal(signal.SIGSTOP)})
    try:
        summary = run_study(SPACE, options, execute=execute, observers=[acts])
    finally:
        server.signal(signal.SIGCONT)
    folder = summary.folder
    assert not summary.interrupted and summary.errors == () and summary.has_result
    (problem,) = summary.problems
    assert f"MLflow ({server.uri}) lacks " in problem
    assert f"once the store is back 'python tune.py resume {folder}' delivers it" in problem
    assert json.loads((folder / "undelivered.json").read_text()) == {"mlflow": problem}
    log, end = (folder / "events.jsonl").read_bytes(), (folder / "summary.json").read_bytes()
    assert parent(server.uri, folder).info.status == "RUNNING"

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert cli.main(["resume", str(folder)]) == 0
    assert f"{folder}: the study has ended, and what was missing is delivered\n" in capsys.readouterr().out
    check_mlflow(server.uri, folder)
    assert not (folder / "undelivered.json").exists()
    tags = parent(server.uri, folder).data.tags
    assert tags["mlflow.note.content"].startswith(f"**{tags['result']}**\n\n{SPACE.description}")
    assert (folder / "events.jsonl").read_bytes() == log and (folder / "summary.json").read_bytes() == end

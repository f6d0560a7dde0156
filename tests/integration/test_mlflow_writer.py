"""The writer against a store that fails now and then: nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from ammpl.study.views import mlflow_writer
from ammpl.study.views.mlflow_runs import Runs
from ammpl.study.views.writer_pipe import Events
from tests.integration.mlflow_store import children, curve, files, parent, states

TRIALS = 8


class FlakyClient:
    """A real client whose calls fail at random, half of them after the store has done what was asked."""

    def __init__(self, uri: str, rate: float, seed: int = 0) -> None:
        self._client = MlflowClient(uri)
        self._random = random.Random(seed)
        self.rate = rate
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def flaky(*arguments: Any, **named: Any) -> Any:
            fails, after = self._random.random() < self.rate, self._random.random() < 0.5
            result = call(*arguments, **named) if after or not fails else None
            if fails:
                self.failures += 1
                raise MlflowException("connection reset", TEMPORARILY_UNAVAILABLE)
            return result

        return flaky


def event(op: str, number: int = 0, **rest: Any) -> dict[str, Any]:
    return {"op": op, "key": f"search-{number:04d}", "time": 1_700_000_000_000 + number, **rest}


def start(number: int, folder: Path) -> dict[str, Any]:
    made = folder / "checkpoints" / str(number)
    made.mkdir(parents=True, exist_ok=True)
    (made / "config.json").write_text("{}")
    dataset = {"name": "digits", "digest": "abc", "source": "{}", "profile": "{}", "context": "training"}
    tags = {"trial": f"search-{number:04d}", "state": "RUNNING"}
    params = {f"a.{index}": str(index) for index in range(150)}  # more than one batch takes
    return event("start", number, name=f"{number:04d}", folder=str(made), params=params, tags=tags, dataset=dataset)


def finish(number: int) -> dict[str, Any]:
    tags = {"state": "COMPLETE"}
    return event("finish", number, status="FINISHED", step=300, metrics={"objective": 0.5}, tags=tags)


def open_writer(uri: str, folder: Path, client: Any, replies: list[dict[str, Any]]) -> Runs:
    folder.mkdir(exist_ok=True)
    tags = {"mlflow.user": "me", "mlflow.source.name": "tune.py", "mlflow.source.type": "LOCAL"}
    study = {"shown_uri": uri, "experiment": "ammpl-demo", "name": "s", "folder": str(folder)}
    study |= {"params": {}, "description": "d", "tags": tags, "time": 1_700_000_000_000}
    runs = Runs(study, client, lambda **message: replies.append(message))
    runs.open()
    assert replies.pop()["re"] == "ready"
    return runs


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_failing_store_gets_everything_once(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, replies = tmp_path / "study", list[dict[str, Any]]()
    client = FlakyClient(sqlite_uri, 0.0)
    writer = open_writer(sqlite_uri, folder, client, replies)
    client.rate = rate
    for number in range(TRIALS):
        writer.take(start(number, folder))
        for step in range(1, 301):  # 1,200 points, more than one batch takes
            metrics = {f"m{index}": step / (index + 1) for index in range(4)}
            writer.take(event("report", number, step=step, metrics=metrics))
            if step == 150:
                writer.retry_at = 0.0
                writer.attempt(writer.store)
        writer.take(finish(number))
    for _ in range(1000):
        writer.retry_at = 0.0  # rather than wait
        if writer.attempt(writer.store):
            break
    client.rate = 0.0
    writer.finish_parent(1_700_000_000_000, died=False)

    assert (client.failures > 10) == (rate > 0)
    assert [reply for reply in replies if reply["re"] != "kept"] == []
    assert sorted(reply["key"] for reply in replies) == [f"search-{number:04d}" for number in range(TRIALS)]
    assert set(states(sqlite_uri, folder).values()) == {"COMPLETE"}
    for run in children(sqlite_uri, folder).values():
        assert len(run.data.params) == 150
        assert curve(sqlite_uri, run, "m3") == [(step, step / 4) for step in range(1, 301)]
        assert files(sqlite_uri, run) == {"config.json"}
        assert len(run.inputs.dataset_inputs) == 1


def test_one_trial_that_cannot_be_stored_holds_up_nobody(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replies = list[dict[str, Any]]()
    writer = open_writer(sqlite_uri, tmp_path / "study", MlflowClient(sqlite_uri), replies)
    store = writer._child_run
    odd = {"search-0000"}
    monkeypatch.setattr(writer, "_child_run", lambda child, begun: 1 / 0 if child.key in odd else store(child, begun))
    for number in range(3):
        writer.take(start(number, tmp_path / "study"))
        writer.take(finish(number))
    while not {"search-0001", "search-0002"} <= {reply.get("key") for reply in replies}:
        assert not writer.attempt(writer.store)
        writer.retry_at = 0.0
    assert "ZeroDivisionError" in writer.last_error


def test_what_can_never_be_stored_is_said_and_skipped(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replies = list[dict[str, Any]]()
    client = MlflowClient(sqlite_uri)
    writer = open_writer(sqlite_uri, tmp_path / "study", client, replies)

    def refuse(*_: Any) -> None:
        raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(client, "log_inputs", refuse)
    monkeypatch.setattr(client, "log_artifacts", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    writer.take(start(0, tmp_path / "study"))
    writer.take(finish(0))
    assert writer.attempt(writer.store)
    assert replies == [
        {"re": "problem", "text": "search-0000: data set: MlflowException: no such thing"},
        {"re": "problem", "text": "search-0000: files: PermissionError: read-only"},
        {"re": "kept", "key": "search-0000"},
    ]
    assert states(sqlite_uri, tmp_path / "study") == {"search-0000": "COMPLETE"}


def test_a_deleted_experiment_is_left_alone(sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(sqlite_uri)
    client.delete_experiment(client.create_experiment("ammpl-demo"))
    open_writer(sqlite_uri, tmp_path / "study", client, [])
    found = client.get_experiment(parent(sqlite_uri, tmp_path / "study").info.experiment_id)
    assert (found.name, found.lifecycle_stage) == ("ammpl-demo-2", "active")


@pytest.mark.parametrize("uri", ["gopher://host/x", "sqlite:////proc/none/mlflow.db", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_used_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    events, replies = Events(), list[dict[str, Any]]()
    tags = {"mlflow.user": "me"}
    study = {"shown_uri": uri, "experiment": "e", "name": "s", "folder": str(tmp_path), "tags": tags, "time": 0}
    events.put({**study, "required": True})
    assert mlflow_writer.serve(events, lambda **message: replies.append(message)) == 1
    assert [reply["re"] for reply in replies] == ["imported", "refused"]
    assert [path.name for path in tmp_path.iterdir()] in ([], [".mlflow.lock"])


def _content(path: Path) -> list[str]:
    """All rows, columns and indexes of a database but the times at which it was made, in order: MLflow makes any."""
    with contextlib.closing(sqlite3.connect(path)) as store:
        rows = [re.sub(r"\b1\d{12}\b", "TIME", line) for line in store.iterdump() if line.startswith("INSERT")]
        made = store.execute("SELECT type, name FROM sqlite_master").fetchall()
        columns = [
            (name, *column[1:])
            for kind, name in made
            if kind == "table"
            for column in store.execute(f"PRAGMA table_info('{name}')")
        ]
        return sorted([*rows, *map(str, made), *map(str, columns)])


def test_a_drafted_store_is_the_one_that_mlflow_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MlflowClient("sqlite:///plain.db").search_experiments()
    (tmp_path / "drafts").mkdir()
    draft = mlflow_writer.drafted("sqlite:///store.db", tmp_path / "drafts")
    assert draft is not None
    assert not (tmp_path / "store.db").exists()  # the study may not begin
    mlflow_writer.place(draft)
    assert _content(tmp_path / "store.db") == _content(tmp_path / "plain.db")
    assert {path.name for path in tmp_path.iterdir()} == {"store.db", "plain.db"}
    assert (tmp_path / "store.db").stat().st_mode == (tmp_path / "plain.db").stat().st_mode


def test_a_draft_replaces_nothing(tmp_path: Path) -> None:
    there, made = tmp_path / "store.db", tmp_path / "drafts" / "mlflow.db"
    there.write_text("another study's")
    made.parent.mkdir()
    sqlite3.connect(made).close()
    mlflow_writer.place((made, there))
    assert there.read_text() == "another study's"
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
    for uri in (f"sqlite:///{there}", "sqlite://", "sqlite:///:memory:", "http://127.0.0.1:5000", "postgresql://a/b"):
        assert mlflow_writer.drafted(uri, tmp_path) is None

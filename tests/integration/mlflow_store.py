"""A real MLflow server, and what a store holds of a study, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "LOST": "FAILED", "RUNNING": "RUNNING"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A ``mlflow server`` on a SQLite store, that can die, freeze and come back at the same address.

    Args:
        folder: of its files.
        store: its database; None takes ``server.db`` in the folder.
    """

    def __init__(self, folder: Path, store: str | None = None):
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._store = store or f"sqlite:///{folder}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store, "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self._port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End it, whatever it is at; connections are refused from then on."""
        assert self._process is not None
        self.signal(signal.SIGKILL)
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signal it and its own workers: SIGSTOP leaves it there without an answer, until SIGCONT."""
        assert self._process is not None
        os.killpg(self._process.pid, number)  # its session


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str | None = None) -> Iterator[Server]:
    """Run a server for the length of the block."""
    server = Server(folder, store)
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):  # died before
            server.kill()


def parent(uri: str, study: Path) -> Any:
    """Return the parent run of the study in this folder."""
    return MlflowClient(uri).get_run(json.loads((study / "mlflow.json").read_text())["run_id"])


def children(uri: str, study: Path) -> dict[str, Any]:
    """Return the runs of the study's trials by key; each key has one run."""
    run = parent(uri, study)
    condition = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    found = MlflowClient(uri).search_runs([run.info.experiment_id], condition, max_results=5000)
    by_key = {child.data.tags["trial"]: child for child in found}
    assert len(by_key) == len(found), "two runs for one trial"
    return by_key


def states(uri: str, study: Path) -> dict[str, str]:
    """Return the state of each trial by key, as MLflow has it; tag and status must agree."""
    found = {}
    for key, run in children(uri, study).items():
        found[key] = run.data.tags["state"]
        assert run.info.status == STATUS[found[key]], f"{key}: {run.info.status} for {found[key]}"
    return found


def curve(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    """Return a metric's points (step, value) in the order of their steps."""
    history = MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def files(uri: str, run: Any) -> set[str]:
    """Return the paths of a run's artifacts, those at the top."""
    return {item.path for item in MlflowClient(uri).list_artifacts(run.info.run_id)}

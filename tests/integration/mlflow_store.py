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


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run ``mlflow server`` on a SQLite store in ``folder``; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its session: the server and its own workers
        server.wait()


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

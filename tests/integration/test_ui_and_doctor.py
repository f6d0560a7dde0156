"""``tune.py ui`` and ``tune.py doctor`` as a person runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ammpl.errors import UserError
from ammpl.study.record.own_addresses import remember
from ammpl.study.views.ui import UserInterface

ROOT = Path(__file__).resolve().parents[2]
TUNE = [sys.executable, str(ROOT / "tune.py")]


@pytest.fixture
def study(tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a tracked study leaves that the UI is opened by."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(sqlite_uri)
    experiment = client.create_experiment("ammpl-small")
    run = client.create_run(experiment, run_name="small-1")
    folder = tmp_path / "small-1"
    folder.mkdir()
    (folder / "study.yaml").write_text("version: 1\n")
    link = {"tracking_uri": sqlite_uri, "experiment_id": experiment, "run_id": run.info.run_id}
    (folder / "mlflow.json").write_text(json.dumps(link))
    remember(folder, {"mlflow.json": sqlite_uri})
    return folder


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that runs the tests in the background ignores them


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_opens_at_the_studys_page_and_ends_with_its_process(study: Path, end: signal.Signals) -> None:
    link = json.loads((study / "mlflow.json").read_text())
    command = [*TUNE, "ui", str(study), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("MLflow: ").strip()
        base, _, page = address.partition("/#/")
        assert page == f"experiments/{link['experiment_id']}/runs/{link['run_id']}?workflowType=machine_learning"
        query = f"{base}/ajax-api/2.0/mlflow/runs/get?run_id={link['run_id']}"
        with urllib.request.urlopen(query, timeout=30) as answer:
            assert json.load(answer)["run"]["info"]["run_name"] == "small-1"
        process.send_signal(end)
        assert process.wait(timeout=60) == 0
        with socket.socket() as port:  # nothing listens there any more
            assert port.connect_ex(("127.0.0.1", int(base.rpartition(":")[2]))) != 0
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_server_has_its_ui_already(study: Path) -> None:
    link = json.loads((study / "mlflow.json").read_text())
    (study / "mlflow.json").write_text(json.dumps(link | {"tracking_uri": "http://10.0.0.1:5000"}))
    with pytest.raises(UserError, match=r"mlflow\.json: names an address that you have not given .*Fix: name it your"):
        UserInterface(study)
    remember(study, {"mlflow.json": "http://10.0.0.1:5000"})
    with UserInterface(study) as interface:
        expected = f"http://10.0.0.1:5000/#/experiments/{link['experiment_id']}/runs/{link['run_id']}"
        assert interface.address == f"{expected}?workflowType=machine_learning"
        interface.wait()


def test_what_cannot_be_opened_is_said(study: Path, tmp_path: Path) -> None:
    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(UserError, match=message):
            UserInterface(*arguments)  # type: ignore[arg-type]

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused("--port: cannot be used", study, None, taken.getsockname()[1])
    refused("--port: must be from 0 to 65535", study, None, 70_000)
    refused("none.db: no such MLflow store", None, f"sqlite:///{tmp_path}/none.db")
    refused("is not a folder", tmp_path / "nothing")
    link = json.loads((study / "mlflow.json").read_text())
    (study / "mlflow.json").write_text(json.dumps(link | {"tracking_uri": "postgresql://me:***@host/db"}))
    remember(study, {"mlflow.json": "postgresql://me:***@host/db"})
    refused("--tracking-uri: the study's store has a password, which is not kept", study)
    (study / "mlflow.json").unlink()
    refused("is not in MLflow: it has no mlflow.json", study)


def test_the_doctor_finds_a_machine_that_runs_the_tests_ready(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*TUNE, "doctor"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ready for studies"
    assert {"python", "packages", "torch", "backbone", "Ray"} <= {line[5:].partition(":")[0] for line in lines}
    [start] = [line for line in lines if line[5:].startswith("start: ")]
    parts = ("imports", "Ray", "MLflow store", "worker", "backbone", "data")
    assert re.fullmatch("ok   start: " + ", ".join(rf"{part} \d+\.\d s" for part in parts) + "; .*", start)
    assert list(tmp_path.iterdir()) == []

"""MLflow's UI on the store that a study is in, opened at the study's page."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ammpl.errors import UserError
from ammpl.redaction import redacted
from ammpl.study.plan.replay import check_study
from ammpl.study.views.mlflow_process import DEFAULT_URI
from ammpl.study.views.tracking import remembered_uri, run_page

HOST = "127.0.0.1"
PORT = 5000
START_SECONDS = 120.0  # its first start on a SQLite file creates the tables


class UserInterface:
    """The UI of a store; a store that is a server has one already, and nothing is started.

    Args:
        study: a study's folder, to open at its page; None opens at the list of experiments.
        tracking_uri: of the store; None takes the study's own, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in the
            working directory.
        port: to listen on, on the loopback only; None takes 5000, or a free one where that is taken.

    Attributes:
        address: what to open.

    Raises:
        UserError: the folder is no study's or was not tracked, its store is not here, or the port is taken.
    """

    def __init__(self, study: Path | None, tracking_uri: str | None = None, port: int | None = None):
        link = _link(study) if study else {}
        uri = tracking_uri or (remembered_uri(study) if study else None)
        self._uri: str = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self._is_server = self._uri.startswith(("http://", "https://"))
        self._process: subprocess.Popen[bytes] | None = None
        if self._is_server:
            base = redacted(self._uri).rstrip("/")
        else:
            _check_file(self._uri)
            self._port = _free_port(port)
            base = f"http://{HOST}:{self._port}"
        self.address = base + (run_page(link) if link else "")

    def __enter__(self) -> UserInterface:
        """Start the UI and wait until it answers."""
        if self._is_server:
            return self
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self._uri]
        command += ["--host", HOST, "--port", str(self._port), "--workers", "1"]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        try:
            self._wait_for_answer()
        except BaseException:  # Ctrl-C, too
            self.__exit__()
            raise
        return self

    def _wait_for_answer(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://{HOST}:{self._port}/health"):
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
                raise UserError("--tracking-uri", f"MLflow's UI ended: {lines[-1] if lines else 'without a word'}")
            if time.monotonic() > deadline:
                raise UserError("--tracking-uri", f"MLflow's UI does not answer within {START_SECONDS:g} s")
            time.sleep(0.2)

    def wait(self) -> None:
        """Block until the UI ends; at once for a server."""
        if self._process is not None:
            assert self._process.stderr is not None
            for _ in self._process.stderr:  # what it says is for whoever keeps servers; a full pipe would stop it
                pass
            self._process.wait()

    def __exit__(self, *error: object) -> None:
        """End the UI."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def _link(study: Path) -> dict[str, Any]:
    check_study(study)
    try:
        link: dict[str, Any] = json.loads((study / "mlflow.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(str(study), "is not in MLflow: it has no mlflow.json") from None
    except (OSError, ValueError) as error:
        raise UserError(str(study / "mlflow.json"), f"cannot be read ({error})") from None
    return link


def _check_file(uri: str) -> None:
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_file():
        fix = "go to the directory in which the study was started, or give --tracking-uri"
        raise UserError(str(path), "no such MLflow store", fix=fix)


def _free_port(port: int | None) -> int:
    with socket.socket() as taken:
        try:
            taken.bind((HOST, PORT if port is None else port))
        except OverflowError:
            raise UserError("--port", "must be from 0 to 65535", got=port) from None
        except OSError as error:
            if port is not None:
                raise UserError("--port", f"cannot be used ({error.strerror})", got=port, fix="leave it out") from None
            taken.bind((HOST, 0))
        found: int = taken.getsockname()[1]
        return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False

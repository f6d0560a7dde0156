"""The process that writes to MLflow, seen from the driver: a pipe to it, its answers, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default: a file in the working directory."""

# In the writer only. The client's own defaults (7 retries of 120 s) would keep a study from starting for half an hour.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "OMP_NUM_THREADS": "1",
}


class MLflowProcess:
    """A running :mod:`ammpl.study.mlflow_writer`.

    It begins at once to import MLflow, which takes 2-4 s: start it before Ray, and give it to
    :class:`ammpl.study.tracking.MLflowTracker` after. Until then it touches no store, and it ends with its driver.

    Args:
        tracking_uri: any tracking URI of MLflow; None takes MLFLOW_TRACKING_URI, else :data:`DEFAULT_URI`.

    Attributes:
        uri: the one it took.
        where: the flag or the variable that the URI came from.
        answers: what the writer has said so far, by kind (``re``); see the writer.
        answered: set when it has a parent run, or has refused, or has ended.
        ended: set when it has nothing more to say.
        broken: whether what is sent cannot arrive any more.
        heard_at: time of the last sign of life, on the monotonic clock.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = tracking_uri or from_environment or DEFAULT_URI
        self.where = "MLFLOW_TRACKING_URI" if from_environment and not tracking_uri else "--tracking-uri"
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.answered, self.ended = threading.Event(), threading.Event()
        self.broken = False
        self.heard_at = time.monotonic()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = self._start()
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._feed, name="mlflow-feed", daemon=True).start()
        threading.Thread(target=self._listen, name="mlflow-listen", daemon=True).start()

    def _start(self) -> subprocess.Popen[str]:
        # As a file and with -P: the writer imports nothing of this package, so it starts as fast as MLflow imports
        # and needs no sys.path of ours. In its own session: Ctrl-C reaches the driver alone, which drains the writer.
        return subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("mlflow_writer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**_ENVIRONMENT, **os.environ, "MLFLOW_TRACKING_URI": self.uri},
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, event: dict[str, Any]) -> None:
        """Queue an event, with the time of now unless it has one; returns at once."""
        if not self.broken:  # else nobody would ever read it
            self._queue.put({"time": int(time.time() * 1000), **event})

    def close_pipe(self) -> None:
        """Say that nothing more comes; the writer ends when it has read everything."""
        self._queue.put(None)

    def end(self) -> int:
        """End the process, by force if it has not ended, and return its exit code."""
        self._queue.put(None)
        if not self.ended.is_set():
            self._process.kill()
        return self._process.wait()

    def errors(self) -> str:
        """Return what the process has printed to stderr; call it after :meth:`end`."""
        self._errors.seek(0)
        return self._errors.read()

    def _feed(self) -> None:
        """Write the queue to the pipe; a full pipe blocks this thread and nobody else."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (event := self._queue.get()) is not None:
                pipe.write(json.dumps(event, default=float) + "\n")
                pipe.flush()
            pipe.close()
        except (OSError, ValueError):
            self.broken = True

    def _listen(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        for line in pipe:
            answer = json.loads(line)
            self.heard_at = time.monotonic()
            self.answers.setdefault(answer["re"], []).append(answer)
            if answer["re"] in ("ready", "refused"):
                self.answered.set()
        self.ended.set()
        self.answered.set()

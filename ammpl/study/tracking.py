"""Tracking a study in MLflow without waiting for it.

A parent run is the study, a child run is a trial, whatever its phase. The driver only puts small dicts on a queue;
all of MLflow, its import included, lives in a process of its own (:mod:`ammpl.study.mlflow_writer`), because a
thread would share the driver's interpreter with the scheduling of trials. The study folder is the truth: what MLflow
could not keep is said at the end and is never a reason to stop.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ammpl.config import Scalar
from ammpl.errors import UserError
from ammpl.study.labels import run_name
from ammpl.study.trial import Outcome, State, Trial

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default: a file in the working directory."""

_STATUS = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAILED: "FAILED",
    State.LOST: "FAILED",
}

# In the writer only. The client's own defaults (7 retries of 120 s) would keep a study from starting for half an hour.
_WRITER_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "OMP_NUM_THREADS": "1",
}


class MLflowTracker:
    """Observer that keeps a study in an MLflow store.

    The writer starts at once and imports MLflow (2-4 s) while the caller starts Ray; :meth:`check` then says whether
    the store answered.

    Args:
        tracking_uri: any tracking URI of MLflow; None takes MLFLOW_TRACKING_URI, else the SQLite file ``mlflow.db``
            in the working directory.
        study_name: names the experiment, ``ammpl-<study_name>``.
        folder: the study folder; its name becomes the parent run's. ``mlflow.json`` in it remembers the parent run, so
            that a study that goes on later goes on in the same runs.
        description: Markdown, shown at the head of the parent run.
        tags: of the parent run.
        params: of the parent run.

    Attributes:
        warnings: after :meth:`close`, what MLflow does not have and why; empty when it has everything.
        parent: after a successful :meth:`check`, ``experiment_id`` and ``run_id`` of the parent run.

    Example:
        >>> tracker = MLflowTracker(None, "default", Path("studies/default-1"), "question", {}, {})  # doctest: +SKIP
        >>> tracker.check()  # doctest: +SKIP
    """

    def __init__(
        self,
        tracking_uri: str | None,
        study_name: str,
        folder: Path,
        description: str,
        tags: Mapping[str, str],
        params: Mapping[str, Scalar],
    ) -> None:
        environment_uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._uri = tracking_uri or environment_uri or DEFAULT_URI
        self._where = "MLFLOW_TRACKING_URI" if environment_uri and not tracking_uri else "--tracking-uri"
        self._folder = folder
        self.warnings: tuple[str, ...] = ()
        self.parent: dict[str, str] = {}
        self._refusal: str | None = None
        self._problems: list[str] = []
        self._told: set[str] = set()  # keys of trials that began
        self._kept: set[str] = set()  # keys whose end MLflow has
        self._done = self._closed = self._broken = False
        self._answered, self._ended = threading.Event(), threading.Event()
        self._last_reply = time.monotonic()
        self._importing = True

        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "mlflow.log"  # what MLflow says on stderr; removed when it said nothing
        self._process = _start_writer(self._uri, self._log)
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._feed, name="mlflow-feed", daemon=True).start()
        threading.Thread(target=self._listen, name="mlflow-listen", daemon=True).start()
        self._put(
            {
                "op": "study",
                "uri": self._uri,
                "shown_uri": without_password(self._uri),
                "experiment": f"ammpl-{study_name}",
                "name": folder.name,
                "folder": str(folder.absolute()),
                "params": {name: _param(value) for name, value in params.items()},
                "description": description,
                "tags": {
                    "mlflow.user": _user(),
                    "mlflow.source.name": Path(sys.argv[0]).name or "python",
                    "mlflow.source.type": "LOCAL",
                    "study": folder.name,
                    **tags,
                },
            }
        )

    def check(self, seconds: float = 20.0) -> None:
        """Wait until the store has taken the parent run.

        Args:
            seconds: how long the store may take, not counting the import of MLflow.

        Raises:
            UserError: the store does not answer, refuses, or is not one that MLflow knows.
        """
        deadline = None
        while not self._answered.wait(0.05):
            if deadline is None and not self._importing:
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                self._refusal = f"no answer within {seconds:g} s"
                break
        if not self._answered.is_set() or self._refusal or not self.parent:
            self._kill()
            raise UserError(
                self._where,
                f"the MLflow store cannot be used ({self._refusal or self._exit_text()})",
                got=without_password(self._uri),
                fix=f"start the server or mend the address; '--tracking-uri {DEFAULT_URI}' keeps runs in a local file",
            )

    @property
    def ui_command(self) -> str:
        """The shell command that opens the MLflow UI on this store; for a server, its address."""
        if self._uri.startswith(("http://", "https://")):
            return self._run_url(without_password(self._uri))
        python = Path(sys.executable)
        shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        return f"{shown} -m mlflow ui --backend-store-uri {without_password(self._uri)}"

    @property
    def run_url(self) -> str:
        """The parent run's page: on the server, or on the UI that :attr:`ui_command` opens."""
        if self._uri.startswith(("http://", "https://")):
            return self._run_url(without_password(self._uri))
        return self._run_url("http://127.0.0.1:5000")

    def _run_url(self, base: str) -> str:
        if not self.parent:
            return base
        return f"{base.rstrip('/')}/#/experiments/{self.parent['experiment_id']}/runs/{self.parent['run_id']}"

    # -- Observer --

    def trial_started(self, trial: Trial) -> None:
        """Begin the trial's child run, or take it up again when the key is known."""
        self._told.add(trial.key)
        self._kept.discard(trial.key)
        values = trial.config.flat()
        self._put(
            {
                "op": "start",
                "key": trial.key,
                "name": run_name(trial),
                "folder": str(trial.folder(self._folder).absolute()),
                "params": {name: _param(value) for name, value in values.items()},
                "tags": {
                    "trial": trial.key,
                    "state": "RUNNING",
                    "phase": trial.phase,
                    "candidate": trial.candidate,
                    "repeat": str(trial.repeat),
                    "config_sha256": trial.config.sha256,
                },
                "dataset": _dataset(trial, values),
            }
        )

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point, at optimiser step ``step``, to each metric's curve."""
        self._put({"op": "report", "key": trial.key, "step": step, "metrics": dict(metrics)})

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """End the child run; the files of the trial's folder become its artifacts."""
        tags = {"state": str(outcome.state)}
        if outcome.state is State.PRUNED and outcome.step is not None:
            tags["pruned_step"] = str(outcome.step)
        if outcome.reason:
            tags["reason"] = outcome.reason
        metrics = dict(outcome.metrics)
        metrics["seconds"] = outcome.seconds
        if outcome.value is not None:
            metrics["objective"] = outcome.value
        self._put(
            {
                "op": "finish",
                "key": trial.key,
                "status": _STATUS[outcome.state],
                "step": outcome.step or 0,
                "metrics": metrics,
                "tags": tags,
            }
        )

    def summary(self, metrics: Mapping[str, float], table_markdown: str, *, interrupted: bool = False) -> None:
        """Tell how the study ended; call it once, before :meth:`close`.

        Args:
            metrics: the study's own figures, of the parent run.
            table_markdown: goes below the description and into ``summary.md``.
            interrupted: the parent run becomes KILLED instead of FINISHED.
        """
        self._put({"op": "summary", "metrics": dict(metrics), "table": table_markdown, "interrupted": interrupted})

    def close(self, patience: float = 60.0) -> None:
        """Wait until MLflow has everything, then fill :attr:`warnings`. Without a summary the parent run is KILLED.

        Args:
            patience: seconds without any progress of the writer after which it is given up.
        """
        if self._closed:
            return
        self._put({"op": "close"})
        self._closed = True
        self._queue.put(None)
        self._last_reply = time.monotonic()
        try:
            while not self._ended.wait(0.1):
                if time.monotonic() - self._last_reply > patience:
                    self._problems.append(f"no progress for {patience:g} s")
                    break
        finally:
            self._kill()
        self.warnings = self._missing()
        if self._log.is_file() and self._log.stat().st_size == 0:
            self._log.unlink()

    # -- the other side --

    def _put(self, event: dict[str, Any]) -> None:
        if not self._broken and not self._closed:
            self._queue.put({**event, "time": int(time.time() * 1000)})

    def _feed(self) -> None:
        """Write the queue to the writer's pipe; a full pipe blocks this thread and nobody else."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (event := self._queue.get()) is not None:
                pipe.write(json.dumps(event, default=float) + "\n")
                pipe.flush()
            pipe.close()
        except (OSError, ValueError):  # the writer is gone: no use in keeping what would never be read
            self._broken = True

    def _listen(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        for line in pipe:
            reply = json.loads(line)
            self._last_reply = time.monotonic()
            match reply["re"]:
                case "imported":
                    self._importing = False
                case "ready":
                    self.parent = reply["parent"]
                    self._answered.set()
                case "refused":
                    self._refusal = reply["text"]
                    self._answered.set()
                case "kept":
                    self._kept.add(reply["key"])
                case "problem":
                    self._problems.append(reply["text"])
                case "done":
                    self._done = True
        self._ended.set()
        self._answered.set()

    def _kill(self) -> None:
        """End the writer by force if it has not ended, and collect it."""
        self._closed = True
        self._queue.put(None)
        if not self._ended.is_set():
            self._process.kill()
        self._process.wait()

    def _exit_text(self) -> str:
        return f"the writer process ended with exit code {self._process.poll()}; see {self._log}"

    def _missing(self) -> tuple[str, ...]:
        missing = sorted(self._told - self._kept)
        if self._done and not missing and not self._problems:
            return ()
        reasons = list(dict.fromkeys(self._problems))
        if self._refusal:
            reasons.append(self._refusal)
        elif not self._done:
            reasons.append(self._exit_text())
        what = "the study's own figures"
        if missing:
            shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            what = f"{len(missing)} of {len(self._told)} trials ({shown})"
        elif self._done:
            what = "details"
        return (
            f"MLflow ({without_password(self._uri)}) lacks {what}: {'; '.join(reasons[:5]) or 'the store failed'}. "
            f"The study is not affected; {self._folder / 'events.jsonl'} has everything.",
        )


def without_password(uri: str) -> str:
    """Return a URI that can be shown and saved: ``postgresql://me:***@host/db``."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def _start_writer(uri: str, log: Path) -> subprocess.Popen[str]:
    # Run as a file and with -P: the writer imports nothing of this package, so it starts as fast as MLflow imports
    # and needs no sys.path of ours. Its own session: Ctrl-C reaches the driver alone, which then drains the writer.
    script = Path(__file__).with_name("mlflow_writer.py")
    environment = {**_WRITER_ENVIRONMENT, **os.environ, "MLFLOW_TRACKING_URI": uri}
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )


def _param(value: Scalar) -> str:
    """Return a value in full, as a space file would spell it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's nameless user
        return "unknown"


def _dataset(trial: Trial, values: Mapping[str, Scalar]) -> dict[str, str]:
    """Describe the few-shot task; its digest changes with anything that picks other images."""
    task = {name.removeprefix("data."): value for name, value in values.items() if name.startswith("data.")}
    task["seed"] = trial.config.seeds.data
    text = json.dumps(task, sort_keys=True)
    return {
        "name": trial.config.data.name,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "source": json.dumps({"tags": {"ammpl.data": trial.config.data.name}}),
        "profile": text,
        "context": "testing" if trial.phase == "test" else "training",
    }

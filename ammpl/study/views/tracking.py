"""Tracking a study in MLflow without waiting for it.

A parent run is the study, a child run is a trial, whatever its phase. The driver only puts small dicts on a queue;
all of MLflow, its import included, lives in a process of its own (:mod:`ammpl.study.views.mlflow_writer`), because a
thread would share the driver's interpreter with the scheduling of trials. The study folder is the truth: what MLflow
could not keep is said at the end, is never a reason to stop, and can be told again, once the store is back, from the
event log.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ammpl.config import Scalar
from ammpl.errors import UserError
from ammpl.redaction import is_redacted, redacted
from ammpl.study.record.own_addresses import check_own, is_own
from ammpl.study.result.labels import run_name
from ammpl.study.trial import Outcome, State, Trial
from ammpl.study.views.mlflow_process import DEFAULT_URI, MLflowProcess

LINK = "mlflow.json"
"""In the study folder: which run of which store it is."""

_STATUS = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAILED: "FAILED",
    State.LOST: "FAILED",
}


class MLflowTracker:
    """Observer that keeps a study in an MLflow store.

    Args:
        tracking_uri: any tracking URI of MLflow; None takes MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working
            directory.
        study_name: names the experiment, ``ammpl-<study_name>``.
        folder: the study folder; its name becomes the parent run's. ``mlflow.json`` in it remembers the parent run, so
            that a study that goes on later goes on in the same runs.
        description: Markdown, shown at the head of the parent run.
        tags: of the parent run.
        params: of the parent run.
        details: Markdown, below the description, and below the result once there is one.
        process: one that was started earlier, so that its import of MLflow overlaps with other work; it knows the URI.
        ended: how trials of earlier sessions ended, by key. The tracker is told of them again, as of all trials, and
            MLflow gets what it lacks of them.
        now: the time of what is being told, in seconds since 1970.

    Attributes:
        warnings: after :meth:`close`, what MLflow does not have and why; empty when it has everything.

    Examples:
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
        *,
        details: str = "",
        process: MLflowProcess | None = None,
        ended: Mapping[str, State] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._process = process or MLflowProcess(tracking_uri)
        self._uri = self._process.uri
        self._folder = folder
        self._told: set[str] = set()  # keys of trials that began
        self._closed = False
        self._required = not has_study(self._uri, folder)
        self._now = now
        self.warnings: tuple[str, ...] = ()
        self._put(
            {
                "op": "study",
                "shown_uri": redacted(self._uri),
                "required": self._required,
                "experiment": f"ammpl-{study_name}",
                "name": folder.name,
                "folder": str(folder.absolute()),
                "params": {name: _param(value) for name, value in params.items()},
                "dataset": _dataset(params, None, "study"),
                "description": description,
                "details": details,
                "ended": {key: str(state) for key, state in (ended or {}).items()},
                "tags": {
                    "mlflow.user": _user(),
                    "mlflow.source.name": Path(sys.argv[0]).name or "python",
                    "mlflow.source.type": "LOCAL",
                    "study": folder.name,
                    **tags,
                },
            }
        )

    def check(self, seconds: float | None = None) -> None:
        """Wait until the store has taken the parent run; not where it has one, from an earlier session.

        Args:
            seconds: how long the store may take, not counting the import of MLflow; None is 30 for what lies behind a
                network, and 120 for a SQLite file, whose creation takes MLflow 4 s on a machine with nothing to do.

        Raises:
            UserError: the store does not answer, refuses, or is not one that MLflow knows.
        """
        if not self._required:  # it is no mistake, so it may be away for a while
            return
        seconds = seconds or (120.0 if self._uri.startswith("sqlite:") else 30.0)
        deadline = None
        while not self._process.answered.wait(0.05):
            if deadline is None and "imported" in self._process.answers:
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                break
        if not self.parent:
            reason = self._process.failure() if self._process.answered.is_set() else f"no answer within {seconds:g} s"
            self._closed = True
            self._process.end()
            raise unusable(self._process, reason)

    @property
    def parent(self) -> dict[str, str]:
        """The parent run's ``experiment_id`` and ``run_id``; empty as long as there is none."""
        ready = self._process.answers.get("ready")
        return ready[0]["parent"] if ready else {}

    @property
    def opened_by(self) -> str:
        """What opens the study in MLflow: the page of its run on a server, else a shell command."""
        if not self._uri.startswith(("http://", "https://")):
            return f"python tune.py ui {shlex.quote(str(self._folder))}"
        base = redacted(self._uri)
        return base.rstrip("/") + run_page(self.parent) if self.parent else base

    # -- Observer --

    def trial_started(self, trial: Trial) -> None:
        """Begin the trial's child run, or take it up again when the key is known."""
        self._told.add(trial.key)
        values = trial.config.flat()
        self._put(
            {
                "op": "start",
                "time": int(1000 * self._now()),
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
                "dataset": _dataset(
                    values, trial.config.seeds.data, "testing" if trial.phase == "test" else "training"
                ),
            }
        )

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point, at optimiser step ``step``, to each metric's curve."""
        at = int(1000 * self._now())
        self._put({"op": "report", "time": at, "key": trial.key, "step": step, "metrics": dict(metrics)})

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """End the child run; the files of the trial's folder become its artifacts."""
        tags = {"state": str(outcome.state)}
        if outcome.state is State.PRUNED and outcome.step is not None:
            tags["pruned_step"] = str(outcome.step)
        if outcome.reason:
            tags["reason"] = outcome.reason
        if outcome.duplicate_of:
            tags["duplicate_of"] = outcome.duplicate_of
        metrics = dict(outcome.metrics)
        metrics["seconds"] = outcome.seconds
        if outcome.value is not None:
            metrics["objective"] = outcome.value
        self._put(
            {
                "op": "finish",
                "time": int(1000 * self._now()),
                "key": trial.key,
                "status": _STATUS[outcome.state],
                "step": outcome.step or 0,
                "metrics": metrics,
                "tags": tags,
            }
        )

    def summary(
        self,
        metrics: Mapping[str, float],
        table_markdown: str,
        *,
        interrupted: bool = False,
        failed: bool = False,
        tags: Mapping[str, str] | None = None,
        winner: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell how the study ended; call it once, before :meth:`close`.

        Args:
            metrics: the study's own figures, of the parent run.
            table_markdown: goes below the description and into ``summary.md``.
            interrupted: the parent run becomes KILLED instead of FINISHED.
            failed: the parent run becomes FAILED: the study stopped itself.
            tags: further ones of the parent run.
            winner: what :func:`ammpl.study.views.mlflow_model.log_winner` takes; None without one.
        """
        ending = {"interrupted": interrupted, "failed": failed, "tags": dict(tags or {}), "winner": winner}
        self._put({"op": "summary", "metrics": dict(metrics), "table": table_markdown, **ending})

    def close(self, patience: float = 60.0) -> None:
        """Wait until MLflow has everything, then fill :attr:`warnings`. Without a summary the parent run is KILLED.

        Args:
            patience: seconds without any sign of progress after which the writer is given up.
        """
        if self._closed:
            return
        self._put({"op": "close"})
        self._closed = True
        stuck = self._process.drain(patience)
        self.warnings = self._missing([stuck] if stuck else [])
        if errors := self._process.errors():
            (self._folder / "mlflow.log").write_text(errors, encoding="utf-8")

    def _put(self, event: dict[str, Any]) -> None:
        if not self._closed:
            self._process.send(event)

    def _missing(self, problems: list[str]) -> tuple[str, ...]:
        answers = self._process.answers
        done = "done" in answers
        kept = {answer["key"] for answer in answers.get("kept", ())}
        missing = sorted(self._told - kept)
        problems = list(dict.fromkeys(problems + [answer["text"] for answer in answers.get("problem", ())]))
        if done and not missing and not problems:
            return ()
        if not done:
            problems.append(self._process.failure())
        what = "details" if done else "the study's own figures"
        if missing:
            shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            what = f"{len(missing)} of {len(self._told)} trials ({shown})"
        return (
            f"MLflow ({redacted(self._uri)}) lacks {what}: {'; '.join(problems[:5])}. "
            f"The study is not affected; {self._folder / 'events.jsonl'} has everything, "
            f"and once the store is back 'python tune.py resume {self._folder}' delivers it.",
        )


def run_page(run: Mapping[str, str]) -> str:
    """Return the page of a run in MLflow's UI, below its address; opened with the menu for models, not for agents."""
    return f"/#/experiments/{run['experiment_id']}/runs/{run['run_id']}?workflowType=machine_learning"


def unusable(process: MLflowProcess, reason: str) -> UserError:
    """Return the error for a store that cannot take a study."""
    fix = f"start the server or mend the address; '--tracking-uri {DEFAULT_URI}' keeps runs in a local file"
    if re.search(r"\b(ModuleNotFound|Import)Error\b", reason):  # a package's fault, no address's
        fix = "install what is missing: pip install -e . in the project's folder; a database's driver by itself"
    return UserError(process.where, f"the MLflow store cannot be used ({reason})", got=redacted(process.uri), fix=fix)


def remembered_uri(folder: Path, trusted: bool | None = None) -> str | None:
    """Return the address of the store that a study began in; None where the one of this user's surroundings is to do.

    That is so where the folder names none, or the same.

    Args:
        folder: the study's.
        trusted: whether the user has said that the folder's addresses are to be used; None where that cannot be said.

    Raises:
        UserError: the user has not given it to this study; or it has a password, which is not kept.
    """
    uri = _remembered(folder).get("tracking_uri")
    given = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    if uri is None or redacted(given) == uri:
        return None
    if uri != DEFAULT_URI:  # a file where the user is
        check_own(folder, LINK, uri, "name it yourself with --tracking-uri", trusted)
    return _with_password(uri)


def own_uri(folder: Path) -> str | None:
    """Return the address of the store that a study is in, None where it is not known to be this user's.

    It is that of MLFLOW_TRACKING_URI, or one that this user has given to the study on this machine.

    Raises:
        UserError: it has a password, which is not kept.
    """
    uri = _remembered(folder).get("tracking_uri")
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given is not None and uri == redacted(given):
        return given
    return _with_password(uri) if uri is not None and is_own(folder, LINK, uri) else None


def _with_password(uri: str) -> str:
    """Return an address that a folder keeps as it is, unless something of it was left out."""
    if is_redacted(uri):
        fix = "give it again, with the password, here or as MLFLOW_TRACKING_URI"
        raise UserError("--tracking-uri", "the study's store has a password, which is not kept", got=uri, fix=fix)
    return uri


def has_study(uri: str, folder: Path) -> bool:
    """Return whether a study has been told to a store before: then it is the right one, if it does not answer now."""
    return _remembered(folder).get("tracking_uri") == redacted(uri)


def remembered_run(folder: Path) -> str | None:
    """Return the identifier of the run that a study is in MLflow, None where there is none."""
    run = _remembered(folder).get("run_id", "")
    return run if re.fullmatch("[0-9a-f]{32}", run) else None


def _remembered(folder: Path) -> dict[str, str]:
    try:
        saved = json.loads((folder / LINK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in saved.items() if isinstance(value, str)} if isinstance(saved, dict) else {}


def _param(value: Scalar) -> str:
    """Return a value in full, as a space file would spell it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's nameless user
        return "unknown"


def _dataset(values: Mapping[str, Scalar], seed: int | None, context: str) -> dict[str, str]:
    """Describe the few-shot task of a configuration; the digest changes with anything that picks other images.

    Args:
        seed: of the few-shot sample; None stands for all of a study's.
    """
    task = {name.removeprefix("data."): value for name, value in values.items() if name.startswith("data.")}
    if seed is not None:
        task["seed"] = seed
    name, text = str(task.get("name", "unknown")), json.dumps(task, sort_keys=True)
    return {
        "name": name,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "source": json.dumps({"tags": {"ammpl.data": name}}),
        "profile": text,
        "context": context,
    }

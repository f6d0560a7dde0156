"""The process that talks to MLflow: reads events from stdin, answers on stdout, one JSON object a line.

Started by :class:`ammpl.study.mlflow_process.MLflowProcess` as a plain script; imports nothing of this package. The
store's address is in MLFLOW_TRACKING_URI. What it could not store yet stays in memory and is tried again, so a store
that is away for a while delays and loses nothing. Every step can be repeated without harm: a run is looked up by its
trial's key before a second attempt to create it, and MLflow ignores a metric point whose time stamp, step and value it
already has.

Answers, by ``re``: ``imported``; ``ready`` with the ``parent`` run, or ``refused`` with a ``text``; ``kept`` with the
``key`` of a trial whose end is stored; ``problem`` with a ``text``; ``done``.

It ends when stdin does; without a ``close`` before that, the driver has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

Event = dict[str, Any]

FLUSH_SECONDS = 2.0  # the curves of running trials are about this old in the UI
GIVE_UP_SECONDS = 20.0  # after the end: how long a failing store is tried without any progress
LOCK_SECONDS = 100.0  # that a writer waits for one of an earlier session to end
FIRST_DELAY, LONGEST_DELAY = 0.25, 10.0  # seconds between attempts at a failing store
TAG_CHARACTERS = 5000  # every store of MLflow takes that much; some count bytes

# What MLflow answered with one of these, it would answer the same way again.
PERMANENT = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}


@dataclass
class Child:
    """A trial's run and what it still has to be told.

    Attributes:
        steps: the last step queued or stored of every metric: a restarted trial repeats no point.
        running: whether the driver has begun the trial and not ended it.
        tried: whether an attempt was made to create the run, whose result may be unknown.
        settled: whether an earlier session has stored all of it: what is told of it again is no news.
    """

    key: str
    run_id: str = ""
    folder: str = ""
    start: Event | None = None
    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    finish: Event | None = None
    steps: dict[str, int] = field(default_factory=dict)
    running: bool = False
    tried: bool = False
    settled: bool = False

    @property
    def waiting(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.start or self.points or self.finish)

    def add_points(self, metrics: dict[str, float], step: int, at: int) -> None:
        """Queue the metrics that have no point at this step or later."""
        for name, value in metrics.items():
            if step > self.steps.get(name, -1):
                self.steps[name] = step
                self.points.append((name, value, at, step))


class Writer:
    """Keeps the runs of one study in one store.

    Args:
        study: the ``study`` event.
        client: an ``MlflowClient``.
        reply: sends an object to the driver.
    """

    def __init__(self, study: Event, client: Any, reply: Callable[..., None]) -> None:
        self.study = study
        self.client = client
        self.reply = reply
        self.children: dict[str, Child] = {}
        self.summary: Event | None = None
        self.stored = 0  # trials brought up to date, as a measure of progress
        self.delay, self.retry_at, self.last_error = FIRST_DELAY, 0.0, ""
        self.lock = _lock(Path(study["folder"]))
        self.experiment_id, self.parent_id = self._open_parent()

    # -- the parent run --

    def _open_parent(self) -> tuple[str, str]:
        """Return experiment and run of this study: those that its folder remembers, else new ones."""
        link = Path(self.study["folder"]) / "mlflow.json"
        if found := self._remembered(link):
            self.client.update_run(found[1], status="RUNNING")
            for run in self._search(found[0], f"tags.`mlflow.parentRunId` = '{found[1]}'"):
                if key := run.data.tags.get("trial"):
                    ended = run.info.status != "RUNNING" and run.data.tags.get("state")
                    settled = bool(ended) and ended == self.study.get("ended", {}).get(key)
                    self.children[key] = Child(key, run.info.run_id, settled=settled)
            return found
        experiment_id = self._experiment()
        tags = {**self.study["tags"], "mlflow.note.content": self.study["description"]}
        run_id = self._create(tags, experiment_id, self.study["name"], self.study["time"])
        self._log(run_id, params=self.study["params"])
        remembered = {"tracking_uri": self.study["shown_uri"], "experiment_id": experiment_id, "run_id": run_id}
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(json.dumps(remembered, indent=2) + "\n", encoding="utf-8")
        return experiment_id, run_id

    def _remembered(self, link: Path) -> tuple[str, str] | None:
        from mlflow.exceptions import MlflowException

        try:
            saved = json.loads(link.read_text(encoding="utf-8"))
            if saved["tracking_uri"] != self.study["shown_uri"]:
                return None
            info = self.client.get_run(saved["run_id"]).info
        except (OSError, ValueError, KeyError):
            return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return (info.experiment_id, info.run_id) if info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        """Return the study's experiment; beside one that somebody deleted, another with the next free name."""
        from mlflow.exceptions import MlflowException

        name, number = self.study["experiment"], 1
        while True:
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    # The UI then opens on runs, not on traces of language models.
                    kind = {"mlflow.experimentKind": "custom_model_development"}
                    return str(self.client.create_experiment(name, tags=kind))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another study was faster: look again
                        raise
            elif experiment.lifecycle_stage == "active":
                return str(experiment.experiment_id)
            else:
                number += 1
                name = f"{self.study['experiment']}-{number}"

    def finish_parent(self, at: int, died: bool) -> None:
        """Store the summary and the study's files, and end the parent run."""
        summary = self.summary or {"metrics": {}, "table": "", "interrupted": True, "time": at}
        known = self.client.get_run(self.parent_id).data.metrics  # of an earlier session that came this far
        figures = {name: value for name, value in summary["metrics"].items() if known.get(name) != value}
        points = [(name, value, summary["time"], 0) for name, value in figures.items()]
        note = f"{self.study['description']}\n\n{summary['table']}".strip()
        with self._noting("the study's figures"):
            self._log(self.parent_id, points, tags={"mlflow.note.content": note})
        self.log_study_files()
        if summary["table"]:
            with self._noting("summary.md"):
                self.client.log_text(self.parent_id, summary["table"] + "\n", "summary.md")
        died = died or summary.get("failed", False)  # or gave up by itself
        status = "FAILED" if died else "KILLED" if summary["interrupted"] else "FINISHED"
        self.client.set_terminated(self.parent_id, status, at)

    def log_study_files(self) -> None:
        """Log what says how the study is run."""
        for name in ("study.yaml", "environment.json"):
            path = Path(self.study["folder"]) / name
            if path.is_file():
                with self._noting(name):
                    self.client.log_artifact(self.parent_id, str(path))

    # -- child runs --

    def take(self, event: Event) -> None:
        """Note an event; nothing is stored before :meth:`flush`."""
        if event["op"] == "summary":
            self.summary = event
            return
        child = self.children.setdefault(event["key"], Child(event["key"]))
        if child.settled:
            if event["op"] == "finish":
                self.reply(re="kept", key=child.key)
            return
        if event["op"] == "start":
            # An earlier attempt's end, if it was not stored yet, is no longer the end.
            child.start, child.finish, child.running = event, None, True
            child.folder = event["folder"]
            if child.run_id and not child.steps:
                self._load_steps(child)
        else:
            child.add_points(event["metrics"], event["step"], event["time"])
        if event["op"] == "finish":
            child.finish, child.running = event, False

    def _load_steps(self, child: Child) -> None:
        """Learn which points a run of an earlier session has."""
        with self._noting(f"{child.key}: earlier points, which may come twice", transient=True):
            for name in self.client.get_run(child.run_id).data.metrics:
                child.steps[name] = max(point.step for point in self.client.get_metric_history(child.run_id, name))

    def flush(self, only_finished: bool = False) -> bool:
        """Store what is waiting and return whether that was everything; a failing store is left alone for a while."""
        if time.monotonic() < self.retry_at:
            return False
        stored = self.stored
        for child in list(self.children.values()):
            if not child.waiting or (only_finished and not child.finish):
                continue
            try:
                self._flush_child(child)
            except Exception as error:
                # To the end of the line, so that one odd trial holds up nobody.
                self.children[child.key] = self.children.pop(child.key)
                self.delay = FIRST_DELAY if self.stored > stored else min(2 * self.delay, LONGEST_DELAY)
                self.retry_at = time.monotonic() + self.delay
                self.last_error = _text(error)
                return False
            self.stored += 1
        return True

    def _flush_child(self, child: Child) -> None:
        """Bring one run up to date. What a later attempt may mend is raised; what none can is reported and skipped."""
        start, finish = child.start or {}, child.finish or {}
        tags = dict(finish.get("tags", {}))
        if not child.run_id:
            child.run_id = self._child_run(child, start)  # with the tags it starts with
        elif start:
            self._reopen(child)
            tags = {**start["tags"], **tags}
        with self._noting(f"{child.key}: parameters or metrics"):
            self._log(child.run_id, child.points, start.get("params", {}), tags)
        child.points = []
        if start:
            with self._noting(f"{child.key}: data set"):
                self.client.log_inputs(child.run_id, [_dataset_input(start["dataset"])])
            child.start = None
        if finish:
            folder = Path(child.folder)
            if folder.is_dir() and any(folder.iterdir()):
                with self._noting(f"{child.key}: files"):
                    self.client.log_artifacts(child.run_id, child.folder)
            self.client.set_terminated(child.run_id, finish["status"], finish["time"])
            child.finish = None
            self.reply(re="kept", key=child.key)

    def _child_run(self, child: Child, start: Event) -> str:
        if child.tried:
            match_parent = f"tags.`mlflow.parentRunId` = '{self.parent_id}'"
            for run in self._search(self.experiment_id, f"{match_parent} and tags.trial = '{child.key}'"):
                return str(run.info.run_id)
        child.tried = True
        tags = {
            **{name: self.study["tags"][name] for name in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")},
            "mlflow.parentRunId": self.parent_id,
            **start["tags"],
        }
        return self._create(tags, self.experiment_id, start["name"], start["time"])

    def _reopen(self, child: Child) -> None:
        """A trial that was lost or interrupted goes on in the same run, without the marks of its earlier end."""
        self.client.update_run(child.run_id, status="RUNNING")
        tags = self.client.get_run(child.run_id).data.tags
        for name in {"reason", "pruned_step"} & tags.keys():
            self.client.delete_tag(child.run_id, name)

    def end_running(self, at: int, reason: str) -> None:
        """Trials of which no end will come are LOST; a resumed study takes their runs up again."""
        for child in self.children.values():
            if child.running:
                child.running = False
                tags = {"state": "LOST", "reason": reason}
                child.finish = {"status": "FAILED", "tags": tags, "time": at}

    # -- calls --

    def _create(self, tags: dict[str, str], experiment_id: str, name: str, at: int) -> str:
        short = {key: value[:TAG_CHARACTERS] for key, value in tags.items()}
        return str(self.client.create_run(experiment_id, at, short, name).info.run_id)

    def _log(
        self,
        run_id: str,
        points: list[tuple[str, float, int, int]] | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(  # split by the client into batches that every store takes
            run_id,
            [Metric(*point) for point in points or ()],
            [Param(name, value) for name, value in (params or {}).items()],
            [RunTag(name, value[:TAG_CHARACTERS]) for name, value in (tags or {}).items()],
            synchronous=True,
        )

    def _search(self, experiment_id: str, condition: str) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([experiment_id], condition, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @contextlib.contextmanager
    def _noting(self, what: str, transient: bool = False) -> Iterator[None]:
        """Report a failure that no later attempt can mend, and go on.

        Args:
            what: is missing then.
            transient: whether to treat failures that may pass by themselves alike.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            if not transient and isinstance(error, MlflowException) and error.error_code not in PERMANENT:
                raise
            self.reply(re="problem", text=f"{what}: {_text(error)}")


def _lock(folder: Path) -> Any:
    """Wait for the writer of a driver that died: it still stores what it was told, and ends soon."""
    from filelock import FileLock

    if not folder.is_dir():
        return None
    lock = FileLock(folder / ".mlflow.lock", timeout=LOCK_SECONDS)
    lock.acquire()
    return lock  # dropped with the process


def _dataset_input(dataset: dict[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = Dataset(
        dataset["name"], dataset["digest"], source_type="code", source=dataset["source"], profile=dataset["profile"]
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", dataset["context"])])


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def serve(events: SimpleQueue[Event | None], reply: Callable[..., None]) -> int:
    """Work off events until ``close`` or the end of the pipe (None); return the process's exit code."""
    import mlflow.store.db.utils
    from mlflow.tracking import MlflowClient

    reply(re="imported")
    mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # a database that is not there would be tried for 100 s
    study = events.get()
    if study is None:  # the study did not begin
        return 0
    try:
        writer = Writer(study, MlflowClient(), reply)
    except Exception as error:
        reply(re="refused", text=_text(error))
        return 1
    reply(re="ready", parent={"experiment_id": writer.experiment_id, "run_id": writer.parent_id})
    os.nice(5)  # training comes first

    ending: Event | None = None
    died = files_logged = False
    flush_at = 0.0
    while not ending and not died:
        for event in _available(events, FLUSH_SECONDS):
            if event is None:
                died = ending is None
            elif event["op"] == "close":
                ending = event
            else:
                writer.take(event)
        if writer.children and not files_logged:  # the study's files are there before its first trial
            files_logged = True
            with contextlib.suppress(Exception):  # logged again at the end
                writer.log_study_files()
        writer.flush(only_finished=time.monotonic() < flush_at)
        if time.monotonic() >= flush_at:
            flush_at = time.monotonic() + FLUSH_SECONDS

    at = ending["time"] if ending else int(time.time() * 1000)
    writer.end_running(at, "the study's driver died" if died else "the study ended before the trial")
    complete = _insist(writer, writer.flush)
    complete = _insist(writer, lambda: writer.finish_parent(at, died)) and complete
    if not complete:
        reply(re="problem", text=writer.last_error)
        return 1
    reply(re="done")
    return 0


def _insist(writer: Writer, step: Callable[[], bool | None]) -> bool:
    """Repeat a step until it neither raises nor returns False; return False when it does so for too long."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    stored = writer.stored
    while True:
        try:
            if step() is not False:
                return True
        except Exception as error:
            writer.last_error = _text(error)
        if writer.stored > stored:
            stored, deadline = writer.stored, time.monotonic() + GIVE_UP_SECONDS
        if time.monotonic() > deadline:
            return False
        time.sleep(min(1.0, max(0.1, writer.retry_at - time.monotonic())))
        writer.retry_at = 0.0


def _available(events: SimpleQueue[Event | None], seconds: float) -> Iterator[Event | None]:
    """Yield everything that is there; wait for the first at most so long."""
    with contextlib.suppress(Empty):
        yield events.get(timeout=seconds)
        while True:
            yield events.get_nowait()


def main() -> int:
    """Connect :func:`serve` to the pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; it drains this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    events: SimpleQueue[Event | None] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            events.put(json.loads(line))
        events.put(None)

    def reply(**message: Any) -> None:
        with contextlib.suppress(OSError):  # the driver is gone: finish what it told
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    threading.Thread(target=read, daemon=True).start()
    return serve(events, reply)


if __name__ == "__main__":
    sys.exit(main())

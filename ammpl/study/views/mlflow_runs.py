"""The runs of a study in an MLflow store: what each of them still has to be told, and the calls that tell it.

What could not be stored yet stays in memory and is tried again, so a store that is away for a while delays and loses
nothing. Every step can be repeated without harm: a run is looked up before a second attempt to create it, and MLflow
ignores a metric point whose time stamp, step and value it already has.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ammpl.escaping import markdown
from ammpl.study.views.mlflow_model import log_winner
from ammpl.study.views.writer_pipe import Event, Retries, first_line

TAG_CHARACTERS = 5000  # every store of MLflow takes that much; some count bytes

# What MLflow answered with one of these, it would answer the same way again.
PERMANENT = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
_AWAY = re.compile(
    r"connect|(Operational|Interface)Error", re.IGNORECASE
)  # a database's, which MLflow calls BAD_REQUEST


@dataclass
class Child:
    """A trial's run and what it still has to be told.

    Attributes:
        steps: the last step queued of every metric: a restarted trial repeats no point.
        running: whether the driver has begun the trial and not ended it.
        tried: whether an attempt was made to create the run, whose result may be unknown.
        found: whether the run is an earlier session's, and its points not known.
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
    found: bool = False
    settled: bool = False

    @property
    def waiting(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.start or self.points or self.finish) and not self.settled

    def add_points(self, metrics: dict[str, float], step: int, at: int) -> None:
        """Queue the metrics that have no point at this step or later."""
        for name, value in metrics.items():
            if step > self.steps.get(name, -1):
                self.steps[name] = step
                self.points.append((name, value, at, step))


class Runs(Retries):
    """Keeps the runs of one study in one store.

    Args:
        study: the ``study`` event.
        client: an ``MlflowClient``.
        reply: sends an object to the driver.

    Attributes:
        parent: the study's run, ``experiment_id`` and ``run_id``; None until :meth:`open` has found or made it.
    """

    def __init__(self, study: Event, client: Any, reply: Callable[..., None]) -> None:
        super().__init__()
        self.study = study
        self.client = client
        self.reply = reply
        self.parent: tuple[str, str] | None = None
        self.children: dict[str, Child] = {}
        self.summary: Event | None = None
        self._tried = False

    # -- the parent run --

    def open(self) -> None:
        """Find the study's run and those of its trials: those that its folder remembers, else make a new one."""
        if self.parent is not None:
            return
        link = Path(self.study["folder"]) / "mlflow.json"
        if found := self._remembered(link):
            self.client.update_run(found[1], status="RUNNING")
            for run in self._search(found[0], f"tags.`mlflow.parentRunId` = '{found[1]}'"):
                if key := run.data.tags.get("trial"):
                    self._adopt(key, run)
        else:
            found = self._new_parent()
        remembered = {"tracking_uri": self.study["shown_uri"], "experiment_id": found[0], "run_id": found[1]}
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(json.dumps(remembered, indent=2) + "\n", encoding="utf-8")
        self.parent = found
        self.reply(re="ready", parent={"experiment_id": found[0], "run_id": found[1]})

    def _adopt(self, key: str, run: Any) -> None:
        """Take up a trial's run of an earlier session."""
        child = self.children.setdefault(key, Child(key))
        child.run_id, child.found = run.info.run_id, True
        ended = run.info.status != "RUNNING" and run.data.tags.get("state")
        child.settled = bool(ended) and ended == self.study.get("ended", {}).get(key)
        if child.settled and child.finish:
            self.reply(re="kept", key=key)

    def _new_parent(self) -> tuple[str, str]:
        experiment_id = self._experiment()
        name, began = self.study["name"], self.study["time"]
        run_id = None
        if self._tried:
            same = self._search(experiment_id, f"attributes.start_time = {began}")
            run_id = next((str(run.info.run_id) for run in same if run.info.run_name == name), None)
        self._tried = True
        if run_id is None:
            tags = {**self.study["tags"], "mlflow.note.content": self._note()}
            run_id = self._create(tags, experiment_id, name, began)
        self._log(run_id, params=self.study["params"])
        if dataset := self.study.get("dataset"):
            with self._noting("the study's data set"):
                self.client.log_inputs(run_id, [_dataset_input(dataset)])
        return experiment_id, run_id

    def _remembered(self, link: Path) -> tuple[str, str] | None:
        """Return the run that the folder remembers, if this store has it: it may have moved to another address."""
        from mlflow.exceptions import MlflowException

        try:
            saved = json.loads(link.read_text(encoding="utf-8"))
            info = self.client.get_run(saved["run_id"]).info
        except (OSError, ValueError, KeyError, TypeError):
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
        self.open()
        run_id = self._parent[1]
        summary = self.summary or {"metrics": {}, "table": "", "interrupted": True, "time": at}
        known = self.client.get_run(run_id).data.metrics  # of an earlier session that came this far
        figures = {name: value for name, value in summary["metrics"].items() if known.get(name) != value}
        points = [(name, value, summary["time"], 0) for name, value in figures.items()]
        with self._noting("the study's figures"):
            tags = summary.get("tags", {})
            note = self._note(summary["table"], tags.get("result", ""))
            self._log(run_id, points, tags={**tags, "mlflow.note.content": note})
        self.log_study_files()
        if winner := summary.get("winner"):
            with self._noting("the winner"):
                log_winner(self.client, self._parent, winner, summary["time"])
        if summary["table"]:
            with self._noting("summary.md"):
                self.client.log_text(run_id, summary["table"] + "\n", "summary.md")
        died = died or summary.get("failed", False)  # or gave up by itself
        status = "FAILED" if died else "KILLED" if summary["interrupted"] else "FINISHED"
        self.client.set_terminated(run_id, status, at)

    def _note(self, table: str = "", result: str = "") -> str:
        """Return what the study's page says: the result first, as the UI folds all but the first lines."""
        head = f"**{markdown(result)}**" if result else ""
        parts = (head, self.study["description"], table, self.study.get("details", ""))
        return "\n\n".join(part.strip() for part in parts if part.strip())

    def log_study_files(self) -> None:
        """Log what says how the study is run."""
        folder = Path(self.study["folder"])
        for path in (*sorted(folder.glob("study*.yaml")), folder / "environment.json"):
            if path.is_file():
                with self._noting(path.name):
                    self.client.log_artifact(self._parent[1], str(path))

    @property
    def _parent(self) -> tuple[str, str]:
        assert self.parent is not None, "opened before"
        return self.parent

    # -- child runs --

    def take(self, event: Event) -> None:
        """Note an event; nothing is stored before :meth:`store`."""
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
        else:
            child.add_points(event["metrics"], event["step"], event["time"])
        if event["op"] == "finish":
            child.finish, child.running = event, False

    def store(self, only_finished: bool = False) -> None:
        """Store what is waiting."""
        self.open()
        for child in list(self.children.values()):
            if child.waiting and (child.finish or not only_finished):
                # To the end of the line for as long as it fails, so that one odd trial holds up nobody.
                self.children[child.key] = self.children.pop(child.key)
                self._store_child(child)
                self.stored += 1

    def _store_child(self, child: Child) -> None:
        """Bring one run up to date. What a later attempt may mend is raised; what none can is reported and skipped."""
        start, finish = child.start or {}, child.finish or {}
        tags = dict(finish.get("tags", {}))
        if not child.run_id:
            child.run_id = self._child_run(child, start)  # with the tags it starts with
        elif start:
            self._reopen(child)
            tags = {**start["tags"], **tags}
        if child.found:
            self._drop_stored(child)
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

    def _drop_stored(self, child: Child) -> None:
        """Keep of a run's points those that it does not have from an earlier session."""
        stored: dict[str, int] = {}
        with self._noting(f"{child.key}: earlier points, which may come twice"):
            for name in self.client.get_run(child.run_id).data.metrics:
                stored[name] = max(point.step for point in self.client.get_metric_history(child.run_id, name))
        child.points = [point for point in child.points if point[3] > stored.get(point[0], -1)]
        child.steps = {**child.steps, **{name: max(step, child.steps.get(name, -1)) for name, step in stored.items()}}
        child.found = False

    def _child_run(self, child: Child, start: Event) -> str:
        if child.tried:
            match_parent = f"tags.`mlflow.parentRunId` = '{self._parent[1]}'"
            for run in self._search(self._parent[0], f"{match_parent} and tags.trial = '{child.key}'"):
                return str(run.info.run_id)
        child.tried = True
        tags = {
            **{name: self.study["tags"][name] for name in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")},
            "mlflow.parentRunId": self._parent[1],
            **start["tags"],
        }
        return self._create(tags, self._parent[0], start["name"], start["time"])

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
    def _noting(self, what: str) -> Iterator[None]:
        """Report a failure that no later attempt can mend, and go on; raise others.

        Args:
            what: is missing then.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and not _is_permanent(error):
                raise
            self.reply(re="problem", text=f"{what}: {first_line(error)}")


def _is_permanent(error: Any) -> bool:
    away = error.error_code == "BAD_REQUEST" and _AWAY.search(str(error))
    return error.error_code in PERMANENT and not away


def _dataset_input(dataset: dict[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = Dataset(
        dataset["name"], dataset["digest"], source_type="code", source=dataset["source"], profile=dataset["profile"]
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", dataset["context"])])

"""The stores beside the study folder, for other tools: what they are told, and what they could not take yet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ammpl.errors import UserError
from ammpl.study.ablation_space import AblationSpace
from ammpl.study.folder import write_text
from ammpl.study.mlflow_process import MLflowProcess
from ammpl.study.reachable import store_problem
from ammpl.study.space_file import StudySpace
from ammpl.study.summary import StudySummary
from ammpl.study.tracking import MLflowTracker, has_study, remembered_uri, unusable
from ammpl.study.trial import Observer, State

UNDELIVERED = "undelivered.json"
"""In the study folder: by store, what it lacks and why; there is none when they have everything."""


class Views:
    """The stores of one session of a study. Their processes run from the begin; they are told once the plan is there.

    Args:
        process: MLflow's; None without tracking.
    """

    def __init__(self, process: MLflowProcess | None):
        self._process = process
        self._tracker: MLflowTracker | None = None

    def open(
        self, space: StudySpace, folder: Path, ended: Mapping[str, State], now: Callable[[], float]
    ) -> list[Observer]:
        """Open the stores; return what is to be told of every trial, those of earlier sessions included.

        Args:
            space: the study's.
            folder: the study's.
            ended: how trials of earlier sessions ended, by key.
            now: the time of what is being told.

        Raises:
            UserError: a store cannot be used; not where it has been used, and may be away for a while.
        """
        if self._process is None:
            return []
        tags = {"method": space.method, "kind": space.kind}
        if isinstance(space, AblationSpace):
            tags["reference"] = space.reference
        else:
            tags |= {"sampler": space.sampler.name, "pruner": space.pruner.name}
        if commit := _read(folder / "environment.json").get("code", {}).get("commit"):
            tags["mlflow.source.git.commit"] = commit
        self._tracker = MLflowTracker(
            tracking_uri=None,  # the process's
            study_name=space.name,
            folder=folder,
            description=space.description,
            tags=tags,
            params=space.base.flat(),
            process=self._process,
            ended=ended,
            now=now,
        )
        self._tracker.check()
        return [self._tracker]

    def end(self, summary: StudySummary, errors: list[str]) -> None:
        """Tell how the study ended; before the observers are closed.

        Args:
            errors: what of the study itself could not be kept.
        """
        if self._tracker:
            failed = summary.stopped is not None or bool(errors)
            note = "\n\n".join(filter(None, (summary.markdown(), *errors)))
            self._tracker.summary(summary.flat_metrics(), note, interrupted=summary.interrupted, failed=failed)

    def note_undelivered(self, folder: Path) -> tuple[str, ...]:
        """Return, and keep in the folder, what the stores lack; after the observers are closed."""
        if self._tracker is None:
            return ()
        lacking = {"mlflow": self._tracker.warnings[0]} if self._tracker.warnings else {}
        with contextlib.suppress(UserError, OSError):  # on a full disk it is said, which is what can be done
            if lacking:
                write_text(folder / UNDELIVERED, json.dumps(lacking, indent=2) + "\n")
            else:
                (folder / UNDELIVERED).unlink(missing_ok=True)
        return tuple(lacking.values())

    @property
    def ui_command(self) -> str | None:
        """The command that opens MLflow's UI; None without tracking."""
        return self._tracker.ui_command if self._tracker else None


def undelivered(folder: Path) -> dict[str, str]:
    """Return what a study's stores lack, by store; empty when they have everything."""
    return _read(folder / UNDELIVERED)


@contextlib.contextmanager
def started(tracking: bool, tracking_uri: str | None, folder: Path | None) -> Iterator[Views]:
    """Start the stores' processes first of all: they import for seconds, while Ray and the workers start.

    Args:
        tracking: whether MLflow is told.
        tracking_uri: None takes MLflow's own default.
        folder: of a study that goes on, in the store that it began in unless ``tracking_uri`` names another.

    Raises:
        UserError: no server answers at the address of a store that is new to the study.
    """
    if not tracking:
        yield Views(None)
        return
    process = MLflowProcess(tracking_uri or (remembered_uri(folder) if folder else None))
    try:
        known = folder is not None and has_study(process.uri, folder)
        if not known and (problem := store_problem(process.uri)):
            raise unusable(process, problem)
        yield Views(process)
    finally:
        process.end()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""The stores beside the study folder, for other tools: what they are told, and what they could not take yet."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammpl.errors import UserError
from ammpl.redaction import redacted
from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.plan.search_plan import Plan
from ammpl.study.reachable import store_problem
from ammpl.study.record.folder import write_text
from ammpl.study.record.own_addresses import check_own, remember
from ammpl.study.result.labels import symbols_text
from ammpl.study.result.summary import StudySummary, Summary
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Observer, State
from ammpl.study.views import note
from ammpl.study.views.learned import learnables_of
from ammpl.study.views.mirror import Mirror
from ammpl.study.views.mlflow_process import MLflowProcess
from ammpl.study.views.optuna_copy import FLAG, OptunaCopy, remembered_storage
from ammpl.study.views.optuna_copy import LINK as OPTUNA_LINK
from ammpl.study.views.optuna_copy import unusable as unusable_storage
from ammpl.study.views.remote import LINK as COPY_LINK
from ammpl.study.views.remote import remembered_address
from ammpl.study.views.tracking import LINK as MLFLOW_LINK
from ammpl.study.views.tracking import MLflowTracker, has_study, remembered_uri, unusable
from ammpl.study.views.writer_process import WriterProcess

UNDELIVERED = "undelivered.json"
"""In the study folder: by store, what it lacks and why; there is none when they have everything."""


@dataclass(frozen=True)
class Stores:
    """Where else a study's results go.

    Attributes:
        tracking: whether MLflow is told.
        tracking_uri: None takes MLflow's own default.
        optuna_storage: SQLAlchemy's URL; None is ``optuna.sqlite3`` in the study folder.
        copy_at: an address that gets a copy of the study folder; None is none.
        trusted: whether the addresses that the folder of a study names are used although the user has not given them
            to it on this machine.
    """

    tracking: bool = True
    tracking_uri: str | None = None
    optuna_storage: str | None = None
    copy_at: str | None = None
    trusted: bool = False


class Views:
    """The stores of one session of a study. Their processes run from the begin; they are told once the plan is there.

    Args:
        mlflow: None without tracking.
        optuna: None without a search, or without a copy of it.
        optuna_url: of the storage; None is the study folder's own file.
        mirror: None without a copy of the folder.
    """

    def __init__(
        self,
        mlflow: MLflowProcess | None,
        optuna: WriterProcess | None = None,
        optuna_url: str | None = None,
        mirror: Mirror | None = None,
    ):
        self._mlflow = mlflow
        self._optuna = optuna
        self._optuna_url = optuna_url
        self._mirror = mirror
        self._tracker: MLflowTracker | None = None
        self._copy: OptunaCopy | None = None

    def open(
        self,
        space: StudySpace,
        plan: StudyPlan,
        folder: Path,
        ended: Mapping[str, State],
        now: Callable[[], float],
    ) -> list[Observer]:
        """Open the stores; return what is to be told of every trial, those of earlier sessions included.

        Args:
            space: the study's.
            plan: the study's; its search is what Optuna's storage has.
            folder: the study's.
            ended: how trials of earlier sessions ended, by key.
            now: the time of what is being told.

        Raises:
            UserError: a store cannot be used; not where it has been used, and may be away for a while.
        """
        opened: list[Observer] = []
        remember(folder, self.addresses)
        if self._optuna is not None and isinstance(plan, Plan):
            self._copy = OptunaCopy(plan.searches, folder, self._optuna_url, self._optuna)
            self._copy.check()
            opened.append(self._copy)
        if self._mlflow is not None:
            self._tracker = self._track(space, folder, self._mlflow, ended, now)
            self._tracker.check()
            opened.append(self._tracker)
        if self._mirror is not None:
            self._mirror.open(folder)
        return opened

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses in use, as the files of a study's folder name them."""
        addresses = {} if self._mlflow is None else {MLFLOW_LINK: redacted(self._mlflow.uri)}
        if self._optuna_url is not None:
            addresses[OPTUNA_LINK] = redacted(self._optuna_url)
        if self._mirror is not None:
            addresses[COPY_LINK] = self._mirror.address
        return addresses

    def _track(
        self,
        space: StudySpace,
        folder: Path,
        process: MLflowProcess,
        ended: Mapping[str, State],
        now: Callable[[], float],
    ) -> MLflowTracker:
        tags = note.tags(space)
        if commit := _read(folder / "environment.json").get("code", {}).get("commit"):
            tags["mlflow.source.git.commit"] = commit
        return MLflowTracker(
            tracking_uri=None,  # the process's
            study_name=space.name,
            folder=folder,
            description=note.question(space),
            details=note.details(space),
            tags=tags,
            params=space.base.flat(),
            process=process,
            ended=ended,
            now=now,
        )

    def end(self, summary: StudySummary, errors: list[str]) -> None:
        """Tell how the study ended; before the observers are closed.

        Args:
            errors: what of the study itself could not be kept.
        """
        if self._tracker:
            failed = summary.stopped is not None or bool(errors)
            text = "\n\n".join(filter(None, (note.closing(summary), *errors)))
            winner = _winner(summary)
            won = winner["tag"] if winner else ""
            self._tracker.summary(
                note.figures(summary),
                text,
                interrupted=summary.interrupted,
                failed=failed,
                tags={name: text for name, text in (("result", note.result(summary)), ("winner", won)) if text},
                winner=winner,
            )

    def note_undelivered(self, folder: Path) -> tuple[str, ...]:
        """Return, and keep in the folder, what the stores lack; after the observers are closed."""
        stores = {"mlflow": self._tracker, "optuna": self._copy}
        lacking = {name: store.warnings[0] for name, store in stores.items() if store and store.warnings}
        _note(folder, lacking, told=any(stores.values()))
        if self._mirror is not None:
            self._mirror.close()
            lacking |= {"copy": self._mirror.warnings[0]} if self._mirror.warnings else {}
            _note(folder, lacking, told=True)
        return tuple(lacking.values())

    @property
    def mlflow(self) -> str | None:
        """What opens the study in MLflow; None without tracking."""
        return self._tracker.opened_by if self._tracker else None


def _winner(summary: StudySummary) -> dict[str, Any] | None:
    """Return what MLflow is told of the winner, None where there is none, or none that has learned anything."""
    if not isinstance(summary, Summary) or summary.winner is None:
        return None
    try:
        folder = learnables_of(summary.folder).parent
    except (UserError, OSError):
        return None
    row = summary.rows[0]
    return {
        "key": folder.name,
        "folder": str(folder.absolute()),
        "name": f"{summary.study}-{row.method}-trial-{summary.winner}",
        "tag": f"trial {summary.winner} {symbols_text(row.params)}",
        "params": {name: str(value) for name, value in row.params.items()},
        "metrics": {f"{metric}/mean": cell.mean for metric, cell in row.cells.items() if math.isfinite(cell.mean)},
    }


def _note(folder: Path, lacking: Mapping[str, str], told: bool) -> None:
    """Keep what stores lack in the folder; what is there stays if none was told anything."""
    with contextlib.suppress(UserError, OSError):  # on a full disk it is said, which is what can be done
        if lacking:
            write_text(folder / UNDELIVERED, json.dumps(lacking, indent=2) + "\n")
        elif told:
            (folder / UNDELIVERED).unlink(missing_ok=True)


def undelivered(folder: Path) -> dict[str, str]:
    """Return what a study's stores lack, by store; empty when they have everything."""
    return _read(folder / UNDELIVERED)


@contextlib.contextmanager
def started(stores: Stores, space: StudySpace, folder: Path | None) -> Iterator[Views]:
    """Start the stores' processes first of all: they import for seconds, while Ray and the workers start.

    Args:
        stores: which.
        space: the study's; in an ablation Optuna has no part.
        folder: of a study that goes on, in the stores that it began in unless others are named.

    Raises:
        UserError: no server answers at the address of a store that is new to the study; the study's copy is another
            driver's, or cannot be begun; or the user has not given the address that the folder names.
    """
    with contextlib.ExitStack() as processes:
        mlflow = optuna = mirror = None
        if (address := remembered_address(folder) if folder else stores.copy_at) is not None:
            if folder is not None:
                check_own(folder, COPY_LINK, address, f"name it yourself: tune.py resume {address}", stores.trusted)
            mirror = Mirror(address, folder)
            processes.callback(mirror.close)
        url = stores.optuna_storage
        if isinstance(space, AblationSpace):
            if url is not None:
                raise UserError(FLAG, "belongs to a search, and an ablation is none", got=redacted(url))
        else:
            if url is None and folder is not None:
                url = remembered_storage(folder, stores.trusted)
            elif url is not None and (problem := store_problem(url)):
                raise unusable_storage(redacted(url), problem)
            optuna = WriterProcess("ammpl.study.views.optuna_writer", {"OMP_NUM_THREADS": "1"})
            processes.callback(optuna.end)
        if stores.tracking:
            mlflow = MLflowProcess(stores.tracking_uri or (remembered_uri(folder, stores.trusted) if folder else None))
            processes.callback(mlflow.end)
            known = folder is not None and has_study(mlflow.uri, folder)
            if not known and (problem := store_problem(mlflow.uri)):
                raise unusable(mlflow, problem)
        yield Views(mlflow, optuna, url, mirror)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""A study from a checked space to a summary: its folder, its observers, its engine, its end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from ammpl.config import TrialConfig
from ammpl.data.home import DataHome
from ammpl.errors import UserError
from ammpl.study import ray_cluster
from ammpl.study.ablation import AblationPlan, StudyPlan
from ammpl.study.ablation_space import AblationSpace
from ammpl.study.ablation_summary import summarize_study
from ammpl.study.console import Console
from ammpl.study.environment import describe_environment
from ammpl.study.folder import ELSEWHERE, check_output, create_folder, write_text
from ammpl.study.observers import Observers
from ammpl.study.plan import Plan
from ammpl.study.preparation import DataNotes, prepare_data
from ammpl.study.ray_engine import run_plan
from ammpl.study.records import Records
from ammpl.study.space_file import StudySpace
from ammpl.study.summary import StudySummary
from ammpl.study.tracking import MLflowTracker
from ammpl.study.trial import Execute, Observer
from ammpl.study.worker import execute as train_or_test
from ammpl.study.worker import prepare as load
from ammpl.yaml_file import dump_yaml


@dataclass(frozen=True)
class Options:
    """Where and with what a study runs; nothing here decides a number, except that parallel trials change the order.

    Attributes:
        output: the study folder; None makes ``studies/<name>-<time>``.
        concurrency: trials at a time; None takes as many as fit.
        gpus_per_trial: None takes one if the cluster has any.
        ray_address: of a cluster; None runs on this machine.
        tracking: whether MLflow is told.
        tracking_uri: None takes MLflow's own default.
        quiet: no view while it runs.
        home: where data lie; None takes the environment's.
    """

    output: Path | None = None
    concurrency: int | None = None
    gpus_per_trial: float | None = None
    ray_address: str | None = None
    tracking: bool = True
    tracking_uri: str | None = None
    quiet: bool = False
    home: DataHome | None = None


def run_study(
    space: StudySpace,
    options: Options = Options(),
    *,
    execute: Execute | None = None,
    observers: Sequence[Observer] = (),
) -> StudySummary:
    """Run a study to its end, to the first Ctrl-C, or until its records cannot be written (the summary's ``errors``).

    Args:
        space: what to search or to compare, checked.
        execute: what a worker does with a trial; None trains and tests.
        observers: told of every trial, after the study's own.

    Raises:
        UserError: something the user can mend, found before any trial; nothing is left behind then.
    """
    check_output(options.output)
    prepare, notes = None, DataNotes()
    if execute is None:
        home, configs = options.home or DataHome(), configurations(space)
        notes = prepare_data(configs, home, options.quiet)
        prepare, execute = functools.partial(load, configs, home), functools.partial(train_or_test, home=home)
    with ray_cluster.connected(options.ray_address):
        resources = ray_cluster.fit_resources(options.concurrency, options.gpus_per_trial)
        folder = create_folder(space.name, options.output)
        session = _Session(space, folder, options, observers, notes)
        if prepare is not None and not options.quiet:
            print(f"loading backbone and data in {resources.concurrency} worker(s) …", flush=True)
        try:
            completed = run_plan(session.start, execute, folder, resources, prepare)
        except BaseException as error:
            # Also after a fault of ours, or a second Ctrl-C: what is known is kept.
            summary = session.end(completed=False)
            if not session.is_unwritable(error):
                raise
        else:
            summary = session.end(completed)
    if summary is None:  # interrupted before there was anything to tell
        raise KeyboardInterrupt
    return summary


class _Session:
    """The observers and the plan of one run, from the first ready worker to the summary."""

    def __init__(
        self, space: StudySpace, folder: Path, options: Options, observers: Sequence[Observer], notes: DataNotes
    ):
        self._space = space
        self._notes = notes
        self._folder = folder
        self._options = options
        self._extra = observers
        self._plan: StudyPlan | None = None

    def start(self) -> StudyPlan:
        """Open the records, the tracking and the view.

        Raises:
            UserError: the folder cannot be written to, or the tracking store cannot be used.
        """
        space, folder = self._space, self._folder
        write_text(folder / "study.yaml", dump_yaml(space.resolved()))
        environment = describe_environment(ray.cluster_resources(), sys.argv) | {"data": self._notes.as_dict()}
        write_text(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
        try:
            self._observers = Observers([], Records(folder, space))
        except OSError as error:
            raise _unwritable(folder, error) from None
        commit = environment["code"].get("commit")
        self._tracker = _tracker(space, folder, self._options, commit) if self._options.tracking else None
        if isinstance(space, AblationSpace):
            self._plan = AblationPlan(space, folder, self._observers)
        else:
            self._plan = Plan(space, space.name, folder, self._observers)
        view = Console(
            {phase: total for phase, total in self._plan.totals.items() if total != 0},
            space.objective.metric,
            space.objective.direction,
            self._options.quiet,
            repeats=len(space.repeats),
            budget_seconds=space.budget.seconds,
        )  # it needs the plan's totals, and the plan its observers: so it joins later
        self._observers.join(view, *([self._tracker] if self._tracker else []), *self._extra)
        self._began = time.monotonic()
        return self._plan

    def end(self, completed: bool) -> StudySummary | None:
        """Write and return what came out; None, and nothing left behind, if nothing had started."""
        if self._plan is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._options.output is None:
                with contextlib.suppress(OSError):  # "studies", unless it holds others
                    self._folder.parent.rmdir()
            return None
        errors, stopped = [], None
        if isinstance(failure := self._observers.failure, OSError):
            errors, stopped = [str(_unwritable(self._folder, failure))], "the study's records cannot be written"
        if not completed:
            self._plan.interrupt(stopped or "interrupted")
        seconds = time.monotonic() - self._began
        summary = summarize_study(self._plan, self._folder, interrupted=not completed, seconds=seconds)
        summary = replace(summary, stopped=stopped or summary.stopped)
        errors += self._write_results(self._plan, summary)
        if self._tracker:
            failed = summary.stopped is not None or bool(errors)
            note = "\n\n".join(filter(None, (summary.markdown(), *errors)))
            self._tracker.summary(summary.flat_metrics(), note, interrupted=not completed, failed=failed)
        try:
            self._observers.close()
        except OSError as error:
            errors.append(str(_unwritable(self._folder, error)))
        return replace(
            summary,
            ui_command=self._tracker.ui_command if self._tracker else None,
            problems=(*self._observers.problems, *(self._tracker.warnings if self._tracker else ())),
            errors=tuple(errors),
        )

    def is_unwritable(self, error: BaseException) -> bool:
        """Whether an exception that ended the run is that the records could not be written."""
        return self._plan is not None and error is self._observers.failure and isinstance(error, OSError)

    def _write_results(self, plan: StudyPlan, summary: StudySummary) -> list[str]:
        """Write what is written once, at the end; return what could not be: the result is still to be shown."""
        files: dict[str, Callable[[Path], None]] = {
            "summary.json": lambda path: write_text(path, json.dumps(summary.as_dict(), indent=2) + "\n")
        }
        if isinstance(plan, Plan):
            files["optuna.sqlite3"] = plan.search.save
        errors = []
        for name, write in files.items():
            path = self._folder / name
            try:
                write(path)
            except UserError as error:
                errors.append(str(error))
            except (OSError, SQLAlchemyError, OptunaError) as error:
                path.with_name(f".{name}.tmp").unlink(missing_ok=True)
                errors.append(str(_unwritable(path, error)))
        return errors


def _unwritable(path: Path, error: Exception) -> UserError:
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(str(path), f"cannot be written ({reason})", fix=ELSEWHERE)


def configurations(space: StudySpace) -> list[TrialConfig]:
    """Return configurations of each kind that the study runs, for checks before it starts."""
    if isinstance(space, AblationSpace):
        return [space.config(variant, space.repeats[0]) for variant in space.variants]
    baselines = space.confirm.baselines if space.confirm else ()
    return [*space.extreme_configs(), *(space.baseline(method, space.repeats[0]) for method in baselines)]


def _tracker(space: StudySpace, folder: Path, options: Options, commit: str | None) -> MLflowTracker:
    tags = {"method": space.method, "kind": space.kind}
    if isinstance(space, AblationSpace):
        tags["reference"] = space.reference
    else:
        tags |= {"sampler": space.sampler.name, "pruner": space.pruner.name}
    if commit:
        tags["mlflow.source.git.commit"] = commit
    tracker = MLflowTracker(
        tracking_uri=options.tracking_uri,
        study_name=space.name,
        folder=folder,
        description=space.description,
        tags=tags,
        params=space.base.flat(),
    )
    tracker.check()
    return tracker

"""A study from a checked space to a summary: its folder, its observers, its engine, its end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ray

from ammpl.data.home import DataHome
from ammpl.errors import UserError
from ammpl.escaping import terminal
from ammpl.study.engine import ray_cluster
from ammpl.study.engine.preparation import DataNotes
from ammpl.study.engine.ray_engine import run_plan
from ammpl.study.engine.ray_worker import Resources
from ammpl.study.engine.runner import warm_process
from ammpl.study.engine.work import Work, work_for
from ammpl.study.plan.ablation_plan import AblationPlan, StudyPlan
from ammpl.study.plan.extension import Extension, extended_space
from ammpl.study.plan.replay import begin_version, check_study, read_versions, replay, restore_space
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.environment import describe_environment
from ammpl.study.record.event_log import FILE, end_log, read_history, space_file
from ammpl.study.record.folder import (
    ELSEWHERE,
    check_output,
    create_folder,
    is_asked_to_stop,
    locked,
    remove_folder,
    write_text,
)
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.result.ablation_summary import summarize_study
from ammpl.study.result.summary import StudySummary
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import trials_text
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import INTERRUPTED, Execute, MachineError, Observer
from ammpl.study.views.console import Console
from ammpl.study.views.stores import Stores, Views, started, undelivered
from ammpl.yaml_file import dump_yaml


@dataclass(frozen=True)
class Options:
    """Where and with what a study runs; nothing here decides a number, except that parallel trials change the order.

    Attributes:
        output: the study folder; None makes ``studies/<name>-<time>``.
        concurrency: trials at a time; None takes as many as fit.
        gpus_per_trial: None takes one if the cluster has any; ``auto`` measures the first trial.
        ray_address: of a cluster; None runs on this machine.
        tracking: whether MLflow is told.
        tracking_uri: None takes MLflow's own default.
        optuna_storage: where Optuna's tools find the search; None is ``optuna.sqlite3`` in the study folder.
        copy_at: an address of an object store that gets a copy of a new study's folder.
        trust_addresses: use those that the folder of a study names, also where this user has not given them to it.
        quiet: no view while it runs.
        home: where data lie; None takes the environment's.
    """

    output: Path | None = None
    concurrency: int | None = None
    gpus_per_trial: float | Literal["auto"] | None = None
    ray_address: str | None = None
    tracking: bool = True
    tracking_uri: str | None = None
    optuna_storage: str | None = None
    copy_at: str | None = None
    trust_addresses: bool = False
    quiet: bool = False
    home: DataHome | None = None

    @property
    def stores(self) -> Stores:
        """Where else than in the study folder the results go."""
        return Stores(self.tracking, self.tracking_uri, self.optuna_storage, self.copy_at, self.trust_addresses)


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
    there = check_output(options.output)
    work = work_for(space, options.home, execute, options.quiet)
    with (
        warm_process(_forks(options, execute)) as warm,
        started(options.stores, space, None) as views,
        ray_cluster.connected(options.ray_address),
    ):
        resources = ray_cluster.fit_resources(options.concurrency, options.gpus_per_trial)
        folder = create_folder(space.name, options.output)
        with locked(folder):
            session = _Session([space], folder, options, observers, work.notes, views, there=there)
            return session.run(work, resources, warm)


def resume_study(
    folder: Path,
    options: Options = Options(),
    *,
    execute: Execute | None = None,
    observers: Sequence[Observer] = (),
) -> StudySummary | None:
    """Go on with a study that was interrupted or whose driver died; return its summary, None if it had ended already.

    Trials that ended are not run again; those that had begun are, under the same keys. Of a study that had ended while
    a store was away, the store is told what it lacks.

    Args:
        folder: the study's; ``options.output`` is not used.
        execute: what a worker does with a trial; None trains and tests.
        observers: told of every trial, also of those of earlier sessions, after the study's own.

    Raises:
        UserError: the folder is no study's, is being run, was changed since, or something else the user can mend.
    """
    restore_space(folder)
    check_study(folder)
    with locked(folder):
        history = read_history(folder / FILE)
        if history.has_ended and not undelivered(folder):
            return None
        versions = read_versions(folder, history)
        if history.has_ended:
            session = _Session(versions, folder, options, observers, DataNotes())
            session.replay()
            with started(options.stores, versions[0], folder) as session.views:
                return session.deliver()
        return _go_on(folder, versions, None, options, execute, observers)


def extend_study(
    folder: Path,
    more: Extension | StudySpace,
    options: Options = Options(),
    *,
    execute: Execute | None = None,
    observers: Sequence[Observer] = (),
) -> StudySummary:
    """Begin a later version of a study, ended or not, and run it to its end.

    Args:
        more: what to add, or all of the next version's space. Other arguments are those of :func:`resume_study`.

    Raises:
        UserError: as there, or the extension does not fit the study; the study is left as it was then.
    """
    check_study(folder)
    with locked(folder):
        history = read_history(folder / FILE)
        versions = read_versions(folder, history)
        new = extended_space(versions[-1], history, more) if isinstance(more, Extension) else more
        return _go_on(folder, versions, new, options, execute, observers)


def _go_on(
    folder: Path,
    versions: Sequence[StudySpace],
    new: StudySpace | None,
    options: Options,
    execute: Execute | None,
    observers: Sequence[Observer],
) -> StudySummary:
    work = work_for(new or versions[-1], options.home, execute, options.quiet)
    session = _Session(versions, folder, options, observers, work.notes, new=new)
    session.replay()
    with (
        warm_process(_forks(options, execute)) as warm,
        started(options.stores, versions[0], folder) as session.views,
        ray_cluster.connected(options.ray_address),
    ):
        resources = ray_cluster.fit_resources(options.concurrency, options.gpus_per_trial)
        return session.run(work, resources, warm)


def _forks(options: Options, execute: Execute | None) -> bool:
    """Whether workers will train on this machine, in Ray that this process starts."""
    return execute is None and options.ray_address is None and not ray.is_initialized()


class _Session:
    """The observers and the plan of one run, from the first ready worker to the summary.

    ``there`` is what was there before the folder of a new study, None for a study that goes on.
    """

    def __init__(
        self,
        versions: Sequence[StudySpace],
        folder: Path,
        options: Options,
        observers: Sequence[Observer],
        notes: DataNotes,
        views: Views | None = None,
        *,
        there: Path | None = None,
        new: StudySpace | None = None,
    ):
        self.views = views or Views(None)
        self._versions = versions
        self._new = new  # the version that begins once workers are ready
        self._notes = notes
        self._folder = folder
        self._options = options
        self._extra = observers
        self._there, self._resumes = there, there is None
        self._started = self._stopped = False

    def run(self, work: Work, resources: Resources, warm: str | None) -> StudySummary:
        """Run the study on the connected cluster to its end; ``warm`` is the address that workers fork from."""
        self._resources = resources
        if self._options.ray_address and (text := ray_cluster.busy(resources)):
            print(terminal(text), flush=True)
        if work.prepare is not None and not self._options.quiet:
            workers = 1 if resources.repack else resources.concurrency
            print(f"loading backbone and data in {workers} worker{'s' * (workers > 1)} …", flush=True)
        try:
            if not self._resumes:  # from now on it can be resumed
                write_text(space_file(self._folder), dump_yaml(self._versions[0].resolved()))
            completed = run_plan(
                self.start,
                work.execute,
                self._folder,
                resources,
                work.prepare,
                self.is_asked_to_stop,
                self.say,
                warm,
            )
        except BaseException as error:
            # Also after a fault of ours, or a second Ctrl-C: what is known is kept.
            machines = str(error) if isinstance(error, MachineError) else None
            summary = self.end(completed=False, machines=machines)
            if machines is None and not self.is_unwritable(error):
                raise
        else:
            summary = self.end(completed)
        if summary is None:  # interrupted before there was anything to tell
            raise KeyboardInterrupt
        return summary

    def say(self, text: str) -> None:
        """Tell people something between the lines of the view."""
        self._view.notice(text)

    def replay(self) -> None:
        """Make the plan and bring it to where the study had come; nothing is written but what is new.

        Raises:
            UserError: the folder's log cannot be read or written, the study does not come out as it did, or its next
                version has nothing to run.
        """
        space, folder = self._versions[0], self._folder
        try:
            self._records = Records(folder, *self._versions, *([self._new] if self._new else []))
            self._observers = Observers([], self._records)
            self._observers.hold()
            clock = self._records.log.clock
            if isinstance(space, AblationSpace):
                self._plan: StudyPlan = AblationPlan(space, folder, self._observers, clock)
            else:
                self._plan = Plan(space, space.name, folder, self._observers, clock)
            replay(self._plan, self._records.log, folder, self._versions)
            if self._new:
                self._plan.check_extension(self._new)
        except OSError as error:
            raise _unwritable(folder, error) from None

    def start(self) -> StudyPlan:
        """Open the records, the tracking and the view.

        Raises:
            UserError: the folder cannot be written to, or the tracking store cannot be used.
        """
        space, folder = self._versions[0], self._folder
        environment = describe_environment(ray.cluster_resources(), sys.argv)
        environment["trial"] = {"cpus": self._resources.cpus, "gpus": self._resources.gpus}
        environment["data"] = self._notes.as_dict()
        if not self._resumes:
            self.replay()
        history = self._records.log.history
        # That of the first session stays; later ones are numbered.
        number = sum(line.event["event"] == "session" for line in history.lines)
        name = f"environment-{number + 1}.json" if number else "environment.json"
        write_text(folder / name, json.dumps(environment, indent=2) + "\n")
        try:
            self._records.begin()
        except OSError as error:
            raise _unwritable(folder, error) from None
        stores = self.views.open(space, self._plan, folder, history.states, lambda: self._observers.now)
        if self._new:
            write_text(space_file(folder, self._plan.version + 1), dump_yaml(self._new.resolved()))
            begin_version(self._plan, self._records.log, folder, self._new)
        space = self._new or self._versions[-1]
        view = Console(
            {phase: total for phase, total in self._plan.totals.items() if total != 0},
            space.objective.metric,
            space.objective.direction,
            self._options.quiet,
            repeats=len(space.repeats),
            budget_seconds=space.budget.seconds,
            elapsed=history.seconds,
        )  # it needs the plan's totals, and the plan its observers: so it joins later
        if self._resumes:
            running = len(self._plan.running)
            what = f"extended, version {self._plan.version}" if self._new else "resumed"
            view.notice(f"{what}: {trials_text(len(self._plan.finished))} had ended, {running} go on")
        view.silent = True
        self._observers.join(view, *stores, *self._extra)
        view.silent = False
        self._view = view
        self._started = True
        return self._plan

    def is_asked_to_stop(self) -> bool:
        """Return whether a request to stop lies in the folder; it is said once."""
        asked = is_asked_to_stop(self._folder)
        if asked and not self._stopped:
            self._stopped = True
            self._view.notice("asked to stop: no more trials begin, those that run are let end")
        return asked

    def end(self, completed: bool, machines: str | None = None) -> StudySummary | None:
        """Write and return what came out; None if nothing had started; nothing is left behind of a new study then.

        Args:
            completed: whether it came to its end.
            machines: a fault of the machine that kept it from that.
        """
        if not self._started:
            if self._there is not None:
                remove_folder(self._folder, self._there)
            return None
        errors: list[str] = []
        stopped = None
        if machines is not None:
            fix = f"mend that, then go on with: python tune.py resume {self._folder}"
            errors, stopped = [str(UserError(str(self._folder), machines, fix=fix))], "the machine cannot go on"
        with contextlib.suppress(OSError):  # which is the observers' failure then: the views are to hear of it
            self._observers.write()
        if isinstance(failure := self._observers.failure, OSError):
            errors.append(str(_unwritable(self._folder, failure)))
            stopped = "the study's records cannot be written"
        if not completed:
            self._plan.interrupt(INTERRUPTED if machines else stopped or INTERRUPTED)
        seconds = self._records.log.clock()
        summary = summarize_study(self._plan, self._folder, interrupted=not completed, seconds=seconds)
        stopped = stopped or summary.stopped
        summary = replace(summary, stopped=stopped, on_request=self._stopped and not completed)
        errors += self._write_summary(summary)
        self.views.end(summary, errors)
        try:
            self._observers.close()
            if completed and not errors:
                end_log(self._folder / FILE)
        except OSError as error:
            errors.append(str(_unwritable(self._folder, error)))
        return self._shown(replace(summary, errors=tuple(errors)))

    def deliver(self) -> StudySummary:
        """Tell the stores what they lack of a study that has ended; return its summary."""
        plan, log = self._plan, self._records.log
        plan.next()  # asked for more, it comes to its end
        self._observers.join(
            *self.views.open(self._versions[0], plan, self._folder, log.history.states, lambda: self._observers.now),
            *self._extra,
        )
        summary = summarize_study(plan, self._folder, interrupted=False, seconds=log.clock())
        self.views.end(summary, [])
        self._observers.close()
        return self._shown(summary)

    def _shown(self, summary: StudySummary) -> StudySummary:
        """Return a summary with what is to be said of the views, which are closed."""
        problems = (*self._observers.problems, *self.views.note_undelivered(self._folder))
        return replace(summary, mlflow=self.views.mlflow, problems=problems)

    def is_unwritable(self, error: BaseException) -> bool:
        """Whether an exception that ended the run is that the records could not be written."""
        return self._started and error is self._observers.failure and isinstance(error, OSError)

    def _write_summary(self, summary: StudySummary) -> list[str]:
        """Write the summary; return why it could not be: the result is still to be shown."""
        try:
            write_text(self._folder / "summary.json", json.dumps(summary.as_dict(), indent=2) + "\n")
        except UserError as error:
            return [str(error)]
        return []


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno else (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(str(path), f"cannot be written ({reason})", fix=ELSEWHERE)

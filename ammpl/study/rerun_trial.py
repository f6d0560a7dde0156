"""One trial of a study run again, and compared with what the event log has of it; the study stays as it is."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pydantic import ValidationError

from ammpl.config import TrialConfig
from ammpl.data.home import DataHome
from ammpl.errors import UserError, did_you_mean
from ammpl.study.engine.preparation import prepare_data
from ammpl.study.engine.worker import THREAD_VARIABLES, Attempt, End, Evaluation
from ammpl.study.engine.worker import execute as train_or_test
from ammpl.study.plan.base_plan import BasePlan
from ammpl.study.plan.replay import check_study
from ammpl.study.record.environment import describe_environment, differences, session_environment
from ammpl.study.record.event_log import FILE, Event, History, read_history, space_file
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import Budget
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import StudySpace, read_space
from ammpl.study.trial import OVERDUE, Execute, Outcome, Phase, State, Trial

Say = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What a log has of a trial that ended.

    Attributes:
        curve: step and metrics of each evaluation.
        session: which session of the study it ended in, from 1.
        version: of the study in which it began.
    """

    trial: Trial
    state: State
    reason: str | None
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    session: int
    version: int

    @property
    def was_overdue(self) -> bool:
        """Whether the trial had no end of its own, but took longer than the study allows."""
        return self.state is State.FAILED and str(self.reason).endswith(OVERDUE)


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        key: of the trial.
        difference: the first one; None if every value is the same, to the last bit.
        compared: evaluations and values that were the same.
        ending: how the trial ended in the study.
        surroundings: which of machine, versions and device differ from those that the trial ended on; None where
            the study has no record of them.
    """

    key: str
    difference: str | None
    compared: tuple[int, int]
    ending: str
    surroundings: Mapping[str, list[str]] | None

    def lines(self) -> list[str]:
        """Return the result for people, the verdict last."""
        lines = []
        if self.surroundings is None:
            lines.append("machine, versions, device: the study has no record of them")
        else:
            same = [name for name, texts in self.surroundings.items() if not texts]
            lines += [f"as then: {', '.join(same)}"] if same else []
            lines += [f"differs: {name}: {'; '.join(texts)}" for name, texts in self.surroundings.items() if texts]
        if self.difference is not None:
            return [*lines, f"different: {self.key}: {self.difference}"]
        words = zip(self.compared, ("evaluation", "value"), strict=True)
        compared = ", ".join(f"{count} {word}" + ("" if count == 1 else "s") for count, word in words)
        return [*lines, f"match: {self.key}, {self.ending}; {compared}, to the last bit"]


def rerun_trial(
    folder: Path,
    word: str,
    home: DataHome | None = None,
    say: Say = lambda text: None,
    *,
    execute: Execute | None = None,
) -> Verdict:
    """Run a trial of a study again in this process, in a scratch folder, up to the first difference.

    As in a worker: the same code, as many threads, and a GPU only if it had one.

    Args:
        folder: the study's.
        word: the trial's key, or the number of a trial of the search.
        home: where data lie; None takes the environment's.
        say: is told what happens, a line at a time.
        execute: what to do with the trial; None trains or tests.

    Raises:
        UserError: the folder is no study's, the trial is unknown or has no end to compare with, its data or its
            learnables are missing, or this version does not read its configuration.
    """
    check_study(folder)
    record = read_record(folder, word)
    space = read_space(space_file(folder, record.version))
    then = session_environment(folder, record.session)
    with _resources_of(then or {}):
        if execute is None:
            home = home or DataHome()
            prepare_data([record.trial.config], home)
            execute = functools.partial(train_or_test, home=home)
        trial = record.trial
        if trial.phase == "test":
            say("this scores the test split again, by learnables that it has scored before; nothing is chosen by it")
        comparing = _Comparing(record, say)
        with tempfile.TemporaryDirectory(prefix="ammpl-rerun-", ignore_cleanup_errors=True) as scratch:
            difference = _compare(record, space, comparing, execute, Path(scratch))
        now = describe_environment({}, sys.argv)
    ending = str(record.state)
    if record.curve:
        ending += f" at step {record.curve[-1][0]}"
    if record.reason:
        ending += f" ({record.reason})"
    surroundings = None if then is None else differences(then, now)
    return Verdict(trial.key, difference, (comparing.evaluations, comparing.values), ending, surroundings)


def read_record(folder: Path, word: str) -> Record:
    """Return what a study's log has of a trial, by key or, in a search, by number.

    Raises:
        UserError: it is unknown, or has no end to compare with, or this version does not read its configuration.
    """
    history = read_history(folder / FILE)
    starts = {line.event["key"]: line for line in history.told if line.event["event"] == "started"}
    begun = {key: line.event for key, line in starts.items()}
    key = _key(word, begun)
    start = starts[key]
    ends = [line for line in history.told if line.event["event"] == "finished" and line.event["key"] == key]
    if not ends:
        fix = f"wait for it, or go on with the study: python tune.py resume {folder}"
        raise UserError(key, "has not ended: nothing to compare with", fix=fix)
    [end] = ends
    if end.event["state"] == State.LOST:
        raise UserError(key, f"was lost ({end.event['reason']}): it has no result of its own to compare with")
    return Record(
        trial=_trial(folder, begun[key], history),
        state=State(end.event["state"]),
        reason=end.event["reason"],
        curve=tuple(
            (line.event["step"], {name: float(value) for name, value in line.event["metrics"].items()})
            for line in history.told
            if line.event["event"] == "reported" and line.event["key"] == key
        ),
        session=sum(line.event["event"] == "session" for line in history.lines[: end.number]),
        version=1 + sum(line.number < start.number for line in history.extensions),
    )


def _key(word: str, begun: Mapping[str, Event]) -> str:
    if word in begun:
        return word
    if word.isdecimal():
        keys = [key for key, event in begun.items() if event["phase"] == "search" and event["number"] == int(word)]
        if len(keys) == 1:
            return keys[0]
        if keys:
            raise UserError(f"trial {word}", "is one of several repeats", fix=f"name one of {', '.join(keys)}")
    raise UserError(f"trial {word}", "did not begin in this study", fix=did_you_mean(word, begun))


def _trial(folder: Path, event: Event, history: History) -> Trial:
    try:
        config = TrialConfig.model_validate_json(json.dumps(event["config"]))
        known = config.sha256 == event["config_sha256"]
    except ValidationError:
        known = False
    if not known:
        version = history.session.get("version")
        rule = "has a configuration that this version of the program reads otherwise"
        raise UserError(event["key"], rule, fix=f"use that of the study, {version}" if version else None)
    learnables = None
    if event["phase"] == "test" and config.method != "zero_shot":
        first = next(line.event for line in history.told if line.event["event"] == "started")
        trained = "ablation" if first["phase"] == "ablation" else "confirm"
        learnables = folder / "checkpoints" / event["key"].replace("test", trained, 1) / "learnables.safetensors"
        if not learnables.is_file():
            raise UserError(str(learnables), f"is missing, which {event['key']} tested", fix="put back a copy of it")
    return Trial(
        event["key"],
        event["phase"],
        event["candidate"],
        event["number"],
        event["repeat"],
        config,
        event["params"],
        learnables.absolute() if learnables else None,
    )


@contextmanager
def _resources_of(environment: Mapping[str, Any]) -> Iterator[None]:
    """Take as many threads as a worker had, and hide the GPUs from what had none: before torch is imported."""
    before = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES")}
    had = environment.get("trial", {"cpus": 1, "gpus": environment.get("ray", {}).get("GPU", 0)})
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(had["cpus"])
    if not had["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:  # a notebook goes on
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _DifferentError(Exception):
    """The first difference, in words."""


class _Comparing:
    """Observer that raises at the first evaluation that is not the record's."""

    def __init__(self, record: Record, say: Say):
        self.evaluations = self.values = 0
        self._record = record
        self._say = say

    def trial_started(self, trial: Trial) -> None:
        self._say(f"{trial.key}: running again, in this process")

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        curve = self._record.curve
        if self.evaluations == len(curve):
            if self._record.was_overdue:  # it has come further in the same time
                return
            ended = _ending(self._record.state, self._record.reason)
            raise _DifferentError(f"{ended} then, goes on to step {step} now")
        then, known = curve[self.evaluations]
        if then != step:
            raise _DifferentError(f"an evaluation at step {then} then, at step {step} now")
        for name in dict.fromkeys([*known, *metrics]):
            if not _same(known.get(name), metrics.get(name)):
                values = f"{_shown(known.get(name))} then, {_shown(metrics.get(name))} now"
                raise _DifferentError(f"step {step}, {name}: {values}")
        self.evaluations += 1
        self.values += len(known)
        self._say(f"step {step}: {len(known)} values, the same")

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        record = self._record
        if self.evaluations < len(record.curve):
            step = record.curve[self.evaluations][0]
            raise _DifferentError(f"an evaluation at step {step} then, {_ending(outcome.state, outcome.reason)} now")
        if (outcome.state, outcome.reason) != (record.state, record.reason):
            then, now = _ending(record.state, record.reason), _ending(outcome.state, outcome.reason)
            raise _DifferentError(f"{then} then, {now} now")

    def close(self) -> None:
        """Nothing."""


class _OneTrial(BasePlan):
    """The plan of one trial: it is judged as in its study, and stopped where it was stopped."""

    def __init__(self, record: Record, space: StudySpace, folder: Path, observer: _Comparing):
        super().__init__(space.objective.metric, space.objective.direction, folder, observer, Budget(), None)
        self.needs_finite = isinstance(space, AblationSpace)
        if isinstance(space, SearchSpace) and space.second_objective is not None:
            self.second = space.second_objective.metric
        self._record = record

    @property
    def totals(self) -> dict[Phase, int | None]:
        return {self._record.trial.phase: 1}

    def _trials(self) -> Iterator[Trial | None]:
        yield self._record.trial

    def _prunes(self, trial: Trial, step: int, value: float) -> bool:
        return self._record.state is State.PRUNED and step == self._record.curve[-1][0]


def _compare(record: Record, space: StudySpace, comparing: _Comparing, execute: Execute, scratch: Path) -> str | None:
    """Run the trial; return the first difference, None if there is none."""
    trial, plan = record.trial, _OneTrial(record, space, scratch, comparing)
    if not record.curve and (contradiction := _contradiction(trial, space)) is not None:
        now = _ending(State.FAILED, contradiction)
        return None if contradiction == record.reason else f"{_ending(record.state, record.reason)} then, {now} now"
    plan.next()
    attempt = Attempt(execute, trial, trial.folder(scratch))
    deadline = time.monotonic() + (space.budget.trial_seconds or math.inf) if record.was_overdue else math.inf
    try:
        while not isinstance(news := _next(attempt, deadline), End):
            if news is None:  # again it takes longer
                return None
            if plan.report(trial, news.step, news.metrics, news.seconds):
                break
        if isinstance(news, End) and news.failure is not None:
            plan.finish(trial, state=State.FAILED, reason=news.failure)
        else:
            plan.finish(trial)
    except _DifferentError as difference:
        return str(difference)
    finally:
        if time.monotonic() < deadline:  # else it may be in a step
            attempt.close()
    return None


def _next(attempt: Attempt, deadline: float) -> Evaluation | End | None:
    """Return what comes next of a trial; None where that is not there by a deadline on the monotonic clock."""
    if deadline == math.inf:
        return attempt.next()
    found: SimpleQueue[Evaluation | End] = SimpleQueue()
    # The step may never return: it ends with the process.
    threading.Thread(target=lambda: found.put(attempt.next()), daemon=True).start()
    try:
        return found.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        return None


def _contradiction(trial: Trial, space: StudySpace) -> str | None:
    """Return why a search could not build a configuration of a trial's parameters, None if it could."""
    if trial.phase != "search" or isinstance(space, AblationSpace):
        return None
    try:
        space.config(trial.params, trial.repeat)
    except UserError as error:
        return str(error)
    return None


def _same(then: float | None, now: float | None) -> bool:
    return then == now or (then is not None and now is not None and math.isnan(then) and math.isnan(now))


def _shown(value: float | None) -> str:
    return "nothing" if value is None else repr(value)


def _ending(state: State, reason: str | None) -> str:
    return str(state) + (f" ({reason})" if reason else "")

"""What plans of every kind have in common: trials handed out in order, their results taken, an end before its time."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

from ammpl.errors import UserError
from ammpl.study.space.budget import Budget, Spending
from ammpl.study.trial import Direction, Observer, Outcome, Phase, State, Trial

TEST_METRICS = ("test/harmonic_mean", "test/target_accuracy", "test/accuracy")  # the first reported is the value


class _Finished(Enum):
    FINISHED = "finished"


FINISHED: Literal[_Finished.FINISHED] = _Finished.FINISHED
"""What :meth:`BasePlan.next` returns when nothing more is to be run."""


@dataclass
class Running:
    """What is known of a trial that has not ended."""

    trial: Trial
    value: float | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    seconds: float = 0.0
    pruned: bool = False
    stopped: bool = False  # pruned, or without a value
    counts: bool = True  # as a record of its configuration; not if that could not be built


class BasePlan(ABC):
    """A plan knows nothing of Ray: an engine asks it for trials, tells it what they report, stops them when told to.

    Args:
        objective: the metric of every evaluation that is a trial's value; a test has its own.
        direction: of the objective.
        folder: the study folder; a test trial loads what its training left under it.
        observer: is told of every trial in order.
        budget: ends the first phase.
        clock: seconds since the study began; None counts from now.

    Attributes:
        needs_finite: whether an infinite value is no result.
        second: the metric of a second objective, without which there is no result either; None for one objective.
        finished: every ended trial with its outcome, in the order of ending.
        ended: by which rule of the budget the first phase ended before all its trials had begun, None if by none.
        stopped: why the study ended itself before its time, None if it did not.
        version: of the study, 1 until it is extended.
    """

    needs_finite = False
    second: str | None = None

    def __init__(
        self,
        objective: str,
        direction: Direction,
        folder: Path,
        observer: Observer,
        budget: Budget,
        clock: Callable[[], float] | None,
    ) -> None:
        self.finished: list[tuple[Trial, Outcome]] = []
        self.ended: str | None = None
        self.stopped: str | None = None
        self._objective = objective
        self._folder = folder
        self._observer = observer
        began = time.monotonic()
        self._spending = Spending(budget, direction, clock or (lambda: time.monotonic() - began))
        self.version = 1
        self._looks: set[object] = set()  # at the test split
        self._begun: dict[str, Phase] = {}  # all trials that ever began, by key
        self._running: dict[str, Running] = {}
        self._source = self._trials()
        self._ending: str | None = None

    @property
    @abstractmethod
    def totals(self) -> dict[Phase, int | None]:
        """How many trials each phase has at most; None where only time ends it."""

    @abstractmethod
    def _trials(self) -> Iterator[Trial | None]:
        """Yield the study's trials in order, None while the next one depends on those that run."""

    @property
    def test_openings(self) -> int:
        """How often the test split was looked at: once for all that was chosen before."""
        return len(self._looks)

    @property
    def _look(self) -> object:
        """What tells the present look at the test split from others: one for each version with tests."""
        return self.version

    @property
    def running(self) -> list[Trial]:
        """The trials handed out and not ended."""
        return [running.trial for running in self._running.values()]

    def next(self) -> Trial | Literal[_Finished.FINISHED] | None:
        """Return the next trial to run, None while it depends on running ones, or FINISHED."""
        if self._ending is not None:
            return FINISHED
        trial = next(self._source, FINISHED)
        if self._ending is not None:  # the study came to its end while it looked for the next trial
            return FINISHED
        if isinstance(trial, Trial) and trial.key not in self._running:
            self._start(trial)
        return trial

    def report(self, trial: Trial, step: int, metrics: Mapping[str, float], seconds: float = 0.0) -> bool:
        """Take one evaluation; return whether the trial is to be stopped.

        A step that came before (a trial run again after its worker died) is not taken twice.

        Args:
            seconds: wall time of the trial in its worker so far.
        """
        running = self._running[trial.key]
        running.seconds = seconds
        if running.step is not None and step <= running.step:
            return False
        running.step, running.metrics = step, dict(metrics)
        running.curve.append((step, running.metrics))
        running.value = next((metrics[name] for name in self._value_names(trial) if name in metrics), None)
        self._observer.trial_reported(trial, step, metrics)
        running.pruned = running.value is not None and self._prunes(trial, step, running.value)
        running.stopped = running.pruned or running.value is None
        return running.stopped

    def finish(
        self,
        trial: Trial,
        seconds: float | None = None,
        *,
        state: Literal[State.FAILED, State.LOST] | None = None,
        reason: str | None = None,
        duplicate_of: str | None = None,
        gpus: float = 0.0,
    ) -> Outcome:
        """End a trial that ran out, was stopped, failed or was lost.

        Args:
            seconds: wall time of the trial in its worker; None takes the last report's.
            state: None for a trial that ended in order (COMPLETE, or PRUNED if :meth:`report` said so).
            reason: why, for FAILED and LOST.
            duplicate_of: the key of the trial whose record answered this one.
            gpus: that it held.
        """
        running = self._running.pop(trial.key)
        ended: State = state or (State.PRUNED if running.pruned else State.COMPLETE)
        if state is None and (fault := self._fault(running)) is not None:
            ended, reason = State.FAILED, fault
        elif ended is State.COMPLETE:
            ended = self._completed(trial, running.value or 0.0)
        outcome = Outcome(
            state=ended,
            value=running.value,
            step=running.step,
            metrics=running.metrics,
            seconds=running.seconds if seconds is None else seconds,
            reason=reason,
            duplicate_of=duplicate_of,
            gpus=gpus,
        )
        self._spending.trial_ended(trial, outcome)
        self._learn(running, outcome)
        self.finished.append((trial, outcome))
        self._observer.trial_finished(trial, outcome)
        if self._ending is None and (why := self._spending.hopeless()) is not None:
            self.stopped = why
            self._end(why)
        return outcome

    def finish_stopped(self) -> None:
        """End the trials that :meth:`report` has stopped, where the driver died in between."""
        for running in [running for running in self._running.values() if running.stopped]:
            self.finish(running.trial)

    def interrupt(self, reason: str) -> None:
        """End the study now: running trials are LOST, and nothing more is handed out."""
        self._end(reason)
        for trial in self.running:
            self.finish(trial, state=State.LOST, reason=reason)

    def _extend(self, budget: Budget) -> None:
        """Begin a later version of the study, whatever ended the one before: what has run is not run again."""
        self._spending.extend(budget)
        self.version += 1
        self.ended = self.stopped = self._ending = None
        self._source = self._trials()

    def outcomes(self, phase: Phase, candidate: str) -> list[tuple[Trial, Outcome]]:
        """Return the ended trials of one candidate in one phase, by repeat."""
        found = [(t, o) for t, o in self.finished if t.phase == phase and t.candidate == candidate]
        return sorted(found, key=lambda pair: pair[0].repeat)

    # -- what a kind of plan adds --

    def _prunes(self, trial: Trial, step: int, value: float) -> bool:
        """Return whether an evaluation ends its trial."""
        return False

    def _completed(self, trial: Trial, value: float) -> State:
        """Return what a trial that ran to its end is."""
        return State.COMPLETE

    def _learn(self, running: Running, outcome: Outcome) -> None:  # noqa: B027  # nothing, by default
        """Make something of an ended trial."""

    def _end(self, reason: str) -> None:
        """Hand out nothing more."""
        self._ending = reason

    # -- what they share --

    def _check_budget(self, budget: Budget, begun: int) -> None:
        """Raise UserError if a later version's budget lets no trial of the first phase begin."""
        spending = copy.copy(self._spending)
        spending.extend(budget)
        if (why := spending.used_up(begun)) is not None:
            fix = "add to what ended it; other rules than trials and time are those of the space file (--space)"
            raise UserError("extend", f"leaves nothing to run: {why}", fix=fix)

    def _count(self, phase: Phase) -> int:
        """Return how many trials of a phase have begun."""
        return sum(begun == phase for begun in self._begun.values())

    def _start(self, trial: Trial) -> None:
        self._running[trial.key] = Running(trial)
        self._begun[trial.key] = trial.phase
        if trial.phase == "test":
            self._looks.add(self._look)
        self._observer.trial_started(trial)

    def _is_used_up(self, begun: int) -> bool:
        """Return whether the budget lets no further trial of the first phase begin, and keep why."""
        self.ended = self._spending.used_up(begun)
        return self.ended is not None

    def _wait(self, phase: Phase) -> Iterator[Trial | None]:
        """Yield None as long as trials of a phase run."""
        while any(running.trial.phase == phase for running in self._running.values()):
            yield None

    def _test(self, trained: Trial) -> Trial:
        """Return the test of a trial that has completed."""
        learned = trained.config.method != "zero_shot"
        return replace(
            trained,
            key=trained.key.replace(trained.phase, "test", 1),
            phase="test",
            learnables=trained.folder(self._folder) / "learnables.safetensors" if learned else None,
        )

    def _fault(self, running: Running) -> str | None:
        """Return what is wrong with a trial that ended in order, None if nothing is."""
        step, value = running.step, running.value
        if step is None:
            return "the trial ended without an evaluation"
        if value is None:
            names = " or ".join(map(repr, self._value_names(running.trial)))
            return f"the evaluation at step {step} has no {names}; it has: {', '.join(sorted(running.metrics))}"
        if not running.pruned and (problem := self._unusable(value)) is not None:
            return f"the objective is {problem} at step {step}"
        if self.second and running.trial.phase != "test" and not _is_finite(running.metrics.get(self.second)):
            return f"the evaluation at step {step} has no finite '{self.second}'"
        return None

    def _unusable(self, value: float) -> str | None:
        """Return why a value is no result, as in "the objective is …"; None if it is one."""
        if self.needs_finite and not math.isfinite(value):
            return "not finite"
        return "NaN" if math.isnan(value) else None

    def _value_names(self, trial: Trial) -> tuple[str, ...]:
        return TEST_METRICS if trial.phase == "test" else (self._objective,)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

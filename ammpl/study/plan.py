"""What a study runs next, what it makes of each result, and when it ends.

A plan knows nothing of Ray: an engine asks it for trials, tells it what they report, and stops them when it says so.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

from ammpl.errors import UserError
from ammpl.study.optuna_search import OptunaSearch
from ammpl.study.space import SearchSpace
from ammpl.study.trial import Observer, Outcome, Phase, State, Trial

TEST_METRICS = ("test/harmonic_mean", "test/accuracy")  # the first that a test reports is its value


FIRST_TRIALS = 5  # of the search; when all of them fail the same way, so would the others

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")  # steps, sizes, addresses: not what makes two failures different


class _Finished(Enum):
    FINISHED = "finished"


FINISHED: Literal[_Finished.FINISHED] = _Finished.FINISHED
"""What :meth:`Plan.next` returns when nothing more is to be run."""


@dataclass
class _Running:
    """What is known of a trial that has not ended."""

    trial: Trial
    value: float | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    seconds: float = 0.0
    pruned: bool = False
    counts: bool = True  # as a record of its configuration; not if that could not be built
    fault: str | None = None  # found here rather than in the worker: the objective is missing


@dataclass(frozen=True)
class _Record:
    """What is known of a configuration that ran in the search: a trial is a pure function of it."""

    key: str
    curve: list[tuple[int, Mapping[str, float]]]
    outcome: Outcome


class Plan:
    """Search, then confirmation on fresh repeats, then one look at the test split.

    At any number of trials at a time the order of asking is fixed; with one at a time the whole study is.

    Args:
        space: what to search.
        study_name: of the Optuna study; it decides numbers (Hyperband hashes it), so it belongs to a rerun.
        folder: the study folder; a test trial loads what its confirmation left under it.
        observer: is told of every trial in order. Must not raise.

    Attributes:
        finished: every ended trial with its outcome, in the order of ending.
        winner: after confirmation, the candidate with the best mean; None if there is none.
        stopped: why the study ended itself before its time, None if it did not.
    """

    def __init__(self, space: SearchSpace, study_name: str, folder: Path, observer: Observer):
        self.space = space
        self.search = OptunaSearch(study_name, space.objective.direction, space.sampler, space.pruner, seed=space.seed)
        self.finished: list[tuple[Trial, Outcome]] = []
        self.winner: str | None = None
        self.stopped: str | None = None
        self._folder = folder
        self._size = space.search_size
        self._observer = observer
        self._running: dict[str, _Running] = {}
        self._records: dict[str, _Record] = {}  # of the search, by the configuration's sha256
        self._source = self._trials()
        self._ending: str | None = None

    @property
    def totals(self) -> dict[Phase, int]:
        """How many trials each phase has at most."""
        confirm = self.space.confirm
        if confirm is None:
            return {"search": self._size, "confirm": 0, "test": 0}
        candidates = min(confirm.top, self._size)
        return {
            "search": self._size,
            "confirm": (candidates + len(confirm.baselines)) * confirm.repeats,
            "test": (1 + len(confirm.baselines)) * confirm.repeats,
        }

    @property
    def running(self) -> list[Trial]:
        """The trials handed out and not ended."""
        return [running.trial for running in self._running.values()]

    def next(self) -> Trial | Literal[_Finished.FINISHED] | None:
        """Return the next trial to run, None while it depends on running ones, or FINISHED."""
        if self._ending is not None:
            return FINISHED
        trial = next(self._source, FINISHED)
        if self._ending is not None:  # the search came to its end while it looked for the next trial
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
        if running.value is None:
            names = " or ".join(map(repr, self._value_names(trial)))
            running.fault = f"the evaluation at step {step} has no {names}; it has: {', '.join(sorted(metrics))}"
            return True
        if trial.number is not None:
            running.pruned = self.search.report(trial.number, step, running.value)
        return running.pruned

    def finish(
        self,
        trial: Trial,
        seconds: float | None = None,
        *,
        state: Literal[State.FAILED, State.LOST] | None = None,
        reason: str | None = None,
        duplicate_of: str | None = None,
    ) -> Outcome:
        """End a trial that ran out, was stopped, failed or was lost.

        Args:
            seconds: wall time of the trial in its worker; None takes the last report's.
            state: None for a trial that ended in order (COMPLETE, or PRUNED if :meth:`report` said so).
            reason: why, for FAILED and LOST.
            duplicate_of: the key of the trial whose record answered this one.
        """
        running = self._running.pop(trial.key)
        ended: State = state or (State.PRUNED if running.pruned else State.COMPLETE)
        if state is None and running.fault is not None:
            ended, reason = State.FAILED, running.fault
        elif ended is State.COMPLETE and running.value is None:
            ended, reason = State.FAILED, "the trial ended without an evaluation"
        elif ended is State.COMPLETE and math.isnan(running.value or 0.0):
            ended, reason = State.FAILED, f"the objective is NaN at step {running.step}"
        outcome = Outcome(
            state=ended,
            value=running.value,
            step=running.step,
            metrics=running.metrics,
            seconds=running.seconds if seconds is None else seconds,
            reason=reason,
            duplicate_of=duplicate_of,
        )
        if trial.number is not None:
            self.search.tell(
                trial.number, outcome.state, outcome.value, reason=outcome.reason, duplicate_of=duplicate_of
            )
            if running.counts and duplicate_of is None:
                self._keep(_Record(trial.key, running.curve, outcome), trial.config.sha256)
        self.finished.append((trial, outcome))
        self._observer.trial_finished(trial, outcome)
        if trial.number is not None and trial.number < FIRST_TRIALS:
            self._stop_if_hopeless()
        return outcome

    def interrupt(self, reason: str) -> None:
        """End the study now: running trials are LOST, and nothing more is handed out."""
        self._ending = reason
        for trial in self.running:
            self.finish(trial, state=State.LOST, reason=reason)

    def outcomes(self, phase: Phase, candidate: str) -> list[tuple[Trial, Outcome]]:
        """Return the ended trials of one candidate in one phase, by repeat."""
        found = [(t, o) for t, o in self.finished if t.phase == phase and t.candidate == candidate]
        return sorted(found, key=lambda pair: pair[0].repeat)

    def best(self, count: int) -> list[tuple[Trial, float]]:
        """Return the best different configurations of the search with their last values, the best first."""
        complete = [
            (trial, outcome.value)
            for trial, outcome in self.finished
            if trial.phase == "search" and outcome.state is State.COMPLETE and outcome.value is not None
        ]
        ranked = sorted(complete, key=lambda pair: (self._cost(pair[1]), pair[0].number))
        first = {trial.config.sha256: trial.key for trial, _ in reversed(ranked)}
        return [(trial, value) for trial, value in ranked if first[trial.config.sha256] == trial.key][:count]

    def _trials(self) -> Iterator[Trial | None]:
        """Yield the study's trials in order, None while the next one depends on those that run."""
        yield from self._search_trials()
        if self.space.confirm is None:
            yield from self._wait("search")
            return
        repeats = self.space.fresh_repeats()
        # Baselines do not depend on the search, so they fill the slots that its last trials leave idle.
        for method in self.space.confirm.baselines:
            for repeat in repeats:
                config = self.space.baseline(method, repeat)
                yield Trial(f"confirm-{method}-r{repeat}", "confirm", method, None, repeat, config)
        yield from self._wait("search")
        finalists = [trial for trial, _ in self.best(self.space.confirm.top)]
        for trial in finalists:
            for repeat in repeats:
                config = self.space.config(trial.params, repeat)
                key = f"confirm-{trial.number:04d}-r{repeat}"
                yield Trial(key, "confirm", trial.candidate, None, repeat, config, trial.params)
        yield from self._wait("confirm")
        self.winner = self._confirmed_best([trial.candidate for trial in finalists])
        for candidate in filter(None, (self.winner, *self.space.confirm.baselines)):
            yield from self._test_trials(candidate)
        yield from self._wait("test")

    def _start(self, trial: Trial) -> None:
        self._running[trial.key] = _Running(trial)
        self._observer.trial_started(trial)

    def _keep(self, record: _Record, sha256: str) -> None:
        """Keep the record of a configuration, unless there is one already that goes further."""
        known = self._records.get(sha256)
        lost = record.outcome.state is State.LOST  # says nothing about the configuration
        if not lost and (known is None or len(record.curve) > len(known.curve)):
            self._records[sha256] = record

    def _answer(self, trial: Trial) -> bool:
        """Answer a trial from the record of its configuration, if there is one; return whether that sufficed.

        The pruner is asked at every step, as if the trial ran: what it let pass then it may stop now. A record that it
        had cut short may not suffice now; the trial then runs, and its steps that were told are not told again.
        """
        record = self._records.get(trial.config.sha256)
        if record is None:
            return False
        self._start(trial)
        stopped = any(self.report(trial, step, metrics) for step, metrics in record.curve)
        if stopped or record.outcome.state is State.COMPLETE:
            self.finish(trial, 0.0, duplicate_of=record.key)
        elif record.outcome.state is State.FAILED:
            self.finish(trial, 0.0, state=State.FAILED, reason=record.outcome.reason, duplicate_of=record.key)
        else:
            return False
        return True

    def _search_trials(self) -> Iterator[Trial]:
        repeat = self.space.repeats[0]
        for _ in range(self._size):
            if self._ending is not None:
                return
            number, params = self.search.ask(self.space.suggest)
            try:
                config = self.space.config(params, repeat)
            except UserError as error:  # values that contradict each other only in this combination
                config = self.space.config({}, repeat)
                trial = Trial(f"search-{number:04d}", "search", str(number), number, repeat, config, params)
                self._start(trial)
                self._running[trial.key].counts = False
                self.finish(trial, state=State.FAILED, reason=str(error))
                continue
            trial = Trial(f"search-{number:04d}", "search", str(number), number, repeat, config, params)
            if not self._answer(trial):
                yield trial

    def _stop_if_hopeless(self) -> None:
        """Hand out nothing more once the first trials have all failed the same way, but for numbers in the reason."""
        first = {
            trial.number: outcome.reason
            for trial, outcome in self.finished
            if trial.number is not None
            and trial.number < FIRST_TRIALS
            and outcome.state in (State.FAILED, State.LOST)
            and outcome.reason is not None
        }
        ways = {_NUMBER.sub("#", reason) for reason in first.values()}
        if len(first) == FIRST_TRIALS and len(ways) == 1 and self._ending is None:
            self.stopped = f"the first {FIRST_TRIALS} trials all failed the same way: {first[FIRST_TRIALS - 1]}"
            self._ending = self.stopped

    def _test_trials(self, candidate: str) -> Iterator[Trial]:
        for confirmed, outcome in self.outcomes("confirm", candidate):
            if outcome.state is not State.COMPLETE:
                continue
            learned = confirmed.config.method != "zero_shot"
            yield Trial(
                key=confirmed.key.replace("confirm", "test", 1),
                phase="test",
                candidate=candidate,
                number=None,
                repeat=confirmed.repeat,
                config=confirmed.config,
                params=confirmed.params,
                learnables=confirmed.folder(self._folder) / "learnables.safetensors" if learned else None,
            )

    def _wait(self, phase: Phase) -> Iterator[None]:
        while any(running.trial.phase == phase for running in self._running.values()):
            yield None

    def _confirmed_best(self, candidates: list[str]) -> str | None:
        """Return the candidate with the best mean over its repeats; one with failed repeats only if all have some."""
        means: list[tuple[int, float, int, str]] = []
        for rank, candidate in enumerate(candidates):
            values = [o.value for _, o in self.outcomes("confirm", candidate) if o.state is State.COMPLETE]
            known = [value for value in values if value is not None]
            if known:
                means.append((-len(known), self._cost(statistics.fmean(known)), rank, candidate))
        return min(means)[-1] if means else None

    def _cost(self, value: float) -> float:
        """Return the value so that less is better."""
        return -value if self.space.objective.direction == "maximize" else value

    def _value_names(self, trial: Trial) -> tuple[str, ...]:
        return TEST_METRICS if trial.phase == "test" else (self.space.objective.metric,)

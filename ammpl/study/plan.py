"""What a study runs next, what it makes of each result, and when it ends.

A plan knows nothing of Ray: an engine asks it for trials, tells it what they report, and stops them when it says so.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

from ammpl.config import Scalar, TrialConfig
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
        self._several = len(space.repeats) > 1
        self._values: dict[int, list[float]] = {}  # of the configurations that are open, by number: a value a repeat
        self._due: deque[tuple[int, Mapping[str, Scalar]]] = deque()  # configurations whose next repeat may begin
        self._complete: list[tuple[Trial, float]] = []  # the search's whole configurations, with their objective
        self._records: dict[str, _Record] = {}  # of the search, by the configuration's sha256
        self._source = self._trials()
        self._ending: str | None = None

    @property
    def totals(self) -> dict[Phase, int]:
        """How many trials each phase has at most."""
        confirm = self.space.confirm
        if confirm is None:
            return {"search": self._size * len(self.space.repeats), "confirm": 0, "test": 0}
        candidates = min(confirm.top, self._size)
        return {
            "search": self._size * len(self.space.repeats),
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
        if trial.number is not None and not self._several:
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
        elif ended is State.COMPLETE and trial.number is not None and self._several:
            ended = self._repeat_ended(trial.number, running.value or 0.0)
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
            self._tell(trial, outcome)
            if running.counts and duplicate_of is None:
                self._keep(_Record(trial.key, running.curve, outcome), trial.config.sha256)
        self.finished.append((trial, outcome))
        self._observer.trial_finished(trial, outcome)
        if trial.number is not None and trial.number < FIRST_TRIALS:
            self._stop_if_hopeless()
        return outcome

    def _repeat_ended(self, number: int, value: float) -> State:
        """Take the value of a repeat that ran to its end; return PRUNED if the pruner stops its configuration there.

        After the last repeat there is nothing left to stop.
        """
        values = self._values[number]
        values.append(value)
        stop = self.search.report(number, len(values) - 1, value)
        return State.PRUNED if stop and len(values) < len(self.space.repeats) else State.COMPLETE

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        """Tell Optuna of a configuration that has ended; one that has repeats left waits for them."""
        assert trial.number is not None
        values, value = self._values[trial.number], outcome.value
        if self._several and outcome.state in (State.COMPLETE, State.PRUNED):
            if outcome.state is State.COMPLETE and len(values) < len(self.space.repeats):
                self._due.append((trial.number, trial.params))
                if self._ending is not None:
                    self._abandon(self._ending)
                return
            value = statistics.fmean(values)
        del self._values[trial.number]
        if outcome.state is State.COMPLETE and value is not None:
            self._complete.append((trial, value))
        told = {"reason": outcome.reason, "duplicate_of": None if self._several else outcome.duplicate_of}
        self.search.tell(trial.number, outcome.state, value, learn=self._several, **told)

    def _abandon(self, reason: str) -> None:
        """Tell Optuna that configurations between two repeats are LOST."""
        while self._due:
            number, _ = self._due.popleft()
            del self._values[number]
            self.search.tell(number, State.LOST, None, reason=reason)

    def interrupt(self, reason: str) -> None:
        """End the study now: running trials are LOST, and nothing more is handed out."""
        self._ending = reason
        self._abandon(reason)
        for trial in self.running:
            self.finish(trial, state=State.LOST, reason=reason)

    def outcomes(self, phase: Phase, candidate: str) -> list[tuple[Trial, Outcome]]:
        """Return the ended trials of one candidate in one phase, by repeat."""
        found = [(t, o) for t, o in self.finished if t.phase == phase and t.candidate == candidate]
        return sorted(found, key=lambda pair: pair[0].repeat)

    def best(self, count: int) -> list[tuple[Trial, float]]:
        """Return the best different configurations of the search with their objective, the best first.

        With several repeats the objective is the mean of their last values, and the trial is the last repeat's.
        """
        ranked = sorted(self._complete, key=lambda pair: (self._cost(pair[1]), pair[0].number))
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
                yield from self._due_repeats()
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
        whole = record.outcome.state is State.COMPLETE or (self._several and record.outcome.state is State.PRUNED)
        self._start(trial)
        stopped = any(self.report(trial, step, metrics) for step, metrics in record.curve)
        if stopped or whole:
            self.finish(trial, 0.0, duplicate_of=record.key)
        elif record.outcome.state is State.FAILED:
            self.finish(trial, 0.0, state=State.FAILED, reason=record.outcome.reason, duplicate_of=record.key)
        else:
            return False
        return True

    def _search_trials(self) -> Iterator[Trial]:
        repeat = self.space.repeats[0]
        for _ in range(self._size):
            yield from self._due_repeats()
            if self._ending is not None:
                return
            number, params = self.search.ask(self.space.suggest)
            self._values[number] = []
            try:
                config = self.space.config(params, repeat)
            except UserError as error:  # values that contradict each other only in this combination
                trial = self._search_trial(number, params, repeat, self.space.config({}, repeat))
                self._start(trial)
                self._running[trial.key].counts = False
                self.finish(trial, state=State.FAILED, reason=str(error))
                continue
            trial = self._search_trial(number, params, repeat, config)
            if not self._answer(trial):
                yield trial

    def _due_repeats(self) -> Iterator[Trial]:
        """Yield the next repeat of each configuration that waits for it."""
        while self._due and self._ending is None:
            number, params = self._due.popleft()
            repeat = self.space.repeats[len(self._values[number])]
            trial = self._search_trial(number, params, repeat, self.space.config(params, repeat))
            if not self._answer(trial):
                yield trial

    def _search_trial(self, number: int, params: Mapping[str, Scalar], repeat: int, config: TrialConfig) -> Trial:
        key = f"search-{number:04d}" + (f"-r{repeat}" if self._several else "")
        return Trial(key, "search", str(number), number, repeat, config, params)

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
            self._abandon(self.stopped)

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

    def _wait(self, phase: Phase) -> Iterator[Trial | None]:
        yield from self._due_repeats()
        while any(running.trial.phase == phase for running in self._running.values()):
            yield None
            yield from self._due_repeats()

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

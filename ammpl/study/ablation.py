"""What an ablation runs next and what it makes of each result: every variant on every repeat, nothing pruned.

The engine uses it as it uses :class:`ammpl.study.plan.Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ammpl.study.ablation_space import AblationSpace
from ammpl.study.plan import FINISHED, TEST_METRICS, Plan
from ammpl.study.trial import Observer, Outcome, Phase, State, Trial


@dataclass
class _Running:
    """What is known of a trial that has not ended."""

    trial: Trial
    value: float | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class AblationPlan:
    """All variants on the first repeat, then on the next; at the end the tests, if the space asks for them.

    Nothing depends on what came before, so the numbers are the same at any number of trials at a time. Repeats go
    outside variants: an ablation that is interrupted has whole repeats, which are what can be compared in pairs.

    Args:
        space: what to run.
        folder: the study folder; a test trial loads what its training left under it.
        observer: is told of every trial in order. Must not raise.

    Attributes:
        finished: every ended trial with its outcome, in the order of ending.
    """

    def __init__(self, space: AblationSpace, folder: Path, observer: Observer):
        self.space = space
        self.finished: list[tuple[Trial, Outcome]] = []
        self._folder = folder
        self._observer = observer
        self._running: dict[str, _Running] = {}
        self._source = self._trials()
        self._interrupted = False

    @property
    def totals(self) -> dict[Phase, int]:
        """How many trials each phase has at most."""
        trials = len(self.space.variants) * len(self.space.repeats)
        return {"ablation": trials, "test": trials if self.space.test else 0}

    @property
    def running(self) -> list[Trial]:
        """The trials handed out and not ended."""
        return [running.trial for running in self._running.values()]

    def next(self) -> Trial | object | None:
        """Return the next trial to run, None while it depends on running ones, or FINISHED."""
        trial = FINISHED if self._interrupted else next(self._source, FINISHED)
        if isinstance(trial, Trial):
            self._running[trial.key] = _Running(trial)
            self._observer.trial_started(trial)
        return trial

    def report(self, trial: Trial, step: int, metrics: Mapping[str, float], seconds: float = 0.0) -> bool:
        """Take one evaluation; return whether the trial is to be stopped: only when the objective is missing.

        A step that came before (a trial run again after its worker died) is not taken twice.

        Args:
            seconds: wall time of the trial in its worker so far.
        """
        running = self._running[trial.key]
        running.seconds = seconds
        if running.step is not None and step <= running.step:
            return False
        running.step, running.metrics = step, dict(metrics)
        running.value = next((metrics[name] for name in self._value_names(trial) if name in metrics), None)
        self._observer.trial_reported(trial, step, metrics)
        return running.value is None

    def finish(
        self,
        trial: Trial,
        seconds: float | None = None,
        *,
        state: Literal[State.FAILED, State.LOST] | None = None,
        reason: str | None = None,
    ) -> Outcome:
        """End a trial that ran out, was stopped, failed or was lost.

        Args:
            seconds: wall time of the trial in its worker; None takes the last report's.
            state: None for a trial that ended in order.
            reason: why, for FAILED and LOST.
        """
        running = self._running.pop(trial.key)
        fault = reason if state else self._fault(running)
        outcome = Outcome(
            state=state or (State.FAILED if fault else State.COMPLETE),
            value=running.value,
            step=running.step,
            metrics=running.metrics,
            seconds=running.seconds if seconds is None else seconds,
            reason=fault,
        )
        self.finished.append((trial, outcome))
        self._observer.trial_finished(trial, outcome)
        return outcome

    def interrupt(self, reason: str) -> None:
        """End the study now: running trials are LOST, and nothing more is handed out."""
        self._interrupted = True
        for trial in self.running:
            self.finish(trial, state=State.LOST, reason=reason)

    def outcomes(self, phase: Phase, variant: str) -> dict[int, Outcome]:
        """Return the complete trials of one variant in one phase, by repeat."""
        return {
            trial.repeat: outcome
            for trial, outcome in self.finished
            if trial.phase == phase and trial.candidate == variant and outcome.state is State.COMPLETE
        }

    def _trials(self) -> Iterator[Trial | None]:
        for repeat in self.space.repeats:
            for variant in self.space.variants:
                config = self.space.config(variant, repeat)
                key = f"ablation-{variant}-r{repeat}"
                yield Trial(key, "ablation", variant, None, repeat, config, self.space.params(variant))
        while self._running:
            yield None
        if self.space.test:
            trained = [trial for trial, outcome in self.finished if outcome.state is State.COMPLETE]
            for trial in sorted(trained, key=lambda trial: self.space.repeats.index(trial.repeat)):
                yield self._test(trial)
            while self._running:
                yield None

    def _test(self, trained: Trial) -> Trial:
        learned = trained.config.method != "zero_shot"
        return Trial(
            key=trained.key.replace("ablation", "test", 1),
            phase="test",
            candidate=trained.candidate,
            number=None,
            repeat=trained.repeat,
            config=trained.config,
            params=trained.params,
            learnables=trained.folder(self._folder) / "learnables.safetensors" if learned else None,
        )

    def _fault(self, running: _Running) -> str | None:
        """Return what is wrong with a trial that ended in order."""
        if running.step is None:
            return "the trial ended without an evaluation"
        if running.value is None:
            names = " or ".join(map(repr, self._value_names(running.trial)))
            has = ", ".join(sorted(running.metrics))
            return f"the evaluation at step {running.step} has no {names}; it has: {has}"
        return f"the objective is not finite at step {running.step}" if not math.isfinite(running.value) else None

    def _value_names(self, trial: Trial) -> tuple[str, ...]:
        return TEST_METRICS if trial.phase == "test" else (self.space.objective.metric,)


StudyPlan = Plan | AblationPlan
"""What an engine runs."""

"""What an ablation runs next: every variant on every repeat, nothing pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ammpl.study.ablation_space import AblationSpace
from ammpl.study.base_plan import BasePlan
from ammpl.study.plan import Plan
from ammpl.study.trial import Observer, Phase, State, Trial


class AblationPlan(BasePlan):
    """All variants on the first repeat, then on the next; at the end the tests, if the space asks for them.

    Nothing depends on what came before, so the numbers are the same at any number of trials at a time. Repeats go
    outside variants: an ablation that is interrupted has whole repeats, which are what can be compared in pairs.

    Args:
        space: what to run.
        folder: the study folder; a test trial loads what its training left under it.
        observer: is told of every trial in order.
        clock: seconds since the study began; None counts from now.
    """

    needs_finite = True

    def __init__(
        self, space: AblationSpace, folder: Path, observer: Observer, clock: Callable[[], float] | None = None
    ) -> None:
        super().__init__(space.objective.metric, folder, observer, space.budget, clock)
        self.space = space
        self._cells = [(variant, repeat) for repeat in space.repeats for variant in space.variants]

    @property
    def totals(self) -> dict[Phase, int | None]:
        """How many trials each phase has at most."""
        trials = len(self._cells)
        if self.space.budget.trials is not None:
            trials = min(trials, self.space.budget.trials)
        return {"ablation": trials, "test": trials if self.space.test else 0}

    @property
    def missing(self) -> dict[str, list[int]]:
        """The repeats that did not run, by variant."""
        ran = {(trial.candidate, trial.repeat) for trial, _ in self.finished if trial.phase == "ablation"}
        missing: dict[str, list[int]] = {}
        for variant, repeat in self._cells:
            if (variant, repeat) not in ran:
                missing.setdefault(variant, []).append(repeat)
        return missing

    def _trials(self) -> Iterator[Trial | None]:
        for begun, (variant, repeat) in enumerate(self._cells):
            if self._is_used_up(begun):
                break
            config = self.space.config(variant, repeat)
            key = f"ablation-{variant}-r{repeat}"
            yield Trial(key, "ablation", variant, None, repeat, config, self.space.params(variant))
        yield from self._wait("ablation")
        if self.space.test:
            trained = [trial for trial, outcome in self.finished if outcome.state is State.COMPLETE]
            for trial in sorted(trained, key=lambda trial: self.space.repeats.index(trial.repeat)):
                yield self._test(trial)
            yield from self._wait("test")

    def _place(self, trial: Trial) -> int | None:
        return None if trial.phase == "test" else self._cells.index((trial.candidate, trial.repeat))


StudyPlan = Plan | AblationPlan
"""What an engine runs."""

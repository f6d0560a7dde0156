"""What an ablation runs next: every variant on every repeat, nothing pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    """

    def __init__(self, space: AblationSpace, folder: Path, observer: Observer):
        super().__init__(space.objective.metric, folder, observer)
        self.space = space

    @property
    def totals(self) -> dict[Phase, int]:
        """How many trials each phase has at most."""
        trials = len(self.space.variants) * len(self.space.repeats)
        return {"ablation": trials, "test": trials if self.space.test else 0}

    def _trials(self) -> Iterator[Trial | None]:
        for repeat in self.space.repeats:
            for variant in self.space.variants:
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
        return None

    def _unusable(self, value: float) -> str | None:
        return None if math.isfinite(value) else "not finite"


StudyPlan = Plan | AblationPlan
"""What an engine runs."""

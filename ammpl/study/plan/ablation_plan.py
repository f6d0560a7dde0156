"""What an ablation runs next: every variant on every repeat of every setting, nothing pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from ammpl.errors import UserError
from ammpl.study.plan.base_plan import BasePlan
from ammpl.study.plan.search_plan import Plan
from ammpl.study.space.ablation_space import AblationSpace, Cell, Setting
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Observer, Phase, State, Trial


class AblationPlan(BasePlan):
    """All settings and variants on the first repeat, then on the next; at the end the tests, if asked for.

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
        super().__init__(space.objective.metric, space.objective.direction, folder, observer, space.budget, clock)
        self.space = space
        self._cells = {self._key(cell): cell for cell in space.cells()}

    def check_extension(self, space: StudySpace) -> None:
        """Raise UserError unless a later version has something to run."""
        assert isinstance(space, AblationSpace)
        cells = len(list(space.cells()))
        if min(cells, space.budget.trials or cells) <= self._count("ablation"):
            fix = "add --repeats +N, or, to a budget of trials, --trials +N"
            raise UserError("extend", "leaves nothing to run", fix=fix)
        self._check_budget(space.budget, self._count("ablation"))

    def extend(self, space: StudySpace) -> None:
        """Begin a later version of the ablation, with more repeats or a larger budget."""
        assert isinstance(space, AblationSpace)
        self.space = space
        self._cells = {self._key(cell): cell for cell in space.cells()}
        self._places = {key: place for place, key in enumerate(self._cells)}
        self._extend(space.budget)

    @property
    def totals(self) -> dict[Phase, int | None]:
        """How many trials each phase has at most."""
        trials = len(self._cells)
        if self.space.budget.trials is not None:
            trials = min(trials, self.space.budget.trials)
        return {"ablation": trials, "test": trials if self.space.test else 0}

    @property
    def missing(self) -> dict[str, list[int]]:
        """The repeats that did not run, by variant and setting."""
        ran = {trial.key for trial, _ in self.finished if trial.phase == "ablation"}
        missing: dict[str, list[int]] = {}
        for key, cell in self._cells.items():
            if key not in ran:
                missing.setdefault(self.space.cell_name(cell.variant, cell.setting), []).append(cell.repeat)
        return missing

    def values(self, variant: str, setting: Setting) -> dict[str, dict[int, float]]:
        """Return what was measured of a variant in a setting, by metric and repeat: in validation and in tests."""
        keys = {key for key, cell in self._cells.items() if (cell.variant, cell.setting) == (variant, setting)}
        keys |= {key.replace("ablation", "test", 1) for key in keys}
        found: dict[str, dict[int, float]] = {}
        ended = [*self.outcomes("ablation", variant), *self.outcomes("test", variant)]
        for trial, outcome in ended:
            if trial.key in keys and outcome.state is State.COMPLETE:
                for metric, value in sorted(outcome.metrics.items()):
                    prefix = "test/" if trial.phase == "test" else "validation/"
                    wanted = metric == self.space.objective.metric or metric.startswith(prefix)
                    if wanted and math.isfinite(value):
                        found.setdefault(metric, {})[trial.repeat] = value
        return found

    def _trials(self) -> Iterator[Trial | None]:
        begun = self._count("ablation")
        for key, cell in self._cells.items():
            if key in self._begun:
                continue
            if self._is_used_up(begun):
                break
            begun += 1
            config = self.space.config(cell.variant, cell.repeat, cell.setting)
            params = self.space.params(cell.variant, cell.setting)
            yield Trial(key, "ablation", cell.variant, None, cell.repeat, config, params)
        yield from self._wait("ablation")
        if self.space.test:
            ended = [pair for pair in self.finished if pair[0].phase == "ablation"]
            trained = [trial for trial, outcome in ended if outcome.state is State.COMPLETE]
            for trial in sorted(trained, key=lambda trial: self.space.repeats.index(trial.repeat)):
                if (test := self._test(trial)).key not in self._begun:
                    yield test
            yield from self._wait("test")

    def _key(self, cell: Cell) -> str:
        return f"ablation-{self.space.trial_name(cell)}"


StudyPlan = Plan | AblationPlan
"""What an engine runs."""

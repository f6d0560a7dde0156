"""One search over an in-memory Optuna study.

Decisions are made on a study in memory, where an ask costs milliseconds; what lasts is the event log. Optuna's own
tools read a copy (:mod:`ammpl.study.views.optuna_copy`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial

from ammpl.config import Scalar
from ammpl.study.space.pruners import Pruner
from ammpl.study.space.samplers import Sampler
from ammpl.study.trial import Direction, State


class OptunaSearch:
    """Asks, reports and tells over one in-memory Optuna study, exactly as ``study.optimize`` would.

    Args:
        name: the study's name. Hyperband hashes it into its brackets, so it decides numbers.
        directions: of the objectives, one or two; with two there is nothing to report and no pruner.
        seed: of the sampler.
        known: ended trials, of a search that went before, that it begins with.
        first: the number of its first own trial; those of Optuna's study count from 0, the known ones first.

    Attributes:
        changed: is called with the number of a trial in Optuna's study whenever there is something new of it.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[Direction],
        sampler: Sampler,
        pruner: Pruner,
        seed: int,
        known: Sequence[FrozenTrial] = (),
        first: int = 0,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # of some samplers and pruners being experimental, which is the file's choice
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                study_name=name, directions=directions, sampler=sampler.build(seed), pruner=pruner.build()
            )
        self.study.add_trials(known)
        self._known = len(known)
        self._first = first
        self._open: dict[int, optuna.Trial] = {}
        self.changed: Callable[[int], None] = lambda number: None

    @property
    def own(self) -> list[tuple[int, FrozenTrial]]:
        """Its own trials, with their numbers."""
        return list(enumerate(self.study.get_trials(deepcopy=False)[self._known :], self._first))

    def ask(self, suggest: Callable[[optuna.Trial], dict[str, Scalar]]) -> tuple[int, dict[str, Scalar]]:
        """Start a trial; return its number and its parameters."""
        trial = self.study.ask()
        number = trial.number - self._known + self._first
        self._open[number] = trial
        params = suggest(trial)
        self.changed(trial.number)
        return number, params

    def report(self, number: int, step: int, value: float) -> bool:
        """Record an intermediate value; return whether the pruner stops the trial. Each step may come once."""
        trial = self._open[number]
        trial.report(value, step)
        self.changed(trial.number)
        return trial.should_prune()

    def tell(
        self,
        number: int,
        state: State,
        value: float | None,
        second: float | None = None,
        *,
        learn: bool = False,
        **attributes: str | None,
    ) -> None:
        """End a trial. FAILED and LOST are Optuna's FAIL; the attribute ``state`` keeps our word.

        Args:
            value: the objective, needed with COMPLETE; Optuna takes a pruned trial's from its last report.
            second: the second objective, needed with COMPLETE where there are two.
            learn: tell a PRUNED trial as complete with ``value``, so that the sampler learns from it.
            attributes: kept as user attributes where they are not None.
        """
        trial = self._open.pop(number)
        trial.set_user_attr("state", str(state))
        for name, text in attributes.items():
            if text is not None:
                trial.set_user_attr(name, text)
        if state is State.COMPLETE or (state is State.PRUNED and learn):
            if value is None or math.isnan(value):
                raise ValueError(f"a {state} trial needs a value here, got {value}")
            self.study.tell(trial, value if second is None else [value, second])
        else:
            pruned = state is State.PRUNED
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)
        self.changed(trial.number)

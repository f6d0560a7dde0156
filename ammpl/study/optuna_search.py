"""One search over an in-memory Optuna study.

Decisions are made on a study in memory, where an ask costs milliseconds; what lasts is the event log and, at the end,
a copy of the study in SQLite for Optuna's own tools.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from ammpl.config import Scalar
from ammpl.study.pruners import Pruner
from ammpl.study.samplers import Sampler
from ammpl.study.trial import State

Direction = Literal["maximize", "minimize"]


class OptunaSearch:
    """Asks, reports and tells over one in-memory Optuna study, exactly as ``study.optimize`` would.

    Args:
        name: the study's name. Hyperband hashes it into its brackets, so it decides numbers.
        directions: of the objectives, one or two; with two there is nothing to report and no pruner.
        seed: of the sampler.
        known: ended trials, of a search that went before, that it begins with.
        first: the number of its first own trial; those of Optuna's study count from 0, the known ones first.
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

    @property
    def own(self) -> list[tuple[int, FrozenTrial]]:
        """Its own trials, with their numbers."""
        return list(enumerate(self.study.get_trials(deepcopy=False)[self._known :], self._first))

    def ask(self, suggest: Callable[[optuna.Trial], dict[str, Scalar]]) -> tuple[int, dict[str, Scalar]]:
        """Start a trial; return its number and its parameters."""
        trial = self.study.ask()
        number = trial.number - self._known + self._first
        self._open[number] = trial
        return number, suggest(trial)

    def report(self, number: int, step: int, value: float) -> bool:
        """Record an intermediate value; return whether the pruner stops the trial. Each step may come once."""
        trial = self._open[number]
        trial.report(value, step)
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


def save_searches(searches: Sequence[OptunaSearch], path: Path) -> None:
    """Copy searches into a new SQLite file that Optuna and optuna-dashboard open. About 20 ms a trial."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{draft}")
    for study in (search.study for search in searches):
        copy = optuna.create_study(storage=storage, study_name=study.study_name, directions=study.directions)
        copy.add_trials(study.get_trials(deepcopy=False))
    storage.remove_session()
    storage.engine.dispose()
    draft.replace(path)

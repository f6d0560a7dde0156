"""Optuna's part: samplers and pruners by name, and one search over an in-memory study.

Decisions are made on a study in memory, where an ask costs milliseconds; what lasts is the event log and, at the end,
a copy of the study in SQLite for Optuna's own tools.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ammpl.config import Scalar
from ammpl.errors import UserError, did_you_mean, from_validation_error
from ammpl.study.trial import State

Direction = Literal["maximize", "minimize"]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TpeSampler(_Options):
    """Tree-structured Parzen estimator.

    Attributes:
        startup_trials: trials drawn at random before the estimator starts.
        candidates: draws of which the most promising is taken.
        multivariate: model parameters jointly.
        group: with ``multivariate``, model the groups of a conditional space one by one.
        constant_liar: count running trials as bad ones, so that parallel trials spread.
    """

    name: Literal["tpe"] = "tpe"
    startup_trials: int = Field(10, ge=0)
    candidates: int = Field(24, ge=1)
    multivariate: bool = True
    group: bool = False
    constant_liar: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("'group: true' needs 'multivariate: true'")
        return self

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.TPESampler(
            n_startup_trials=self.startup_trials,
            n_ei_candidates=self.candidates,
            multivariate=self.multivariate,
            group=self.group,
            constant_liar=self.constant_liar,
            seed=seed,
        )


class RandomSampler(_Options):
    """Independent uniform draws."""

    name: Literal["random"] = "random"

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.RandomSampler(seed=seed)


class MedianPruner(_Options):
    """Stops a trial whose best value so far is worse than the median of the others' at the same step.

    Attributes:
        startup_trials: trials that must have finished before any is pruned.
        warmup_steps: optimiser steps before which no trial is pruned.
        interval_steps: optimiser steps between two looks.
        min_trials: values at a step that a median needs.
    """

    name: Literal["median"] = "median"
    startup_trials: int = Field(5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    interval_steps: int = Field(1, ge=1)
    min_trials: int = Field(1, ge=1)

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.MedianPruner(
            self.startup_trials, self.warmup_steps, self.interval_steps, n_min_trials=self.min_trials
        )


class HyperbandPruner(_Options):
    """Successive halving in several brackets.

    Attributes:
        min_resource: optimiser steps of the first rung.
        max_resource: optimiser steps of a whole trial, or ``auto``: the most that a finished trial had.
        reduction_factor: one trial in this many passes a rung.
        bootstrap_count: trials that a rung needs before it lets one pass.
    """

    name: Literal["hyperband"] = "hyperband"
    min_resource: int = Field(1, ge=1)
    max_resource: int | Literal["auto"] = "auto"
    reduction_factor: int = Field(3, ge=2)
    bootstrap_count: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_resource == "auto" and self.bootstrap_count:
            raise ValueError("'bootstrap_count' needs a number as 'max_resource'")
        if self.max_resource != "auto" and self.max_resource < self.min_resource:
            raise ValueError(
                f"'max_resource' must be at least 'min_resource', got {self.max_resource} < {self.min_resource}"
            )
        return self

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.HyperbandPruner(
            self.min_resource, self.max_resource, self.reduction_factor, self.bootstrap_count
        )


class WilcoxonPruner(_Options):
    """Stops a trial that a signed-rank test finds worse than the best one, step by step.

    Attributes:
        p_threshold: significance below which the trial is stopped.
        startup_steps: evaluations before the first test.
    """

    name: Literal["wilcoxon"] = "wilcoxon"
    p_threshold: float = Field(0.1, ge=0, le=1)
    startup_steps: int = Field(2, ge=0)

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.WilcoxonPruner(p_threshold=self.p_threshold, n_startup_steps=self.startup_steps)


class NoPruner(_Options):
    """Lets every trial run to its end."""

    name: Literal["none"] = "none"

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.NopPruner()


class PatientPruner(_Options):
    """Lets another pruner decide only once a trial has stopped improving.

    Attributes:
        patience: evaluations without improvement that are tolerated.
        min_delta: what counts as an improvement.
        inner: the pruner that decides then; None stops the trial outright.
    """

    name: Literal["patient"] = "patient"
    patience: int = Field(2, ge=0)
    min_delta: float = Field(0.0, ge=0)
    inner: MedianPruner | HyperbandPruner | WilcoxonPruner | None = None

    @field_validator("inner", mode="before")
    @classmethod
    def _read_inner(cls, value: Any) -> Any:
        kinds = {name: kind for name, kind in PRUNERS.items() if name not in ("patient", "none")}
        return value if value is None else _named(kinds, value, "inner")

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        inner = self.inner.build() if self.inner else None
        return optuna.pruners.PatientPruner(inner, patience=self.patience, min_delta=self.min_delta)


Sampler = TpeSampler | RandomSampler
Pruner = MedianPruner | HyperbandPruner | WilcoxonPruner | PatientPruner | NoPruner

SAMPLERS: dict[str, type[Sampler]] = {"tpe": TpeSampler, "random": RandomSampler}
PRUNERS: dict[str, type[Pruner]] = {
    "median": MedianPruner,
    "hyperband": HyperbandPruner,
    "wilcoxon": WilcoxonPruner,
    "patient": PatientPruner,
    "none": NoPruner,
}


def _named(kinds: Mapping[str, type[BaseModel]], raw: Any, where: str) -> Any:
    """Build the one of ``kinds`` that ``raw['name']`` chooses, from its options."""
    if isinstance(raw, BaseModel):
        return raw
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise UserError(where, "must be a mapping with a 'name'", got=raw, fix=f"{{name: {next(iter(kinds))}}}")
    name = raw["name"]
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{where}.name", "is unknown", got=name, fix=did_you_mean(str(name), kinds))
    options = [option for option in kinds[name].model_fields if option != "name"]
    try:
        return kinds[name].model_validate(dict(raw))
    except ValidationError as error:
        raise from_validation_error(error, f"{where} {name}", options) from None
    except UserError as error:  # from a pruner within a pruner
        raise UserError(f"{where}.{error.where}", str(error).removeprefix(f"{error.where}: ")) from None


def read_sampler(raw: Any, where: str) -> Sampler:
    """Build a sampler from ``{name, ...options}``. Raises UserError for an unknown name or option, or a bad value."""
    sampler: Sampler = _named(SAMPLERS, raw, where)
    return sampler


def read_pruner(raw: Any, where: str) -> Pruner:
    """Build a pruner from ``{name, ...options}``. Raises UserError for an unknown name or option, or a bad value."""
    pruner: Pruner = _named(PRUNERS, raw, where)
    return pruner


class OptunaSearch:
    """Asks, reports and tells over one in-memory Optuna study, exactly as ``study.optimize`` would.

    Args:
        name: the study's name. Hyperband hashes it into its brackets, so it decides numbers.
        seed: of the sampler.
    """

    def __init__(self, name: str, direction: Direction, sampler: Sampler, pruner: Pruner, seed: int):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # of some samplers and pruners being experimental, which is the file's choice
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                study_name=name, direction=direction, sampler=sampler.build(seed), pruner=pruner.build()
            )
        self._open: dict[int, optuna.Trial] = {}

    def ask(self, suggest: Callable[[optuna.Trial], dict[str, Scalar]]) -> tuple[int, dict[str, Scalar]]:
        """Start a trial; return its number and its parameters."""
        trial = self.study.ask()
        self._open[trial.number] = trial
        return trial.number, suggest(trial)

    def report(self, number: int, step: int, value: float) -> bool:
        """Record an intermediate value; return whether the pruner stops the trial. Each step may come once."""
        trial = self._open[number]
        trial.report(value, step)
        return trial.should_prune()

    def tell(self, number: int, state: State, value: float | None, reason: str | None = None) -> None:
        """End a trial. FAILED and LOST are Optuna's FAIL; the attribute ``state`` keeps our word.

        Args:
            value: the objective, needed with COMPLETE; Optuna takes a pruned trial's from its last report.
        """
        trial = self._open.pop(number)
        trial.set_user_attr("state", str(state))
        if reason is not None:
            trial.set_user_attr("reason", reason)
        if state is State.COMPLETE:
            if value is None or math.isnan(value):
                raise ValueError(f"a COMPLETE trial needs a value, got {value}")
            self.study.tell(trial, value)
        else:
            pruned = state is State.PRUNED
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)

    def save(self, path: Path) -> None:
        """Copy the study into a new SQLite file that Optuna and optuna-dashboard open. About 20 ms a trial."""
        draft = path.with_name(f".{path.name}.tmp")
        draft.unlink(missing_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{draft}")
        copy = optuna.create_study(storage=storage, study_name=self.study.study_name, direction=self.study.direction)
        copy.add_trials(self.study.get_trials(deepcopy=False))
        storage.remove_session()
        storage.engine.dispose()
        draft.replace(path)

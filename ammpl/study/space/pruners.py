"""Pruners by name, with typed options and Optuna's implementation of each.

A step is an optimiser step of a trial's evaluation.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import optuna
from pydantic import ConfigDict, Field, field_validator, model_validator

from ammpl.study.space.named import NamedOptions, by_name, read_named


class MedianPruner(NamedOptions):
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


class PercentilePruner(NamedOptions):
    """Stops a trial whose best value so far is not among the best ``percentile`` of the others' at the same step.

    Attributes:
        percentile: share of the trials that go on, in percent; 50 is the median pruner.
        startup_trials: trials that must have finished before any is pruned.
        warmup_steps: optimiser steps before which no trial is pruned.
        interval_steps: optimiser steps between two looks.
        min_trials: values at a step that a percentile needs.
    """

    name: Literal["percentile"] = "percentile"
    percentile: float = Field(25.0, ge=0, le=100)
    startup_trials: int = Field(5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    interval_steps: int = Field(1, ge=1)
    min_trials: int = Field(1, ge=1)

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.PercentilePruner(
            self.percentile,
            self.startup_trials,
            self.warmup_steps,
            self.interval_steps,
            n_min_trials=self.min_trials,
        )


def _bootstrap_needs(number: str) -> ConfigDict:
    """Return what the JSON Schema of a pruner adds whose ``bootstrap_count`` needs a number as another option."""
    return ConfigDict(
        json_schema_extra={
            "if": {"properties": {"bootstrap_count": {"minimum": 1}}, "required": ["bootstrap_count"]},
            "then": {"properties": {number: {"type": "integer"}}, "required": [number]},
        }
    )


class HyperbandPruner(NamedOptions):
    """Successive halving in several brackets.

    Attributes:
        min_resource: optimiser steps of the first rung.
        max_resource: optimiser steps of a whole trial, or ``auto``: the most that a finished trial had.
        reduction_factor: one trial in this many passes a rung.
        bootstrap_count: trials that a rung needs before it lets one pass.
    """

    model_config = _bootstrap_needs("max_resource")

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


class SuccessiveHalvingPruner(NamedOptions):
    """Asynchronous successive halving: at each rung one trial in ``reduction_factor`` goes on.

    Attributes:
        min_resource: optimiser steps of the first rung, or ``auto``: a hundredth of the first finished trial's.
        reduction_factor: one trial in this many passes a rung.
        min_early_stopping_rate: rungs that are left out at the beginning.
        bootstrap_count: trials that a rung needs before it lets one pass.
    """

    model_config = _bootstrap_needs("min_resource")

    name: Literal["successive_halving"] = "successive_halving"
    min_resource: int | Literal["auto"] = Field("auto", json_schema_extra={"minimum": 1})
    reduction_factor: int = Field(4, ge=2)
    min_early_stopping_rate: int = Field(0, ge=0)
    bootstrap_count: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_resource == "auto" and self.bootstrap_count:
            raise ValueError("'bootstrap_count' needs a number as 'min_resource'")
        if self.min_resource != "auto" and self.min_resource < 1:
            raise ValueError(f"'min_resource' must be at least 1, got {self.min_resource}")
        return self

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.SuccessiveHalvingPruner(
            self.min_resource, self.reduction_factor, self.min_early_stopping_rate, self.bootstrap_count
        )


class ThresholdPruner(NamedOptions):
    """Stops a trial whose value is out of bounds, or NaN.

    Attributes:
        lower: below it a trial is stopped.
        upper: above it a trial is stopped.
        warmup_steps: optimiser steps before which no trial is pruned.
        interval_steps: optimiser steps between two looks.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"properties": {bound: {"type": "number"}}, "required": [bound]} for bound in ("lower", "upper")]
        }
    )

    name: Literal["threshold"] = "threshold"
    lower: float | None = None
    upper: float | None = None
    warmup_steps: int = Field(0, ge=0)
    interval_steps: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lower is None and self.upper is None:
            raise ValueError("needs 'lower', 'upper' or both")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"'lower' must not be above 'upper', got {self.lower} > {self.upper}")
        return self

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.ThresholdPruner(self.lower, self.upper, self.warmup_steps, self.interval_steps)


class WilcoxonPruner(NamedOptions):
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


class NoPruner(NamedOptions):
    """Lets every trial run to its end."""

    name: Literal["none"] = "none"

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        return optuna.pruners.NopPruner()


DecidingPruner = (
    MedianPruner | PercentilePruner | HyperbandPruner | SuccessiveHalvingPruner | ThresholdPruner | WilcoxonPruner
)


class PatientPruner(NamedOptions):
    """Lets another pruner decide only once a trial has stopped improving.

    Attributes:
        patience: evaluations without improvement that are tolerated.
        min_delta: what counts as an improvement.
        inner: the pruner that decides then; None stops the trial outright.
    """

    name: Literal["patient"] = "patient"
    patience: int = Field(2, ge=0)
    min_delta: float = Field(0.0, ge=0)
    inner: DecidingPruner | None = None

    @field_validator("inner", mode="before")
    @classmethod
    def _read_inner(cls, value: Any) -> Any:
        kinds = {name: kind for name, kind in PRUNERS.items() if name not in ("patient", "none")}
        return value if value is None else read_named(kinds, value, "inner")

    def build(self) -> optuna.pruners.BasePruner:
        """Return Optuna's pruner."""
        inner = self.inner.build() if self.inner else None
        return optuna.pruners.PatientPruner(inner, patience=self.patience, min_delta=self.min_delta)


Pruner = DecidingPruner | PatientPruner | NoPruner

PRUNERS: dict[str, type[Pruner]] = by_name(
    MedianPruner,
    PercentilePruner,
    HyperbandPruner,
    SuccessiveHalvingPruner,
    PatientPruner,
    ThresholdPruner,
    WilcoxonPruner,
    NoPruner,
)

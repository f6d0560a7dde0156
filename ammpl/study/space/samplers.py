"""Samplers by name, with typed options and Optuna's implementation of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import optuna
from pydantic import ConfigDict, Field, model_validator

from ammpl.errors import UserError
from ammpl.study.space.named import NamedOptions, by_name
from ammpl.study.space.parameters import Parameter


class TpeSampler(NamedOptions):
    """Tree-structured Parzen estimator.

    Attributes:
        startup_trials: trials drawn at random before the estimator starts.
        candidates: draws of which the most promising is taken.
        multivariate: model parameters jointly.
        group: with ``multivariate``, model the groups of a conditional space one by one.
        constant_liar: count running trials as bad ones, so that parallel trials spread.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"group": {"const": True}}, "required": ["group"]},
            "then": {"properties": {"multivariate": {"const": True}}},
        }
    )

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


class RandomSampler(NamedOptions):
    """Independent uniform draws."""

    name: Literal["random"] = "random"

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.RandomSampler(seed=seed)


class _BruteForce(optuna.samplers.BruteForceSampler):
    def after_trial(self, *_: Any) -> None:
        """Nothing: Optuna would stop ``study.optimize`` here once all is tried; our budget is capped instead."""


class GridSampler(NamedOptions):
    """Every combination once, in a shuffled order; conditional parameters vary only where they are active.

    The budget is capped at the grid's size. Floats need a ``step``.
    """

    name: Literal["grid"] = "grid"

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler: ``BruteForceSampler``, as ``GridSampler`` knows no conditions."""
        return _BruteForce(seed=seed)


class QmcSampler(NamedOptions):
    """A quasi-random sequence, which fills the space more evenly than independent draws.

    Parameters that the first trial does not have (conditional ones) are drawn at random.

    Attributes:
        sequence: ``sobol`` (best at a power of two of trials) or ``halton``.
        scramble: randomise the sequence by the seed; without it every seed gives the same points.
    """

    name: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.QMCSampler(
            qmc_type=self.sequence, scramble=self.scramble, seed=seed, warn_independent_sampling=False
        )


class GpSampler(NamedOptions):
    """Bayesian optimisation with a Gaussian process, for few and expensive trials.

    Conditional parameters are drawn at random. It makes the driver import torch.

    Attributes:
        startup_trials: trials drawn at random before the process is fitted.
    """

    name: Literal["gp"] = "gp"
    startup_trials: int = Field(10, ge=0)

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.GPSampler(
            n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False
        )


class CmaEsSampler(NamedOptions):
    """Covariance matrix adaptation over the unconditional float and int parameters, of which it needs two.

    Categorical and conditional parameters are drawn at random.

    Attributes:
        startup_trials: trials drawn at random before the strategy starts.
        sigma: initial standard deviation, as a share of each parameter's range; None takes 1/6.
        population_size: trials a generation; None takes 4 + 3 ln(number of parameters).
        learn_from_pruned: let pruned trials count with their last value.
    """

    name: Literal["cmaes"] = "cmaes"
    startup_trials: int = Field(1, ge=0)
    sigma: float | None = Field(None, gt=0, le=1)
    population_size: int | None = Field(None, ge=2)
    learn_from_pruned: bool = False

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.CmaEsSampler(
            n_startup_trials=self.startup_trials,
            sigma0=self.sigma,
            popsize=self.population_size,
            consider_pruned_trials=self.learn_from_pruned,
            seed=seed,
            warn_independent_sampling=False,
        )


class Nsga2Sampler(NamedOptions):
    """The genetic algorithm NSGA-II; with one objective, selection by rank.

    Attributes:
        population_size: trials a generation; the first one is drawn at random.
        mutation_probability: of each parameter; None takes one over the number of parameters.
        crossover_probability: that a trial has two parents.
        swapping_probability: that a parameter comes from the second parent.
    """

    name: Literal["nsga2"] = "nsga2"
    population_size: int = Field(50, ge=2)
    mutation_probability: float | None = Field(None, ge=0, le=1)
    crossover_probability: float = Field(0.9, ge=0, le=1)
    swapping_probability: float = Field(0.5, ge=0, le=1)

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler."""
        return optuna.samplers.NSGAIISampler(
            population_size=self.population_size,
            mutation_prob=self.mutation_probability,
            crossover_prob=self.crossover_probability,
            swapping_prob=self.swapping_probability,
            seed=seed,
        )


Sampler = TpeSampler | RandomSampler | GridSampler | QmcSampler | GpSampler | CmaEsSampler | Nsga2Sampler

SAMPLERS: dict[str, type[Sampler]] = by_name(
    TpeSampler, RandomSampler, GridSampler, QmcSampler, GpSampler, CmaEsSampler, Nsga2Sampler
)

TWO_OBJECTIVES = ("tpe", "nsga2", "random", "qmc", "grid")
"""The samplers that serve two objectives."""


def check_sampler(sampler: Sampler, parameters: Mapping[str, Parameter], where: str) -> None:
    """Raise UserError unless a sampler can search these parameters.

    Args:
        where: names the space file.
    """
    if isinstance(sampler, GridSampler):
        for name, parameter in parameters.items():
            if parameter.values() is None:
                raise UserError(
                    f"{where}: parameters.{name}",
                    "has no end of values, and the sampler 'grid' tries them all",
                    fix="give it a 'step', or list its values as 'choices' of a categorical",
                )
    if isinstance(sampler, CmaEsSampler):
        numbers = [name for name, p in parameters.items() if p.type in ("float", "int") and not p.when]
        if len(numbers) < 2:
            raise UserError(
                f"{where}: sampler.name",
                "'cmaes' needs at least two float or int parameters without 'when'",
                got=numbers,
                fix="choose 'tpe', which models parameters of every kind",
            )

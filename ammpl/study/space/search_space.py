"""The space file: what is fixed, what is searched, how, for how long, and how the result is confirmed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
from pydantic import Field, ValidationError, field_validator

from ammpl.config import FIELD_NAMES, METHODS, Scalar, SeedConfig, TrialConfig, resolve
from ammpl.errors import UserError, did_you_mean, from_validation_error, shorten
from ammpl.study.space.budget import Budget
from ammpl.study.space.conditions import check_parameters_matter
from ammpl.study.space.named import Section, listed, read_named
from ammpl.study.space.parameters import Parameter, count_grid, field_type, read_parameter
from ammpl.study.space.pruners import PRUNERS, MedianPruner, Pruner
from ammpl.study.space.samplers import SAMPLERS, TWO_OBJECTIVES, Sampler, TpeSampler, check_sampler
from ammpl.study.trial import Direction
from ammpl.yaml_file import read_yaml

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # names of studies become names of folders
DEFAULT_TRIALS = 24  # of a search whose budget would not end it
MOST_COUNTED = 100_000  # combinations; a search that could draw more of them ends by its budget only
MOST_CORNERS = 512  # combinations of extreme values that are all tried before a study starts; beyond, a sample


class Objective(Section):
    """What is optimised.

    Attributes:
        metric: one that every evaluation during training reports; never one of the test split.
        direction: which values are better.
    """

    metric: str = Field("validation/accuracy", min_length=1, json_schema_extra={"not": {"pattern": "^test/"}})
    direction: Direction = "maximize"

    @field_validator("metric")
    @classmethod
    def _check(cls, metric: str) -> str:
        if metric.startswith("test/"):
            raise ValueError("tuning never sees the test split: choose a validation metric")
        return metric


class Confirm(Section):
    """What happens after the search.

    Attributes:
        top: how many of the best configurations are run again, on fresh repeats.
        repeats: how many fresh repeats each of them, and each baseline, gets.
        baselines: methods run on the same repeats with their published settings, untuned.
    """

    top: int = Field(3, ge=1)
    repeats: int = Field(3, ge=1)
    baselines: tuple[str, ...] = Field(("zero_shot", "coop"), json_schema_extra={"uniqueItems": True})

    @field_validator("baselines", mode="before")
    @classmethod
    def _check(cls, baselines: Any) -> Any:
        if not isinstance(baselines, list | tuple):
            return baselines
        for name in baselines:
            if not isinstance(name, str) or name not in METHODS:
                raise ValueError(f"{shorten(name)} is no method ({did_you_mean(str(name), METHODS)})")
        if len(set(baselines)) < len(baselines):
            raise ValueError("each baseline must be named once")
        return tuple(baselines)


class SearchSpace(Section):
    """A space file, checked as a whole: every configuration it can give is a valid one.

    Attributes:
        version: of the file format.
        kind: what tells a search from an ablation.
        name: names the study and its folder.
        description: the question, in words; MLflow and the report show it.
        method: what is tuned.
        seed: the study's seed: the sampler's, and with a repeat's number those of the trials. 0 is a seed like others.
        repeats: the listed repeats that the search runs each configuration on, one after the other; the objective is
            the mean over them, and with several the pruner is asked after each.
        fixed: values of a trial's fields by dotted name, over the method's settings.
        parameters: what is searched, by dotted name, in the order of the file.
        first: values of parameters that are tried first, as those of another study's winner; the rest is drawn.
        objective: what is optimised.
        second_objective: to trade off against ``objective``: the result is then the Pareto front of both.
        sampler: what draws configurations, by its name, with options of its own.
        pruner: what stops trials early, by its name, with options of its own.
        budget: what ends the search; without a rule that does, 24 trials.
        confirm: what follows the search; None ends the study with it.
    """

    version: Literal[1]
    kind: Literal["search"] = "search"
    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    method: str = "ammpl"
    seed: int = Field(0, ge=0, lt=2**32)
    repeats: tuple[int, ...] = Field((1,), json_schema_extra=listed(1))
    fixed: dict[str, Scalar] = Field(default_factory=dict)
    parameters: dict[str, Parameter]
    first: dict[str, Scalar] = Field(default_factory=dict)
    objective: Objective = Objective()
    second_objective: Objective | None = None
    sampler: Sampler = TpeSampler()
    pruner: Pruner = MedianPruner()
    budget: Budget = Budget(trials=DEFAULT_TRIALS)
    confirm: Confirm | None = Confirm()

    @field_validator("repeats", mode="before")
    @classmethod
    def _check_repeats(cls, repeats: Any) -> Any:
        if not isinstance(repeats, list | tuple):
            return repeats
        if not repeats or any(type(repeat) is not int or repeat < 0 for repeat in repeats):
            raise ValueError("must be a list of one or more numbers, each 0 or more, such as [1, 2, 3]")
        if len(set(repeats)) < len(repeats):
            raise ValueError("each repeat must be listed once")
        return tuple(repeats)

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, budget: Budget) -> Budget:
        return budget if budget.ends_search else budget.model_copy(update={"trials": DEFAULT_TRIALS})

    @property
    def directions(self) -> list[Direction]:
        """Of the objectives."""
        return [o.direction for o in (self.objective, self.second_objective) if o is not None]

    @cached_property
    def base(self) -> TrialConfig:
        """The configuration before any parameter is set."""
        return resolve(self.method, self.fixed)

    @cached_property
    def _base_values(self) -> dict[str, Scalar]:
        return self.base.flat()

    @property
    def search_size(self) -> int | None:
        """How many configurations the search draws at most: the budget's, or all of a smaller grid.

        Without a budget of trials as many as there are combinations, and None where they have no end.
        """
        trials = self.budget.trials
        finite = all(parameter.values() is not None for parameter in self.parameters.values())
        if self.sampler.name != "grid" and (trials is not None or not finite):
            return trials
        counted = count_grid(self.parameters, self._base_values, trials or MOST_COUNTED)
        return counted if trials is not None or counted < MOST_COUNTED else None

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
        """Draw the active parameters from an Optuna trial, in the order of the file."""
        return self._draw(lambda name, parameter: parameter.suggest(trial, name))

    def config(self, params: Mapping[str, Scalar], repeat: int) -> TrialConfig:
        """Return the complete configuration of one repeat.

        Raises:
            UserError: the values contradict each other.
        """
        seeds = SeedConfig.of_repeat(self.seed, repeat)
        config = resolve(self.method, {**self.fixed, **params}, f"{self.name}: parameters")
        return config.model_copy(update={"seeds": seeds})

    def baseline(self, method: str, repeat: int) -> TrialConfig:
        """Return another method's published configuration on this study's backbone and data."""
        shared = {n: v for n, v in self.fixed.items() if n.startswith(("data.", "backbone."))}
        config = resolve(method, shared, f"{self.name}: confirm.baselines")
        return config.model_copy(update={"seeds": SeedConfig.of_repeat(self.seed, repeat)})

    def fresh_repeats(self) -> list[int]:
        """Return the repeats of the confirmation: the next numbers that the search does not use."""
        wanted = self.confirm.repeats if self.confirm else 0
        unused = (number for number in itertools.count(1) if number not in self.repeats)
        return list(itertools.islice(unused, wanted))

    def extreme_configs(self) -> list[TrialConfig]:
        """Return few configurations that reach every extreme value: for checks that cost more than a look.

        All parameters at their first value, all at their last, then each choice of the categorical ones.
        """
        extremes = {name: parameter.extremes() for name, parameter in self.parameters.items()}
        corners = [self._draw(lambda name, _, i=i: extremes[name][i]) for i in (0, -1)]
        for searched, values in extremes.items():
            for value in values[1:-1]:
                one = {searched: value}
                corners.append(self._draw(lambda name, _, one=one: one.get(name, extremes[name][0])))
        configs = [self.config(params, self.repeats[0]) for params in corners]
        return list({config.sha256: config for config in configs}.values())

    def with_fixed(self, values: Mapping[str, Any], where: str) -> SearchSpace:
        """Return the space with some fixed values replaced; raises UserError as :func:`parse_space` does."""
        for name in values:
            if name in self.parameters:
                raise UserError(
                    f"{where}: {name}", "is searched by this space", fix="remove it from the file's 'parameters'"
                )
        space = self.model_copy(update={"fixed": {**self.fixed, **values}})
        space.check(where, where)
        return space

    def resolved(self) -> dict[str, Any]:
        """Return the space with every default written out, as plain data that :func:`parse_space` reads back.

        Fields that follow from a searched one (a method's epochs from searched shots) are left to follow.
        """
        corners = [self.config(params, self.repeats[0]).flat() for params in self._corners()]
        base = self._base_values
        steady = {name for name in FIELD_NAMES if all(corner[name] == base[name] for corner in corners)}
        written = [
            name
            for name in FIELD_NAMES
            if name not in self.parameters and (name in self.fixed or name in steady) and not set_elsewhere(name)
        ]
        data = self.model_dump(mode="json")
        data["fixed"] = {name: base[name] for name in written}
        data["parameters"] = {name: parameter.written() for name, parameter in self.parameters.items()}
        return data

    def check(self, where: str, fixed_where: str) -> None:
        """Raise UserError unless all names exist, conditions can hold, and extreme values give valid trials."""
        for name in self.fixed:
            check_name(name, f"{fixed_where}: {name}")
            if name in self.parameters:
                raise UserError(f"{where}: {name}", "must not be both fixed and searched")
        base = resolve(self.method, self.fixed, fixed_where).flat()
        if not self.parameters:
            raise UserError(f"{where}: parameters", "must name at least one parameter to search")
        earlier: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            check_name(name, f"{where}: parameters.{name}")
            for other, allowed in parameter.when.items():
                self._check_condition(f"{where}: parameters.{name}.when.{other}", other, allowed, earlier)
            earlier[name] = parameter
        for name, value in self.first.items():
            if name not in self.parameters:
                rule, fix = "is not searched", did_you_mean(name, self.parameters)
                raise UserError(f"{where}: first.{name}", rule, fix=fix)
            if not self.parameters[name].can_be(value):
                raise UserError(f"{where}: first.{name}", "the parameter does not take this value", got=value)
        check_parameters_matter(self.parameters, base, where)
        check_sampler(self.sampler, self.parameters, where)
        if self.second_objective is not None:
            self._check_two_objectives(where)
        for params in self._corners(base):
            at = ", ".join(f"{name} = {value!r}" for name, value in params.items())
            resolve(self.method, {**self.fixed, **params}, f"{where}: parameters, at {at}")
        for method in self.confirm.baselines if self.confirm else ():
            self.baseline(method, self.repeats[0])

    def _check_two_objectives(self, where: str) -> None:
        assert self.second_objective is not None
        if self.second_objective.metric == self.objective.metric:
            rule = "must be another metric than the objective's"
            raise UserError(f"{where}: second_objective", rule, got=self.objective.metric)
        if self.sampler.name not in TWO_OBJECTIVES:
            rule = f"'{self.sampler.name}' knows one objective, and there are two"
            raise UserError(f"{where}: sampler.name", rule, fix=f"one of {', '.join(TWO_OBJECTIVES)}")
        if self.pruner.name != "none":
            rule = "with two objectives nothing can be pruned (Optuna has no pruner for them)"
            raise UserError(f"{where}: pruner.name", rule, got=self.pruner.name, fix="write 'pruner: {name: none}'")
        for name in ("target", "patience"):
            if (value := getattr(self.budget, name)) is not None:
                raise UserError(f"{where}: budget.{name}", "is a rule for one objective, and there are two", got=value)
        if self.confirm is not None:
            rule = "with two objectives there is a front, and no best configuration to confirm"
            raise UserError(f"{where}: confirm", rule, fix="write 'confirm: null', and list several 'repeats'")

    def _check_condition(
        self, where: str, other: str, allowed: tuple[Scalar, ...], earlier: Mapping[str, Parameter]
    ) -> None:
        check_name(other, where)
        if other in self.parameters and other not in earlier:
            raise UserError(where, "is searched further down", fix="a condition looks back: move that parameter up")
        for value in allowed:
            try:
                field_type(other).validate_python(value, strict=True)
            except ValidationError as error:
                raise from_validation_error(error, where) from None
            if other in earlier and not earlier[other].can_be(value):
                raise UserError(where, "can never hold: the parameter does not take this value", got=value)

    def _draw(self, draw: Any, base: Mapping[str, Scalar] | None = None) -> dict[str, Scalar]:
        values = dict(base or self._base_values)
        params: dict[str, Scalar] = {}
        for name, parameter in self.parameters.items():
            if all(values[other] in allowed for other, allowed in parameter.when.items()):
                params[name] = values[name] = draw(name, parameter)
        return params

    def _corners(self, base: Mapping[str, Scalar] | None = None) -> Iterator[dict[str, Scalar]]:
        """Yield parameters at their extremes: all combinations where they are few, else each value and some more."""
        extremes = {name: parameter.extremes() for name, parameter in self.parameters.items()}
        combinations = 1
        for values in extremes.values():
            combinations *= len(values)
        if combinations <= MOST_CORNERS:
            for corner in itertools.product(*extremes.values()):
                chosen = dict(zip(extremes, corner, strict=True))
                yield self._draw(lambda name, _, chosen=chosen: chosen[name], base)
        else:
            dice = random.Random(0)
            for name, values in extremes.items():
                for value in values:
                    fixed = {name: value}
                    yield self._draw(lambda n, _, f=fixed: f[n] if n in f else dice.choice(extremes[n]), base)
            for _ in range(MOST_CORNERS):
                yield self._draw(lambda name, _: dice.choice(extremes[name]), base)


def set_elsewhere(name: str) -> bool:
    """Whether a field of the trial follows from the study's own keys."""
    return name == "method" or name.startswith("seeds.")


def check_name(name: str, where: str) -> None:
    """Raise UserError unless a space file may set this dotted name."""
    if name not in FIELD_NAMES:
        raise UserError(
            where, "unknown name", fix=did_you_mean(name, [n for n in FIELD_NAMES if not set_elsewhere(n)])
        )
    if name == "method":
        raise UserError(where, "the method is the study's own key", fix="write 'method:' at the top of the file")
    if set_elsewhere(name):
        raise UserError(where, "seeds come from the study's 'seed' and 'repeats'", fix="set those")


def option_names(**sections: type[Section]) -> list[str]:
    """Return the dotted names of some sections' options, for "did you mean"."""
    return [f"{name}.{option}" for name, section in sections.items() for option in section.model_fields]


def load_space(path: Path) -> SearchSpace:
    """Read a space file.

    Raises:
        UserError: the file is unreadable, no YAML, or breaks a rule; names file, field, rule, value and fix.
    """
    return parse_space(read_yaml(path), path.name)


def parse_space(raw: Any, where: str) -> SearchSpace:
    """Build a space from plain data; ``where`` names it in errors. Raises UserError as :func:`load_space`."""
    if raw is None:
        raise UserError(where, "is empty", fix="start from search_spaces/default.yaml")
    if not isinstance(raw, Mapping):
        raise UserError(where, "must be a mapping of keys such as 'name' and 'parameters'", got=raw)
    for key in raw:
        if key not in SearchSpace.model_fields:
            raise UserError(f"{where}: {key}", "unknown key", fix=did_you_mean(str(key), SearchSpace.model_fields))
    data = dict(raw)
    if isinstance(data.get("method"), str) and data["method"] not in METHODS:
        raise UserError(
            f"{where}: method", "is unknown", got=data["method"], fix=did_you_mean(str(data["method"]), METHODS)
        )
    named: dict[str, Mapping[str, type[Any]]] = {"sampler": SAMPLERS, "pruner": PRUNERS}
    for key, kinds in named.items():
        if key in data:
            data[key] = read_named(kinds, data[key], f"{where}: {key}")
    if isinstance(data.get("parameters"), Mapping):
        data["parameters"] = {
            name: read_parameter(parameter, f"{where}: parameters.{name}")
            for name, parameter in data["parameters"].items()
        }
    if data.get("fixed", {}) is None:  # "fixed:" with nothing under it
        data["fixed"] = {}
    try:
        space = SearchSpace.model_validate(data)
    except ValidationError as error:
        known = option_names(objective=Objective, second_objective=Objective, budget=Budget, confirm=Confirm)
        raise from_validation_error(error, where, known) from None
    space.check(where, f"{where}: fixed")
    return space

"""The space file of an ablation: named variants of one configuration, on the same data sets, shots and repeats."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from ammpl.config import FIELD_NAMES, METHODS, Scalar, SeedConfig, TrialConfig, resolve
from ammpl.errors import UserError, did_you_mean, from_validation_error, shorten
from ammpl.study.space.budget import Budget
from ammpl.study.space.named import Section, listed
from ammpl.study.space.search_space import (
    NAME_PATTERN,
    Objective,
    SearchSpace,
    check_name,
    option_names,
    set_elsewhere,
)
from ammpl.study.trial import Direction

CROSSED = {"datasets": "data.name", "shots": "data.shots"}
"""A key of the file that lists several values, and the field of the trial that gets one after the other."""

VARIANT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}"  # a variant's name becomes part of its trials' folders
_VARIANTS: dict[str, JsonValue] = {"minProperties": 2, "propertyNames": {"pattern": f"^{VARIANT_PATTERN}$"}}


@dataclass(frozen=True)
class Varied:
    """A field that some variant sets, with the value it has in each variant; what the records ask a parameter."""

    values: tuple[Scalar, ...]
    type: Literal["varied"] = "varied"

    def extremes(self) -> list[Scalar]:
        """Return the values that occur."""
        return list(self.values)


@dataclass(frozen=True)
class Setting:
    """Where variants are compared.

    Attributes:
        dataset: None in what is over all data sets.
    """

    dataset: str | None
    shots: int


@dataclass(frozen=True)
class Cell:
    """A variant on one repeat of a data set at a number of shots: one trial."""

    variant: str
    setting: Setting
    repeat: int


class AblationSpace(Section):
    """The space file of an ablation, checked as a whole: every variant resolves to a configuration of its own.

    Attributes:
        version: of the file format.
        kind: what tells an ablation from a search.
        name: names the study and its folder.
        description: the question, in words; MLflow and the report show it.
        method: what the variants vary. One that sets a ``method`` of its own has that method's settings; of ``fixed``
            it takes data and backbone alone, as baselines of a search do.
        seed: the study's seed; with a repeat's number it gives a trial's seeds, the same for all variants.
        fixed: values of a trial's fields by dotted name, over the method's settings.
        reference: the variant that the others are compared with.
        variants: by name, in the order of the table, what each sets over ``fixed``; nothing for ``{}``.
        datasets: what all variants run on, one after the other; None for ``data.name`` alone.
        shots: likewise; None for ``data.shots`` alone.
        only: the variants, or single trials of theirs such as ``learned-r3``, that run; None for all of them. A rerun
            of a part of an ablation has it.
        repeats: the numbers of the repeats, at least two; a number is the data seed that all variants share.
        objective: what is compared.
        budget: ends it before all its trials have run; by default there is none.
        test: whether each complete trial is tested once at the end; otherwise the test split stays sealed.
        smallest_effect: what the reference should be better by, in the objective's unit, for the difference to matter;
            verdicts are by it. None declares nothing, and there are none.
        family: the variants whose comparisons with the reference are corrected together; None for all of them.
    """

    version: Literal[1]
    kind: Literal["ablation"]
    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    method: str = "ammpl"
    seed: int = Field(0, ge=0, lt=2**32)
    fixed: dict[str, Scalar] = Field(default_factory=dict)
    reference: str
    variants: dict[str, dict[str, Scalar]] = Field(json_schema_extra=_VARIANTS)
    datasets: tuple[str, ...] | None = Field(None, json_schema_extra=listed(1, type="string"))
    shots: tuple[int, ...] | None = Field(None, json_schema_extra=listed(1, type="integer", minimum=1))
    only: tuple[str, ...] | None = Field(None, json_schema_extra=listed(1, type="string"))
    repeats: tuple[int, ...] = Field((1, 2, 3, 4, 5), json_schema_extra=listed(2))
    objective: Objective = Objective()
    budget: Budget = Budget()
    test: bool = False
    smallest_effect: float | None = Field(None, gt=0)
    family: tuple[str, ...] | None = Field(None, json_schema_extra=listed(1, type="string"))

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, budget: Budget) -> Budget:
        for name in ("target", "patience"):
            if getattr(budget, name) is not None:
                raise ValueError(f"'{name}' belongs to a search: an ablation compares all its variants")
        return budget

    @field_validator("variants", mode="before")
    @classmethod
    def _check_variants(cls, variants: Any) -> Any:
        if not isinstance(variants, Mapping):
            return variants
        if len(variants) < 2:
            raise ValueError("must name at least two variants, the reference among them")
        for name in variants:
            if not isinstance(name, str) or not re.fullmatch(VARIANT_PATTERN, name):
                raise ValueError(
                    f"{shorten(name)} cannot name a variant: at most 40 letters, digits and . _ + -, "
                    "the first a letter or digit"
                )
        if len({name.lower() for name in variants}) < len(variants):
            raise ValueError("variants must differ in more than upper and lower case: their names become folders")
        # "reference:" with nothing after it sets nothing.
        return {name: {} if overrides is None else overrides for name, overrides in variants.items()}

    @field_validator("datasets", "shots", mode="before")
    @classmethod
    def _check_crossed(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        if not values:
            raise ValueError("must list at least one; without the key it is the fixed value alone")
        if len(set(map(str, values))) < len(values):
            raise ValueError("must differ: what runs twice is no second observation")
        return tuple(values)

    @field_validator("repeats", mode="before")
    @classmethod
    def _check_repeats(cls, repeats: Any) -> Any:
        if not isinstance(repeats, list | tuple):
            return repeats
        if any(type(repeat) is not int or repeat < 0 for repeat in repeats):
            raise ValueError("must be whole numbers, 0 or more")
        if len(repeats) < 2:
            raise ValueError("must be at least two: one has no spread, so no interval")
        if len(set(repeats)) < len(repeats):
            raise ValueError("must differ: a repeat run twice is no second observation")
        return tuple(repeats)

    @field_validator("only", "family", mode="before")
    @classmethod
    def _check_named(cls, variants: Any) -> Any:
        if not isinstance(variants, list | tuple):
            return variants
        if not variants:
            raise ValueError("must name at least one variant; without the key all are in it")
        if len(set(map(str, variants))) < len(variants):
            raise ValueError("each variant must be named once")
        return tuple(variants)

    @property
    def base(self) -> TrialConfig:
        """The reference's configuration, on the first repeat."""
        return self.config(self.reference, self.repeats[0])

    @property
    def settings(self) -> list[Setting]:
        """Where variants are compared, in the order in which they run."""
        config = self.base.data
        datasets, shots = self.datasets or (config.name,), self.shots or (config.shots,)
        return [Setting(dataset, count) for dataset, count in itertools.product(datasets, shots)]

    def cells(self) -> Iterator[Cell]:
        """Yield every trial in order: repeats outside, so that what is interrupted has whole pairs."""
        for repeat, setting, variant in itertools.product(self.repeats, self.settings, self.variants):
            cell = Cell(variant, setting, repeat)
            if self.only is None or variant in self.only or self.trial_name(cell) in self.only:
                yield cell

    def trial_name(self, cell: Cell) -> str:
        """Return a name for one trial, such as ``learned-r3``; its key has the phase before it."""
        return f"{self.cell_name(cell.variant, cell.setting)}-r{cell.repeat}"

    def cell_name(self, variant: str, setting: Setting) -> str:
        """Return a name for folders and figures: ``learned``, or ``learned@dtd@16shots`` of what the file crosses."""
        dataset = [_short(setting.dataset or f"{len(self.datasets or ())}datasets")] if self.datasets else []
        return "@".join([variant, *dataset, *([f"{setting.shots}shots"] if self.shots else [])])

    def judged_by(self, metric: str) -> tuple[Direction, float | None]:
        """Return which values of a metric are better, and what the reference should be better by.

        The smallest effect is of the objective and of accuracies, not of what has another unit: None there.
        """
        if metric == self.objective.metric:
            return self.objective.direction, self.smallest_effect
        return "maximize", self.smallest_effect if metric.endswith(("accuracy", "harmonic_mean")) else None

    @cached_property
    def parameters(self) -> dict[str, Varied]:
        """Every field that some variant sets, in the order of the file."""
        rows = [self.params(variant, setting) for setting in self.settings for variant in self.variants]
        return {name: Varied(tuple(row[name] for row in rows)) for name in rows[0]}

    def params(self, variant: str, setting: Setting | None = None) -> dict[str, Scalar]:
        """Return a variant's value of every field that some variant sets: what tells it from the others."""
        values = self.config(variant, self.repeats[0], setting).flat()
        return {name: values[name] for overrides in self.variants.values() for name in overrides}

    def config(self, variant: str, repeat: int, setting: Setting | None = None) -> TrialConfig:
        """Return the complete configuration of a variant on a repeat; None is the first setting.

        Raises:
            UserError: the values contradict each other.
        """
        return self._resolve(variant, repeat, setting, self.name)

    def with_fixed(self, values: Mapping[str, Any], where: str) -> AblationSpace:
        """Return the space with some fixed values replaced; raises UserError as :func:`parse_ablation` does.

        A data set or a number of shots takes the place of those that the file lists.
        """
        for name in values:
            setting = [variant for variant, overrides in self.variants.items() if name in overrides]
            if setting:
                raise UserError(f"{where}: {name}", f"is what the variants vary ({', '.join(setting)})")
        instead = [key for key, name in CROSSED.items() if name in values]
        space = self.model_copy(update={"fixed": {**self.fixed, **values}, **dict.fromkeys(instead)})
        space.check(where, where)
        return space

    def resolved(self) -> dict[str, Any]:
        """Return the space with every default written out, as plain data that :func:`parse_ablation` reads back.

        Fields that differ between variants without being set by them (they follow from others, or from what is
        crossed) are left to follow, as are those of variants with a method of their own.
        """
        configs = [
            self.config(variant, self.repeats[0], setting).flat()
            for setting in self.settings
            for variant in self.variants
        ]
        own = [config for config in configs if config["method"] == self.method] or configs
        crossed = {name for key, name in CROSSED.items() if getattr(self, key)}
        same = {
            name
            for name in FIELD_NAMES
            if all(config[name] == own[0][name] for config in (configs if _is_shared(name) else own))
        }
        data = self.model_dump(mode="json")
        data["fixed"] = {
            name: self.fixed.get(name, own[0][name])
            for name in FIELD_NAMES
            if (name in self.fixed or name in same) and not set_elsewhere(name) and name not in crossed
        }
        return data

    def check(self, where: str, fixed_where: str) -> None:
        """Raise UserError unless all names exist and every variant is valid and different from the others."""
        for name in self.fixed:
            check_name(name, f"{fixed_where}: {name}")
        for key, name in CROSSED.items():
            places = ["fixed"] if name in self.fixed else []
            places += [f"variants.{variant}" for variant, overrides in self.variants.items() if name in overrides]
            if getattr(self, key) and places:
                raise UserError(f"{where}: {key}", f"lists what {places[0]} sets too: {name}", fix="keep one of them")
        names = [_short(dataset) for dataset in self.datasets or ()]
        if len(set(names)) < len(names):
            raise UserError(f"{where}: datasets", "must differ in their last part: it becomes part of folders' names")
        if self.reference not in self.variants:
            raise UserError(
                f"{where}: reference",
                "must be one of the variants",
                got=self.reference,
                fix=did_you_mean(self.reference, self.variants),
            )
        cells = itertools.product(self.variants, self.settings, self.repeats) if self.only else ()
        trials = {self.trial_name(Cell(*cell)) for cell in cells}
        for name in self.only or ():
            if name not in self.variants and name not in trials:
                rule = "must name variants, or trials such as learned-r3"
                raise UserError(f"{where}: only", rule, got=name, fix=did_you_mean(name, self.variants))
        others = [variant for variant in self.variants if variant != self.reference]
        for name in self.family or ():
            if name not in others:
                rule = "must name variants other than the reference"
                raise UserError(f"{where}: family", rule, got=name, fix=did_you_mean(name, others))
        for variant, overrides in self.variants.items():
            for name in overrides:
                if name != "method":
                    check_name(name, f"{where}: variants.{variant}: {name}")
            self._resolve(variant, self.repeats[0], None, f"{where}: variants.{variant}")
        for setting in self.settings:
            known: dict[str, str] = {}
            for variant in self.variants:
                at = f", at {setting.dataset} with {setting.shots} shots" if self.datasets or self.shots else ""
                config = self._resolve(variant, self.repeats[0], setting, f"{where}: variants.{variant}{at}")
                same = known.setdefault(config.sha256, variant)
                if same != variant:
                    raise UserError(f"{where}: variants.{variant}", f"is the same configuration as '{same}'")

    def _resolve(self, variant: str, repeat: int, setting: Setting | None, where: str) -> TrialConfig:
        overrides = dict(self.variants[variant])
        method = str(overrides.pop("method", self.method))
        fixed = self.fixed
        if method != self.method:
            fixed = {name: value for name, value in fixed.items() if _is_shared(name)}
        # Without a setting the first one: what a variant sets itself stays.
        crossed: dict[str, Scalar] = {}
        if self.datasets:
            crossed["data.name"] = setting.dataset if setting else self.datasets[0]
        if self.shots:
            crossed["data.shots"] = setting.shots if setting else self.shots[0]
        config = resolve(method, {**fixed, **crossed, **overrides}, where)
        return config.model_copy(update={"seeds": SeedConfig.of_repeat(self.seed, repeat)})


def _is_shared(name: str) -> bool:
    """Whether variants of other methods take a fixed value, too."""
    return name.startswith(("data.", "backbone."))


def _short(dataset: str) -> str:
    """Return a data set's name, or the last part of its path, as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", Path(dataset).name) or "data"


def parse_ablation(raw: Mapping[Any, Any], where: str) -> AblationSpace:
    """Build the space of an ablation from plain data; ``where`` names it in errors.

    Raises:
        UserError: it breaks a rule; names field, rule, value and fix.
    """
    for key in raw:
        if key in SearchSpace.model_fields and key not in AblationSpace.model_fields:
            raise UserError(f"{where}: {key}", "belongs to a search, and this is an ablation", fix="remove it")
        if key not in AblationSpace.model_fields:
            raise UserError(f"{where}: {key}", "unknown key", fix=did_you_mean(str(key), AblationSpace.model_fields))
    data = dict(raw)
    if isinstance(data.get("method"), str) and data["method"] not in METHODS:
        fix = did_you_mean(data["method"], METHODS)
        raise UserError(f"{where}: method", "is unknown", got=data["method"], fix=fix)
    if data.get("fixed", {}) is None:  # "fixed:" with nothing under it
        data["fixed"] = {}
    try:
        space = AblationSpace.model_validate(data)
    except ValidationError as error:
        raise from_validation_error(error, where, option_names(objective=Objective, budget=Budget)) from None
    space.check(where, f"{where}: fixed")
    return space

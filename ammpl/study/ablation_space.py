"""The space file of an ablation: named variants of one configuration, each on the same repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from ammpl.config import FIELD_NAMES, METHODS, Scalar, SeedConfig, TrialConfig, resolve
from ammpl.errors import UserError, did_you_mean, from_validation_error, shorten
from ammpl.study.budget import Budget
from ammpl.study.named import Section
from ammpl.study.space import NAME_PATTERN, Objective, SearchSpace, check_name, option_names, set_elsewhere

VARIANT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}"  # a variant's name becomes part of its trials' folders


@dataclass(frozen=True)
class Varied:
    """A field that some variant sets, with the value it has in each variant; what the records ask a parameter."""

    values: tuple[Scalar, ...]
    type: Literal["varied"] = "varied"

    def extremes(self) -> list[Scalar]:
        """Return the values that occur."""
        return list(self.values)


class AblationSpace(Section):
    """The space file of an ablation, checked as a whole: every variant resolves to a configuration of its own.

    Attributes:
        version: of the file format.
        name: names the study and its folder.
        method: what every variant varies, a key of :data:`ammpl.config.METHODS`.
        seed: the study's seed; with a repeat's number it gives a trial's seeds, the same for all variants.
        fixed: values of a trial's fields by dotted name, over the method's settings.
        reference: the variant that the others are compared with.
        variants: by name, in the order of the table, what each sets over ``fixed``; nothing for ``{}``.
        repeats: the numbers of the repeats, at least two; a number is the data seed that all variants share.
        budget: ends it before all its trials have run; by default there is none.
        test: whether each complete trial is tested once at the end; otherwise the test split stays sealed.
        smallest_effect: what the reference should be better by, in the objective's unit, for the difference to matter;
            a report judges by it. None declares nothing, and there are no verdicts.
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
    variants: dict[str, dict[str, Scalar]]
    repeats: tuple[int, ...] = (1, 2, 3, 4, 5)
    objective: Objective = Objective()
    budget: Budget = Budget()
    test: bool = False
    smallest_effect: float | None = Field(None, gt=0)
    family: tuple[str, ...] | None = None

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

    @field_validator("family", mode="before")
    @classmethod
    def _check_family(cls, family: Any) -> Any:
        if not isinstance(family, list | tuple):
            return family
        if not family:
            raise ValueError("must name at least one variant; without the key all are in it")
        if len(set(map(str, family))) < len(family):
            raise ValueError("each variant must be named once")
        return tuple(family)

    @property
    def base(self) -> TrialConfig:
        """The reference's configuration, on the first repeat."""
        return self.config(self.reference, self.repeats[0])

    @cached_property
    def parameters(self) -> dict[str, Varied]:
        """Every field that some variant sets, in the order of the file."""
        names = dict.fromkeys(name for overrides in self.variants.values() for name in overrides)
        rows = [self.params(variant) for variant in self.variants]
        return {name: Varied(tuple(row[name] for row in rows)) for name in names}

    def params(self, variant: str) -> dict[str, Scalar]:
        """Return a variant's value of every field that some variant sets: what tells it from the others."""
        values = self.config(variant, self.repeats[0]).flat()
        return {name: values[name] for overrides in self.variants.values() for name in overrides}

    def config(self, variant: str, repeat: int) -> TrialConfig:
        """Return the complete configuration of a variant on a repeat.

        Raises:
            UserError: the values contradict each other.
        """
        return self._resolve(variant, repeat, self.name)

    def with_fixed(self, values: Mapping[str, Any], where: str) -> AblationSpace:
        """Return the space with some fixed values replaced; raises UserError as :func:`parse_ablation` does."""
        for name in values:
            setting = [variant for variant, overrides in self.variants.items() if name in overrides]
            if setting:
                raise UserError(f"{where}: {name}", f"is what the variants vary ({', '.join(setting)})")
        space = self.model_copy(update={"fixed": {**self.fixed, **values}})
        space.check(where, where)
        return space

    def resolved(self) -> dict[str, Any]:
        """Return the space with every default written out, as plain data that :func:`parse_ablation` reads back.

        Fields that differ between variants without being set by them (they follow from others) are left to follow.
        """
        configs = [self.config(variant, self.repeats[0]).flat() for variant in self.variants]
        same = {name for name in FIELD_NAMES if all(config[name] == configs[0][name] for config in configs)}
        data = self.model_dump(mode="json")
        data["fixed"] = {
            name: self.fixed.get(name, configs[0][name])
            for name in FIELD_NAMES
            if (name in self.fixed or name in same) and not set_elsewhere(name)
        }
        return data

    def check(self, where: str, fixed_where: str) -> None:
        """Raise UserError unless all names exist and every variant is valid and different from the others."""
        for name in self.fixed:
            check_name(name, f"{fixed_where}: {name}")
        if self.reference not in self.variants:
            raise UserError(
                f"{where}: reference",
                "must be one of the variants",
                got=self.reference,
                fix=did_you_mean(self.reference, self.variants),
            )
        others = [variant for variant in self.variants if variant != self.reference]
        for name in self.family or ():
            if name not in others:
                rule = "must name variants other than the reference"
                raise UserError(f"{where}: family", rule, got=name, fix=did_you_mean(name, others))
        known: dict[str, str] = {}
        for variant, overrides in self.variants.items():
            for name in overrides:
                check_name(name, f"{where}: variants.{variant}: {name}")
            config = self._resolve(variant, self.repeats[0], f"{where}: variants.{variant}")
            same = known.setdefault(config.sha256, variant)
            if same != variant:
                raise UserError(f"{where}: variants.{variant}", f"is the same configuration as '{same}'")

    def _resolve(self, variant: str, repeat: int, where: str) -> TrialConfig:
        config = resolve(self.method, {**self.fixed, **self.variants[variant]}, where)
        return config.model_copy(update={"seeds": SeedConfig.of_repeat(self.seed, repeat)})


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

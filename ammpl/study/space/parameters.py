"""What a space searches over: float, int and categorical parameters, each with its conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, Self

import optuna
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from ammpl.config import Scalar, TrialConfig
from ammpl.errors import UserError, did_you_mean, from_validation_error


class _Parameter(BaseModel):
    """A searched field of the trial.

    Attributes:
        when: dotted names and the values (one, or a list of alternatives) under which the parameter is active; the
            names are of fixed or default values, or of parameters further up. An inactive one keeps its fixed value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    when: dict[str, tuple[Scalar, ...]] = {}

    @field_validator("when", mode="before")
    @classmethod
    def _alternatives(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        for name, allowed in when.items():
            if isinstance(allowed, list) and not allowed:
                raise ValueError(f"the alternatives for {name!r} are an empty list: the condition can never hold")
        return {n: tuple(allowed) if isinstance(allowed, list | tuple) else (allowed,) for n, allowed in when.items()}

    def written(self) -> dict[str, Any]:
        """Return the parameter as a space file has it, every default written out."""
        data = self.model_dump(mode="json")
        when = data.pop("when")
        if when:
            data["when"] = {name: allowed[0] if len(allowed) == 1 else allowed for name, allowed in when.items()}
        return data


_NO_STEP: dict[str, JsonValue] = {"low": {"exclusiveMinimum": 0}, "step": {"enum": [None, 1]}}


class _Range(_Parameter):
    """A range of numbers.

    Attributes:
        low: the lowest value.
        high: the highest one, which can be drawn too.
        log: draw on a logarithmic scale; ``low`` is above 0 then, and there is no ``step``.
        step: draw from ``low``, ``low`` + ``step``, ... up to ``high`` only.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"log": {"const": True}}, "required": ["log"]},
            "then": {"properties": _NO_STEP},
        }
    )

    def _check_range(self, low: float, high: float, log: bool, step: float | None) -> None:
        if low >= high:
            raise ValueError(f"'low' must be below 'high', got {low} and {high} (a constant belongs in 'fixed')")
        if log and low <= 0:
            raise ValueError(f"'log: true' needs 'low' above 0, got {low}")
        if step is not None:
            if step <= 0:
                raise ValueError(f"'step' must be above 0, got {step}")
            if log and step != 1:
                raise ValueError("'step' and 'log: true' exclude each other")
            steps = (high - low) / step
            if not math.isclose(steps, round(steps), rel_tol=0, abs_tol=1e-8):
                raise ValueError(f"'high' must be 'low' plus a multiple of 'step', got {low} to {high} by {step}")


class FloatParameter(_Range):
    """A real number in [low, high], uniform, on a logarithmic scale with ``log``, on a grid with ``step``."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, json_schema_extra={"exclusiveMinimum": 0})

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_range(self.low, self.high, self.log, self.step)
        if self.log and self.step is not None:
            raise ValueError("'step' and 'log: true' exclude each other")
        return self

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Draw a value."""
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def extremes(self) -> list[Scalar]:
        """Return the values that must all be valid before a study starts."""
        return [self.low, self.high]

    def values(self) -> Sequence[Scalar] | None:
        """Return every value on the grid of ``step``, None without one. As Optuna counts: in decimals."""
        if self.step is None:
            return None
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        return [float(low + i * step) for i in range(int((Decimal(str(self.high)) - low) / step) + 1)]

    def can_be(self, value: Scalar) -> bool:
        """Return whether the parameter may take this value."""
        return isinstance(value, int | float) and self.low <= value <= self.high


class IntParameter(_Range):
    """A whole number in [low, high], on a logarithmic scale with ``log``, every ``step``-th otherwise."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    step: int = Field(1, json_schema_extra={"exclusiveMinimum": 0})

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_range(self.low, self.high, self.log, self.step)
        return self

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> int:
        """Draw a value."""
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def extremes(self) -> list[Scalar]:
        """Return the values that must all be valid before a study starts."""
        return [self.low, self.high]

    def values(self) -> Sequence[Scalar]:
        """Return every value."""
        return range(self.low, self.high + 1, self.step)

    def can_be(self, value: Scalar) -> bool:
        """Return whether the parameter may take this value."""
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0


class CategoricalParameter(_Parameter):
    """One of at least two listed values.

    Attributes:
        choices: the values.
    """

    type: Literal["categorical"] = "categorical"
    choices: tuple[Scalar, ...] = Field(json_schema_extra={"minItems": 2, "uniqueItems": True})

    @field_validator("choices", mode="before")
    @classmethod
    def _check(cls, choices: Any) -> Any:
        if not isinstance(choices, list | tuple):
            return choices
        if len(choices) < 2:
            raise ValueError("needs at least two choices (a constant belongs in 'fixed')")
        for index, choice in enumerate(choices):
            if choice in choices[:index]:  # 1 and 1.0 and true are one choice to Python, and so to Optuna
                raise ValueError(f"{choice!r} is listed twice")
        return tuple(choices)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Scalar:
        """Draw a value."""
        return trial.suggest_categorical(name, self.choices)

    def extremes(self) -> list[Scalar]:
        """Return the values that must all be valid before a study starts."""
        return list(self.choices)

    def values(self) -> Sequence[Scalar]:
        """Return every value."""
        return self.choices

    def can_be(self, value: Scalar) -> bool:
        """Return whether the parameter may take this value."""
        return value in self.choices


Parameter = FloatParameter | IntParameter | CategoricalParameter

PARAMETERS: dict[str, type[Parameter]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}


def read_parameter(raw: Any, where: str) -> Parameter:
    """Build a parameter from ``{type, ...}``. Raises UserError for an unknown type or key, or a bad value."""
    if isinstance(raw, _Parameter):
        return raw  # type: ignore[return-value]
    if not isinstance(raw, Mapping) or "type" not in raw:
        raise UserError(where, "must be a mapping with a 'type'", got=raw, fix="{type: float, low: 0.1, high: 2.0}")
    kind = raw["type"]
    if not isinstance(kind, str) or kind not in PARAMETERS:
        raise UserError(f"{where}.type", "is unknown", got=kind, fix=did_you_mean(str(kind), PARAMETERS))
    try:
        return PARAMETERS[kind].model_validate(dict(raw))
    except ValidationError as error:
        raise from_validation_error(error, where, PARAMETERS[kind].model_fields) from None


def count_grid(parameters: Mapping[str, Parameter], base: Mapping[str, Scalar], most: int) -> int:
    """Return how many different combinations finite parameters have, counting no further than ``most``.

    Args:
        base: the values that conditions see where no parameter is active, by dotted name.
    """

    def combinations(names: Sequence[str], known: Mapping[str, Scalar]) -> Iterator[None]:
        if not names:
            yield None
            return
        name, *rest = names
        parameter = parameters[name]
        active = all(known[other] in allowed for other, allowed in parameter.when.items())
        for value in (parameter.values() or ()) if active else (known[name],):
            yield from combinations(rest, {**known, name: value})

    return sum(1 for _ in islice(combinations(list(parameters), base), most))


@cache
def field_type(name: str) -> TypeAdapter[Any]:
    """Return a validator of one field of the trial, by its dotted name."""
    model: Any = TrialConfig
    *parents, leaf = name.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    field = model.model_fields[leaf]
    return TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # a type made at run time

"""One trial's whole configuration, and how it is built from dotted names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import ValidationError, field_validator, model_validator

from ammpl.config.methods import METHODS
from ammpl.config.sections import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    Scalar,
    Section,
    SeedConfig,
    TrainingConfig,
)
from ammpl.errors import UserError, did_you_mean, from_validation_error

Chosen = TypeVar("Chosen", DataConfig, BackboneConfig)


class TrialConfig(Section):
    """One trial, complete: two equal configurations give the same numbers on the same machine.

    Build it with :func:`resolve`, which knows each method's published settings.
    """

    method: str = "ammpl"
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig(steps=100)
    seeds: SeedConfig = SeedConfig()

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in METHODS:
            raise UserError("method", "unknown method", got=method, fix=did_you_mean(method, METHODS))
        return method

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = self.flat()
        for name, allowed in METHODS[self.method].defining.items():
            if values[name] not in allowed:
                raise ValueError(
                    f"method {self.method!r} is defined by {name} = {' or '.join(map(repr, allowed))}, "
                    f"got {values[name]!r}: use method 'ammpl' to combine freely"
                )
        if self.model.text.context == "class" and self.data.task != "all":
            raise ValueError(
                f"model.text.context 'class' has no context for new classes, and data.task is {self.data.task!r}: "
                "use 'shared'"
            )
        learns_image = (
            self.model.mask.kind in ("learned", "binary")
            or (self.model.mask.kind == "random" and self.model.padding.content in ("learned+text", "learned", "text"))
            or self.model.tokens.kind == "visual"
        )
        learns_more = METHODS[self.method].model is not None
        if self.model.text.context == "fixed" and not (learns_image or learns_more) and self.training.steps != 0:
            raise ValueError("nothing is learned here (text fixed, no mask, no tokens): set training.steps to 0")
        return self

    def flat(self) -> dict[str, Scalar]:
        """Return all values by dotted name, in declaration order."""
        return dict(_flatten(self.model_dump()))

    def canonical_json(self) -> str:
        """Return the one JSON text of this configuration: sorted keys, no spaces."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        """The identity of the configuration: the hash of its canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def with_values(self, values: Mapping[str, Any], where: str = "trial") -> TrialConfig:
        """Return this configuration with some dotted names changed, checked again as a whole."""
        return _build({**self.flat(), **values}, where)


def resolve(method: str, values: Mapping[str, Any], where: str = "trial") -> TrialConfig:
    """Build a configuration: field defaults, then the method's published settings, then ``values``.

    Args:
        method: a key of :data:`METHODS`.
        values: dotted names and their values.
        where: what is being read, for error texts (``default.yaml: fixed``).

    Raises:
        UserError: unknown method or name, wrong type or range, or values that contradict each other.

    Examples:
        >>> resolve("coop", {"data.shots": 1}).training.epochs
        50
    """
    if method not in METHODS:
        raise UserError(f"{where}: method", "unknown method", got=method, fix=did_you_mean(method, METHODS))
    chosen = METHODS[method]
    layered: dict[str, Any] = {"method": method, **FIELD_DEFAULTS}
    layered.update({name: allowed[0] for name, allowed in chosen.defining.items()})
    layered.update(chosen.published(_section(DataConfig, values), _section(BackboneConfig, values)))
    # The two budgets exclude each other, and so do a phrase and a length: naming one takes the other's default back.
    for name, other in (("training.steps", "training.epochs"), ("training.epochs", "training.steps")):
        if values.get(name) is not None and other not in values:
            layered[other] = None
            if name == "training.steps" and layered["training.schedule"] == "coop":
                layered["training.schedule"] = "cosine"
    if layered["model.text.init"] == "random" and values.get("model.text.init", "random") != "random":
        layered["model.text.length"] = None
    layered.update({"method": method, **values})
    return _build(layered, where)


def _section(section: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Return what the values say of data or backbone; defaults where that is not valid, which :func:`_build` tells."""
    prefix = {DataConfig: "data.", BackboneConfig: "backbone."}[section]
    named = {name.removeprefix(prefix): value for name, value in values.items() if str(name).startswith(prefix)}
    try:
        return section.model_validate(named)
    except ValidationError:
        return section()


def _build(flat: Mapping[str, Any], where: str) -> TrialConfig:
    """Validate dotted names and values as a TrialConfig."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if not isinstance(name, str) or name not in FIELD_NAMES:
            raise UserError(f"{where}: {name}", "unknown name", fix=did_you_mean(str(name), FIELD_NAMES))
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise from_validation_error(error, where, FIELD_NAMES) from None


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Scalar]]:
    pairs: list[tuple[str, Scalar]] = []
    for key, value in nested.items():
        name = prefix + key
        pairs += _flatten(value, name + ".") if isinstance(value, dict) else [(name, value)]
    return pairs


FIELD_DEFAULTS: dict[str, Scalar] = TrialConfig().flat()
"""Every dotted name of a trial with its default, in declaration order."""

FIELD_NAMES: tuple[str, ...] = tuple(FIELD_DEFAULTS)

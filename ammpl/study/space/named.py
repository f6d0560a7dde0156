"""Sections of a space file, and those that choose one of several kinds by its ``name`` and give its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from ammpl.errors import UserError, did_you_mean, from_validation_error


class Section(BaseModel):
    """A part of a space file: typed, frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def listed(least: int, **items: JsonValue) -> dict[str, JsonValue]:
    """Return what the JSON Schema of a list adds whose validator wants ``least`` different things, numbers from 0 up.

    Args:
        items: what is said of each of them instead.
    """
    return {"minItems": least, "uniqueItems": True, "items": items or {"type": "integer", "minimum": 0}}


class NamedOptions(Section):
    """One kind with its options; a subclass's ``name`` is the word that chooses it."""


Kind = TypeVar("Kind", bound=NamedOptions)


def by_name(*kinds: type[Kind]) -> dict[str, type[Kind]]:
    """Return classes by the word that chooses each."""
    return {kind.model_fields["name"].default: kind for kind in kinds}


def read_named(kinds: Mapping[str, type[Kind]], raw: Any, where: str) -> Kind:
    """Build the one of ``kinds`` that ``raw['name']`` chooses, from its options.

    Raises:
        UserError: an unknown name or option, or a bad value; names field, rule, value and fix.
    """
    for kind in kinds.values():
        if isinstance(raw, kind):
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

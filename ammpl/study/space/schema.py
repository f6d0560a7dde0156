"""The JSON Schema of a space file, by which editors complete and check it; made from the definitions that read it.

What it cannot say are rules between values, such as that ``low`` is below ``high``: reading the file says those.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ammpl.config import FIELD_DEFAULTS, FIELD_NAMES, METHODS, TrialConfig
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import Budget
from ammpl.study.space.parameters import PARAMETERS, field_type
from ammpl.study.space.pruners import PRUNERS
from ammpl.study.space.samplers import SAMPLERS, TWO_OBJECTIVES
from ammpl.study.space.search_space import Confirm, Objective, SearchSpace, set_elsewhere

Schema = dict[str, Any]

SETTABLE = tuple(name for name in FIELD_NAMES if not set_elsewhere(name))
"""The dotted names that a space file may set."""


def schema_text() -> str:
    """Return the schema as JSON text, a definition a line."""
    schema = space_schema()
    definitions = schema.pop("definitions")
    lines = [f"{json.dumps(name)}: {json.dumps(text, ensure_ascii=False)}" for name, text in definitions.items()]
    head = json.dumps(schema, indent=1).removesuffix("\n}")
    return f'{head},\n "definitions": {{\n  ' + ",\n  ".join(lines) + "\n }\n}\n"


def space_schema() -> Schema:
    """Return the schema of a space file of either kind: JSON Schema draft 7, which editors know best."""
    values = {name: _ref(name) for name in SETTABLE}
    named = {"fixed": {**_mapping(values), "type": ["object", "null"]}, "method": _ref("method")}
    variant = {**_mapping({"method": _ref("method"), **values}), "type": ["object", "null"], "allOf": _defining()}
    definitions: dict[str, Schema] = {
        "search": model_schema(
            SearchSpace,
            parameters={**_mapping({name: parameter_schema(name) for name in SETTABLE}), "minProperties": 1},
            first=_mapping(values),
            sampler=_chosen("name", {name: _ref(kind.__name__) for name, kind in SAMPLERS.items()}),
            pruner=_chosen("name", {name: _ref(kind.__name__) for name, kind in PRUNERS.items()}),
            **named,
        ),
        "ablation": model_schema(AblationSpace, variants={"additionalProperties": variant}, **named),
        "method": {"enum": sorted(METHODS)},
        "when": _mapping({name: _one_or_several(value) for name, value in values.items()}),
        **{section.__name__: model_schema(section) for section in (Objective, Budget)},
        "Confirm": model_schema(Confirm, baselines={"items": _ref("method")}),
        **{kind.__name__: model_schema(kind, when=_ref("when")) for kind in PARAMETERS.values()},
        **{kind.__name__: model_schema(kind) for kind in SAMPLERS.values()},
        **{kind.__name__: model_schema(kind) for kind in PRUNERS.values()},
        **{name: field_schema(name) for name in SETTABLE},
    }
    inner = {name: _ref(kind.__name__) for name, kind in PRUNERS.items() if name not in ("patient", "none")}
    definitions["PatientPruner"]["properties"]["inner"]["anyOf"] = [_chosen("name", inner), {"type": "null"}]
    budget = definitions["ablation"]["properties"]["budget"]
    budget["allOf"] = [{"$ref": budget.pop("$ref")}, _WITHOUT_AN_OBJECTIVE]
    for kind in PARAMETERS.values():  # editors show the innermost description, and it is the field's that is wanted
        definitions[kind.__name__].pop("description")
    definitions["search"]["allOf"] = [_TWO_OBJECTIVES, _GRID, *_defining("fixed")]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A space file of AMMPL Study",
        "type": "object",
        "if": {"properties": {"kind": {"const": "ablation"}}, "required": ["kind"]},
        "then": _ref("ablation"),
        "else": _ref("search"),
        "definitions": definitions,
    }


_WITHOUT_AN_OBJECTIVE = {"properties": {"target": {"type": "null"}, "patience": {"type": "null"}}}

_TWO_OBJECTIVES = {
    "if": {"properties": {"second_objective": {"type": "object"}}, "required": ["second_objective"]},
    "then": {
        "properties": {
            "sampler": {"properties": {"name": {"enum": list(TWO_OBJECTIVES)}}},
            "pruner": {"properties": {"name": {"const": "none"}}},
            "budget": _WITHOUT_AN_OBJECTIVE,
            "confirm": {"type": "null"},
        },
        "required": ["pruner", "confirm"],
    },
}

_GRID = {
    "if": {"properties": {"sampler": {"properties": {"name": {"const": "grid"}}}}, "required": ["sampler"]},
    "then": {
        "properties": {
            "parameters": {
                "additionalProperties": {
                    "if": {"properties": {"type": {"const": "float"}}},
                    "then": {"properties": {"step": {"type": "number"}}, "required": ["step"]},
                }
            }
        }
    },
}


def _defining(key: str | None = None) -> list[Schema]:
    """Return what makes methods true to their names: the values that each allows, below ``key`` where one is given."""
    rules = []
    for name, method in METHODS.items():
        if not method.defining:
            continue
        allowed = {field: {"enum": list(values)} for field, values in method.defining.items()}
        then = {"properties": allowed if key is None else {key: {"properties": allowed}}}
        rules.append({"if": {"properties": {"method": {"const": name}}, "required": ["method"]}, "then": then})
    return rules


def model_schema(model: type[BaseModel], **changes: Schema) -> Schema:
    """Return the schema of a section, each key with its meaning; ``changes`` say more of some keys."""
    schema = model.model_json_schema(ref_template="#/definitions/{model}")
    schema.pop("$defs", None)
    texts = meanings(model)
    for name, key in schema["properties"].items():
        if texts.get(name):
            key["description"] = texts[name]
        if name in changes:
            kept = ("default", "description", "minItems", "minProperties", "propertyNames", "type", "uniqueItems")
            schema["properties"][name] = {**{word: key[word] for word in kept if word in key}, **changes[name]}
    schema["description"] = _plain((inspect.getdoc(model) or "").partition("\n\n")[0])
    untitled: Schema = _without_titles(schema)
    return untitled


def field_schema(name: str) -> Schema:
    """Return the schema of one field of the trial, by its dotted name."""
    owner: Any = TrialConfig
    *parents, leaf = name.split(".")
    for parent in parents:
        owner = owner.model_fields[parent].annotation
    schema = {**field_type(name).json_schema(), "default": FIELD_DEFAULTS[name]}
    untitled: Schema = _without_titles({**schema, "description": meanings(owner)[leaf]})
    return untitled


def parameter_schema(name: str) -> Schema:
    """Return the schema of what may be searched for a field: a range where it takes numbers, choices for each."""
    schema = field_schema(name)
    types = {part.get("type") for part in (schema, *schema.get("anyOf", ()))}
    ranges = [*(["float"] if "number" in types else []), *(["int"] if types & {"number", "integer"} else [])]
    bounds = {"properties": {"low": _ref(name), "high": _ref(name)}}
    choices = {"properties": {"choices": {"items": _ref(name)}}}
    kinds = {**dict.fromkeys(ranges, bounds), "categorical": choices}
    return {
        "description": schema["description"],
        **_chosen("type", {kind: {"allOf": [_ref(PARAMETERS[kind].__name__), kinds[kind]]} for kind in kinds}),
    }


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the "Attributes" of a class and its bases say, by name."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        _, _, attributes = (inspect.cleandoc(part.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            found[name] = _plain(text)
    return found


def _plain(text: str) -> str:
    """Return a docstring's text as a space file's reader has it: without markup, in YAML's words."""
    text = re.sub(r"\bNone\b", "null", text)
    text = re.sub(r":\w+:`~?([^`]*)`", lambda role: role[1].rpartition(".")[2], text)
    words = " ".join(text.replace("``", "").split())
    return words[:1].upper() + words[1:]


def _without_titles(schema: Any) -> Any:
    """Return a schema without the titles that pydantic makes of names."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _mapping(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _one_or_several(value: Schema) -> Schema:
    return {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _chosen(key: str, kinds: Mapping[str, Schema]) -> Schema:
    """Return the schema of a mapping whose ``key`` chooses what else it has."""
    return {
        "type": "object",
        "properties": {key: {"enum": list(kinds)}},
        "required": [key],
        "allOf": [
            {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": kind}
            for name, kind in kinds.items()
        ],
    }

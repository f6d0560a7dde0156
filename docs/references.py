"""The references that are made from the code when the site is built: what a space file may say, and the commands."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

Schema = Mapping[str, Any]


def commands() -> str:
    """Return the help of every command, as Markdown."""
    from ammpl.cli import COMMANDS, TUNE

    os.environ["COLUMNS"] = "80"  # argparse asks the terminal else
    parts = []
    for name, command in {"": TUNE, **COMMANDS}.items():
        parts += [f"## `{f'tune.py {name}'.rstrip()}`", f"~~~text\n{command.parser(name).format_help()}~~~"]
    return "\n\n".join(parts)


def space() -> str:
    """Return every key of a space file with its values, default and meaning, as Markdown."""
    from ammpl.study.space.parameters import PARAMETERS
    from ammpl.study.space.pruners import PRUNERS
    from ammpl.study.space.samplers import SAMPLERS
    from ammpl.study.space.schema import SETTABLE, space_schema

    known: dict[str, Schema] = space_schema()["definitions"]
    parts = []
    for title, name in {
        "A search": "search",
        "An ablation": "ablation",
        "objective": "Objective",
        "budget": "Budget",
        "confirm": "Confirm",
    }.items():
        parts += [f"## {title}", known[name]["description"], _table(known[name]["properties"], known[name])]
    for title, kinds in (("parameters", PARAMETERS), ("sampler", SAMPLERS), ("pruner", PRUNERS)):
        parts.append(f"## {title}")
        for name, kind in kinds.items():
            keys = dict(known[kind.__name__]["properties"])
            keys.pop("name", None)
            parts += [
                f"### `{name}`",
                (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("``", "`"),
                _table(keys, known[kind.__name__]),
            ]
    parts += ["## Fields of a trial", _FIELDS]
    sections: dict[str, list[str]] = {}
    for name in SETTABLE:
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    for section, names in sections.items():
        parts += [f"### {section}", _table({name: known[name] for name in names}, {}, matters=True)]
    return "\n\n".join(part for part in parts if part)


_FIELDS = (
    "What `fixed`, `parameters`, `first`, a variant and `--set` name. Defaults are AMMPL's; other "
    "[methods](../method.md#the-other-methods) have published settings of their own."
)


_ELSEWHERE = {
    "budget": "[budget](#budget)",
    "sampler": "[sampler](#sampler)",
    "pruner": "[pruner](#pruner)",
    "parameters": "[fields](#fields-of-a-trial), each with a [range or choices](#parameters)",
    "fixed": "[fields](#fields-of-a-trial) with values",
    "first": "[fields](#fields-of-a-trial) with values",
    "variants": "names, each with [fields](#fields-of-a-trial) and their values",
    "when": "[fields](#fields-of-a-trial), each with a value or a list of values",
}
"""Keys whose values are mappings that are told of elsewhere on the page."""


def _table(keys: Mapping[str, Schema], owner: Schema, matters: bool = False) -> str:
    from ammpl.study.space.conditions import MATTERS

    rows = []
    for name, key in keys.items():
        text = str(key.get("description", ""))
        if matters and name in MATTERS:
            needs = (f"`{other}` {_listed(values)}" for other, values in MATTERS[name].items())
            text += f" Matters with {' and '.join(needs)} only."
        default = "required" if name in owner.get("required", ()) else _default(key)
        rows.append(f"| `{name}` | {_ELSEWHERE.get(name) or _values(key)} | {default} | {text} |")
    return "\n".join(["| key | values | default | |", "|---|---|---|---|", *rows]) if rows else ""


def _default(key: Schema) -> str:
    if "const" in key or "default" not in key:
        return ""
    if isinstance(key["default"], dict):
        return "see there" if key["default"] else "none"
    return f"`{json.dumps(key['default'])}`"


def _values(key: Schema) -> str:
    """Return what a key may hold, in words."""
    parts = [part for part in key.get("anyOf", ()) if "properties" not in part]
    if parts:
        inner = {name: value for name, value in key.items() if name not in ("anyOf", "default")}
        return " or ".join(dict.fromkeys(_values({**inner, **part}) for part in parts))
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        return _listed(key["enum"])
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        return (
            "a [method](../method.md#the-other-methods)" if name == "method" else f"[{name.lower()}](#{name.lower()})"
        )
    kind = key.get("type")
    if kind in ("integer", "number"):
        bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{sign} {key[word]}" for word, sign in bounds.items() if word in key]
        return " ".join([{"integer": "whole number", "number": "number"}[kind], ", ".join(limits)]).strip()
    if kind == "array":
        return f"list of {_values(key.get('items', {}))}"
    return {"boolean": "`true`, `false`", "string": "text", "null": "`null`"}.get(str(kind), "mapping")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value if isinstance(value, str) else json.dumps(value)}`" for value in values)

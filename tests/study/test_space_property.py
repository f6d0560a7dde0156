"""No space file crashes the parser: it gives a space, or a message that names the file.

A hundred files of each kind; ten thousand in all with

    AMMPL_EXAMPLES=3400 python -m pytest tests/study/test_space_property.py
"""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ammpl.config import FIELD_NAMES
from ammpl.errors import UserError
from ammpl.study.space.parameters import PARAMETERS
from ammpl.study.space.pruners import PRUNERS
from ammpl.study.space.samplers import SAMPLERS
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import parse_study_space
from ammpl.yaml_file import dump_yaml, parse_yaml

EXAMPLES = int(os.environ.get("AMMPL_EXAMPLES", "100"))
files = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="AMMPL_EXAMPLES" not in os.environ,  # CI sees the same files each time
    suppress_health_check=list(HealthCheck),
    database=None,
)

VALID: dict[str, Any] = {
    "version": 1,
    "name": "s",
    "description": "what this asks",
    "method": "ammpl",
    "seed": 3,
    "repeats": [1],
    "fixed": {"data.shots": 4, "model.mask.scope": "task", "training.steps": 20},
    "parameters": {
        "model.mask.kind": {"type": "categorical", "choices": ["learned", "binary"]},
        "model.mask.temperature": {
            "type": "float", "low": 0.1, "high": 2.0, "log": True, "when": {"model.mask.kind": "learned"},
        },
        "model.padding.depth": {"type": "int", "low": 1, "high": 4, "step": 1},
    },
    "objective": {"metric": "validation/accuracy", "direction": "maximize"},
    "sampler": {"name": "tpe", "startup_trials": 3},
    "pruner": {"name": "patient", "patience": 2, "inner": {"name": "median", "warmup_steps": 5}},
    "budget": {"trials": 5},
    "confirm": {"top": 1, "repeats": 2, "baselines": ["coop"]},
}  # fmt: skip

_words = st.sampled_from(
    [
        *FIELD_NAMES,
        *SearchSpace.model_fields,
        *PARAMETERS,
        *PRUNERS,
        *SAMPLERS,
        "type",
        "low",
        "high",
        "choices",
        "when",
        "learned",
        "binary",
        "none",
        "kind",
        "ablation",
        "variants",
        "reference",
        "time",
        "trials",
        "step",
        "log",
        "<<",
    ]
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0, 1, -1])
    | st.floats()
    | st.text(max_size=12)
    | _words
)
_keys = st.text(max_size=8) | _words | st.integers() | st.booleans() | st.none() | st.floats()
_data = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=5),
    max_leaves=20,
)


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in nested data, the whole first."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(found for key, value in pairs for found in _places(value, (*path, key)))]


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid space file with one to three places replaced, removed, renamed, or joined by something new."""
    data = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        *parents, leaf = draw(st.sampled_from(_places(data)[1:]))
        place: Any = data
        for key in parents:
            place = place[key]
        kind = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if kind == "replace":
            place[leaf] = draw(_scalars | _data)
        elif kind == "remove" and len(data) > 1:
            del place[leaf]
        elif isinstance(place, dict):
            place[draw(_keys)] = place.pop(leaf) if kind == "rename" else draw(_data)
        if not data:
            break
    return data


_text = st.text(max_size=200) | st.lists(
    st.sampled_from([*":-[]{},#&*!|>'\"%@`? \n\t", "\n  ", ": ", "- ", "0x", "1e", "..", "---\n", "version: 1\n", "~"])
    | _words
    | st.text(max_size=4),
    max_size=40,
).map("".join)


def _read(raw: Any) -> None:
    try:
        parse_study_space(raw, "s.yaml").resolved()
    except UserError as error:
        assert str(error).startswith("s.yaml")


@files
@given(_data)
def test_nested_data(raw: Any) -> None:
    _read(raw)


@files
@given(_mutated())
def test_a_valid_file_with_something_changed(raw: Any) -> None:
    _read(raw)


@files
@given(_text | _mutated().map(dump_yaml))
def test_text(text: str) -> None:
    try:
        raw = parse_yaml(text, "s.yaml")
    except UserError as error:
        assert str(error).startswith("s.yaml")
    else:
        _read(raw)

"""The JSON Schema that editors read: as shipped, it takes what the program takes and refuses what it can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given

import ammpl
from ammpl import cli
from ammpl.config import FIELD_NAMES
from ammpl.errors import UserError
from ammpl.study.space.schema import SETTABLE, schema_text
from ammpl.study.space.space_file import parse_study_space, read_space
from ammpl.yaml_file import parse_yaml, read_yaml
from tests import test_bad_input, test_config
from tests.study import test_ablation_space, test_samplers_and_pruners, test_space, test_start, test_two_objectives
from tests.study.fakes import ABLATION, small_space
from tests.study.test_space_property import _mutated, files

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(ammpl.__file__).parent / "assets" / "space.schema.json"
VALIDATOR = jsonschema.Draft7Validator(json.loads(SHIPPED.read_text(encoding="utf-8")))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))

# Mistakes that a schema cannot know, by a part of their message: JSON Schema compares no values with each other.
BEYOND: dict[str, str] = {
    "must not be both fixed and searched": "two keys of one name in different mappings",
    "'low' must be below 'high'": "two values compared",
    "'high' must be 'low' plus a multiple of 'step'": "arithmetic",
    "must be a finite number": "JSON has no NaN to refuse",
    "the parameter does not take this value": "a condition against another parameter's range",
    "is searched further down": "the order of keys",
    "'max_resource' must be at least": "two values compared",
    "reference: must be one of the variants": "a value that names a key",
    "only: must name variants": "a value that names a key",
    "family: must name variants": "a value that names a key",
    "variants: 1 cannot name a variant": "JSON's keys are texts",
    "must differ in more than upper and lower case": "keys compared with each other",
    "is the same configuration as": "what configurations come to",
    "datasets: must differ in their last part": "parts of values compared",
    "lists what fixed sets too": "two mappings compared",
    "lists what variants.x sets too": "two mappings compared",
    "must be another metric than the objective's": "two values compared",
    "'cmaes' needs at least two float or int parameters": "counting",
    "'lower' must not be above 'upper'": "two values compared",
    "give either 'steps' or 'epochs'": "methods bring either",
    "'schedule: coop' is stepped by the epoch": "methods bring either",
    "adds to a learned text context": "switches of several sections",
    "'init: random' needs a 'length'": "a length may be searched",
    "needs mask.kind 'none' and interaction.direction 'none'": "switches of several sections",
    "'candidates' spares": "switches of several sections",
    "no context for new classes": "switches of several sections",
    "nothing is learned here": "switches of several sections",
    "can never matter": "what a parameter needs of others",
    "none is ever active": "what conditions come to",
    "its conditions can never hold together": "what conditions come to",
}


def _mistakes() -> Iterator[tuple[str, Any]]:
    """Yield (message, space) of every bad space of the tests that is YAML."""
    small = small_space().model_dump(mode="json", exclude={"parameters"})
    small["parameters"] = {name: parameter.written() for name, parameter in small_space().parameters.items()}
    for path, value, text in test_space.MISTAKES:
        if text is not None:
            yield text, test_space._with(path, value)
    for changes, text in test_ablation_space.MISTAKES:
        yield text, {**ABLATION, **changes}
    for changes, text in test_two_objectives.MISTAKES:
        yield text, {**small, **test_two_objectives.TWO, **changes}
    for changes, text in test_samplers_and_pruners.MISTAKES:
        yield text, {**small, **changes}
    for changes, text in test_start.MISTAKES:
        yield text, {**small, "first": changes}
    for method, values, text in test_config.MISTAKES:
        yield text, {**test_space.RAW, "method": method, "fixed": values}
    for old, new, text in test_bad_input.MISTAKES:
        try:
            yield text, parse_yaml(test_bad_input.SPACE.replace(old, new), "space.yaml")
        except UserError:
            continue
    for raw in (None, [], "text", 3, {}):
        yield "no space at all", raw
    for required in ("version", "name", "parameters"):
        yield f"{required}: is required", {key: value for key, value in test_space.RAW.items() if key != required}


def test_the_shipped_file_is_what_the_definitions_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert SHIPPED.read_text(encoding="utf-8") == schema_text(), f"python tune.py schema > {SHIPPED.relative_to(ROOT)}"
    jsonschema.Draft7Validator.check_schema(VALIDATOR.schema)
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text()


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_it_takes_every_saved_space_and_that_names_it(path: Path) -> None:
    VALIDATOR.validate(read_yaml(path))
    VALIDATOR.validate(read_space(path).resolved())
    head = path.read_text(encoding="utf-8").splitlines()[0]
    assert head == "# yaml-language-server: $schema=../ammpl/assets/space.schema.json"


@pytest.mark.parametrize(("message", "raw"), [pytest.param(*case, id=case[0][:60]) for case in _mistakes()])
def test_it_refuses_every_bad_space_of_the_tests(message: str, raw: Any) -> None:
    beyond = any(part in message for part in BEYOND)
    assert VALIDATOR.is_valid(raw) == beyond  # what it learns to refuse leaves the list


def test_no_reason_is_left_over() -> None:
    messages = [message for message, _ in _mistakes()]
    assert [part for part in BEYOND if not any(part in message for message in messages)] == []


@files
@given(_mutated())
def test_it_takes_whatever_the_program_takes(raw: Any) -> None:
    try:
        parse_study_space(raw, "s.yaml")
    except UserError:
        return
    VALIDATOR.validate(raw)


def test_every_key_says_what_it_means() -> None:
    definitions = VALIDATOR.schema["definitions"]
    assert set(SETTABLE) == {name for name in FIELD_NAMES if name != "method" and not name.startswith("seeds.")}
    lacking = [name for name in SETTABLE if not definitions[name]["description"]]
    for section in ("search", "ablation", "Objective", "Budget", "Confirm", "FloatParameter", "CategoricalParameter"):
        keys = definitions[section]["properties"].items()
        lacking += [f"{section}.{name}" for name, key in keys if "const" not in key and not key.get("description")]
    assert lacking == []

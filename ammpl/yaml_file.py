"""YAML as this project reads and writes it: plain data, YAML 1.2's scalars, every key once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ammpl.errors import UserError

LARGEST_FILE = 1 << 20  # bytes; a space file has a few kilobytes
DEEPEST = 20  # levels; a space file has four
LARGEST_NUMBER_BITS = 4096


class _Loader(yaml.SafeLoader):
    """Builds plain data only: no tag runs code."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    number: int = loader.construct_yaml_int(node)
    if number.bit_length() > LARGEST_NUMBER_BITS:  # hexadecimal ones could have more digits than Python prints
        raise yaml.constructor.ConstructorError(None, None, "a number with too many digits", node.start_mark)
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever _Loader would otherwise read as something else."""


# PyYAML follows YAML 1.1, where 1e-3 is a text and "no" is false; people who write a learning rate mean 1.2.
_NUMBER = re.compile(r"^[-+]?(?:[0-9][0-9_]*)?\.?[0-9]+(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+\.(?:[eE][-+]?[0-9]+)?$")
for _tool in (_Loader, _Dumper):
    _tool.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _tool.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    _tool.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as plain data.

    Raises:
        UserError: the file is missing, unreadable, over 1 MiB, not UTF-8, not YAML, nested too deeply, uses tags or
            aliases, or gives a key twice.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)  # a device says that it is empty, and never ends
        if len(content) > LARGEST_FILE:
            size = max(len(content), path.stat().st_size)
            raise UserError(str(path), f"must be smaller than {LARGEST_FILE} bytes", got=size)
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"must be UTF-8 text ({error.reason} at byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return the plain data that a YAML text holds; ``where`` names it in errors. Raises as :func:`read_yaml`."""
    try:
        _check_events(text, where)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise UserError(place, f"is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(where, f"is not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, OverflowError) as error:  # PyYAML's own constructors, on numbers such as 0b2
        raise UserError(where, f"is not valid YAML: {error}") from None


def _check_events(text: str, where: str) -> None:
    """Refuse what a space file never needs and what could exhaust the machine: aliases, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(where, "must not use YAML aliases ('*name')", fix="write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise UserError(where, f"is nested too deeply (more than {DEEPEST} levels)")


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text that :func:`parse_yaml` reads back equal, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)

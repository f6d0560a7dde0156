"""The community's split files, and the rules that three lists of named pictures obey wherever they come from.

A ``split_zhou_*.json`` is one object with the keys ``train``, ``val`` and ``test``; each is a list of
``[path, label, class name]`` (docs/data.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ammpl.data.listing import SplitName
from ammpl.errors import UserError

KEYS: dict[SplitName, str] = {"train": "train", "validation": "val", "test": "test"}

# What could lead out of the folder of pictures on some system, or could not be written down: a drive or a leading
# slash, a backslash, NUL, half a surrogate pair (a file name that is not UTF-8), parts that are empty, '.' or '..'.
_ODD_PATH = re.compile(r"^.?:|[\\\0\ud800-\udfff]|(?:^|/)\.{0,2}(?:/|\Z)")


class Entry(NamedTuple):
    """One picture as a list names it.

    Attributes:
        path: relative to the folder of pictures, with forward slashes.
        label: 0-based.
        name: of the class, underscores still in it.
    """

    path: str
    label: int
    name: str


Lists = Mapping[SplitName, Sequence[Entry]]


def read_split_file(file: Path) -> Lists:
    """Read the three lists of a split file in its own order; :func:`class_names` holds them to the rules.

    Raises:
        UserError: not such a file; with the entry (``train[3]``, counted from 0), the rule and the value.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"must be UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        rule = f"must be JSON ({error.msg} at line {error.lineno})"
        raise UserError(str(file), rule, fix="download it again") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(str(file), f"must be JSON that Python can hold ({type(error).__name__})") from error
    if not isinstance(content, dict) or not set(KEYS.values()) <= set(content):  # other keys say nothing of pictures
        got = list(content) if isinstance(content, dict) else content
        raise UserError(str(file), "must be one object with the keys train, val and test", got=got)
    return {split: list(_entries(content[key], f"{file}: {key}")) for split, key in KEYS.items()}


def _entries(rows: Any, where: str) -> Iterator[Entry]:
    if not isinstance(rows, list):
        raise UserError(where, "must be a list of [path, label, class name]", got=rows)
    for number, row in enumerate(rows):
        if not isinstance(row, list) or [type(value) for value in row] != [str, int, str]:  # true is no number here
            raise UserError(
                f"{where}[{number}]", "must be [path, label, class name]: text, whole number, text", got=row
            )
        yield Entry(*row)


def class_names(lists: Lists, where: str, *, defining: SplitName = "train", repeated: bool = False) -> tuple[str, ...]:
    """Return the class names in the order of their labels, as prompts write them, of lists that obey the rules.

    Underscores become spaces.

    Args:
        lists: what to hold to the rules.
        where: the file or rule that made them, for messages.
        defining: the list whose labels and names are the classes; the test list where there is no other.
        repeated: labels may share a name: CLIP's names for ImageNet have two missiles and two sunglasses.

    Raises:
        UserError: no pictures, labels with gaps, two names for one label, two labels for one name, a label that the
            defining list lacks, or a path that could leave the folder of pictures.
    """
    classes = f"{where}: {KEYS[defining]}"
    names: dict[int, str] = {}
    for entry in lists[defining]:
        names.setdefault(entry.label, _prompted(entry.name))
    if not names:
        raise UserError(classes, "names no picture")
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            raise UserError(classes, f"labels must be 0, 1, 2, ...; none is {expected}, and there is one", got=label)
    first: dict[str, int] = {}
    for label, name in sorted(names.items()):
        if not name.strip() or not name.isprintable():
            raise UserError(classes, f"the name of label {label} must be a printable text", got=name)
        if first.setdefault(name, label) != label and not repeated:
            raise UserError(classes, f"labels {first[name]} and {label} have one name", got=name)
    for split, entries in lists.items():
        for number, entry in enumerate(entries):
            if rule := _broken_rule(entry, names):
                raise UserError(f"{where}: {KEYS[split]}[{number}]", rule, got=list(entry))
    return tuple(names[label] for label in range(len(names)))


def _prompted(name: str) -> str:
    return name.replace("_", " ")


def _broken_rule(entry: Entry, names: Mapping[int, str]) -> str | None:
    if _ODD_PATH.search(entry.path):
        return "the path must be relative, with forward slashes, without '.', '..' or empty parts, in UTF-8"
    if entry.label not in names:
        return "the label is not among the classes"
    if names[entry.label] != _prompted(entry.name):
        return f"label {entry.label} has the name {names[entry.label]!r} elsewhere"
    return None

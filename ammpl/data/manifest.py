"""A table of a user's own pictures: one row each, in CSV or Parquet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ammpl.data.listing import SplitName
from ammpl.data.split_file import Entry, Lists
from ammpl.errors import UserError, did_you_mean

MANIFESTS = (".csv", ".parquet")
COLUMNS = ("path", "label", "class_name", "split")
REQUIRED = ("path", "class_name")
LIST_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""What people call the three lists."""


class _Row(NamedTuple):
    place: str
    path: str
    name: str
    label: int | None
    split: SplitName


def read_manifest(file: Path) -> Lists:
    """Read the lists of a manifest in its own order. Lists that it does not name are absent.

    Columns: ``path``, from the manifest's folder, with forward slashes; ``class_name``; ``label``, 0, 1, 2, ...,
    without which the sorted names are numbered; ``split``, without which all rows are training. Others are ignored.

    Raises:
        UserError: not such a table; with the row, counted from 1 after the header, the rule and the value.
    """
    if file.suffix.lower() not in MANIFESTS:
        raise UserError(str(file), f"must be a folder, or a manifest: {' or '.join(MANIFESTS)}")
    columns = _columns(_table(file), file)
    unset = [None] * len(columns["path"])
    rows = [
        _row(f"{file} row {number}", *values, labelled="label" in columns, divided="split" in columns)
        for number, values in enumerate(zip(*(columns.get(name, unset) for name in COLUMNS), strict=True), start=1)
    ]
    _refuse_repeated(rows)
    numbers = {name: number for number, name in enumerate(sorted({row.name for row in rows}))}
    lists: dict[SplitName, list[Entry]] = {}
    for row in rows:
        label = numbers[row.name] if row.label is None else row.label
        lists.setdefault(row.split, []).append(Entry(row.path, label, row.name))
    return lists


def _table(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() == ".parquet":
            return pa.parquet.ParquetFile(file).read()
        # Class 007 keeps its zeros, also where blanks follow the header's commas.
        texts = {blank + name: pa.string() for name in (*COLUMNS, "class name") for blank in ("", " ")}
        in_order = pa.csv.ReadOptions(use_threads=False)  # then a message names the row
        return pa.csv.read_csv(file, in_order, convert_options=pa.csv.ConvertOptions(column_types=texts))
    except pa.ArrowException as error:
        kind, reason = file.suffix.upper().removeprefix("."), " ".join(str(error).split())
        raise UserError(str(file), f"cannot be read as {kind} ({reason})") from error


def _columns(table: pa.Table, file: Path) -> dict[str, list[Any]]:
    """Return column -> values, of the columns that count."""
    known = [name.strip().replace(" ", "_") for name in table.column_names]
    for name in COLUMNS:
        if known.count(name) > 1:
            raise UserError(str(file), "has a column twice", got=name)
        if name in REQUIRED and name not in known:
            got = table.column_names
            fix = "separate columns by commas" if len(got) == 1 else f"name the columns {', '.join(COLUMNS)}"
            raise UserError(str(file), f"must have a column {name}", got=got, fix=fix)
    return {name: table.column(known.index(name)).to_pylist() for name in COLUMNS if name in known}


def _row(place: str, path: Any, label: Any, name: Any, split: Any, *, labelled: bool, divided: bool) -> _Row:
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{place}: path", "must be a text", got=path)
    path = path.strip().removeprefix("./")
    if path.startswith("/") or re.search(r"^.?:|\\|(?:^|/)\.{0,2}(?:/|$)", path):
        rule = "must lead from the manifest's folder to a picture in it, with forward slashes and without '.' or '..'"
        raise UserError(f"{place}: path", rule, got=path)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place}: class_name", "must be a text", got=name)
    number = re.fullmatch(r"(0|[1-9][0-9]{0,5})(?:\.0+)?", str(label).strip())  # pandas writes 1.0 for 1
    if labelled and number is None:
        raise UserError(f"{place}: label", "must be 0, 1, 2, ...", got=label, fix="fill it, or leave the column out")
    found: SplitName | None = LIST_NAMES.get(str(split).strip().lower()) if divided else "train"
    if found is None:
        rule = f"must be {', '.join(LIST_NAMES)}"
        raise UserError(f"{place}: split", rule, got=split, fix=did_you_mean(str(split), LIST_NAMES))
    return _Row(place, path, name.strip(), int(number[1]) if labelled and number else None, found)


def _refuse_repeated(rows: Sequence[_Row]) -> None:
    """Raise UserError for a picture with two rows, a label with two names or a name with two labels."""
    paths: dict[str, _Row] = {}
    names: dict[int, _Row] = {}
    labels: dict[str, _Row] = {}
    for row in rows:
        first = paths.setdefault(row.path, row)
        if first is not row:
            raise UserError(f"{row.place}: path", f"is that of {_short(first)} too", got=row.path)
        if row.label is None:
            continue
        first = names.setdefault(row.label, row)
        if first.name != row.name:
            raise UserError(
                f"{row.place}: class_name", f"label {row.label} is {first.name!r} in {_short(first)}", got=row.name
            )
        first = labels.setdefault(row.name, row)
        if first.label != row.label:
            raise UserError(f"{row.place}: label", f"{row.name!r} is {first.label} in {_short(first)}", got=row.label)


def _short(row: _Row) -> str:
    return row.place[row.place.rindex("row ") :]

"""A table of a user's own pictures: one row each, in CSV or Parquet."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ammpl.data.listing import Item, Listing, SplitName
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


def read_manifest(file: Path) -> tuple[Lists, tuple[str, ...]]:
    """Read the lists of a manifest in its own order, and what was read otherwise than it stands there.

    Lists that it does not name are absent. Columns: ``path``, from the manifest's folder, with forward slashes;
    ``class_name``; ``label``, 0, 1, 2, ..., without which the sorted names are numbered; ``split``, without which all
    rows are training. Others are ignored.

    Raises:
        UserError: not such a table; with the row, counted from 1 after the header, the rule and the value.
    """
    if file.suffix.lower() not in MANIFESTS:
        raise UserError(str(file), f"must be a folder, or a manifest: {' or '.join(MANIFESTS)}")
    columns = _columns(_table(file), file)
    unset = [None] * len(columns["path"])
    notes: Counter[str] = Counter()
    columns["path"] = [_relative(path, file.parent, notes) for path in columns["path"]]
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
    return lists, tuple(f"{file.name}: {note}: {count} of {len(rows)}" for note, count in notes.items())


def located(listing: Listing, manifest: Path) -> tuple[Listing, tuple[str, ...]]:
    """Return lists whose files are called as they are on the disk, ``1.jpg`` where ``1.JPG`` is listed, and a note.

    Raises:
        UserError: not one picture is there; it says where they seem to be.
    """
    folder, files = listing.folder, _Files(listing.folder)
    lists = (listing.train, listing.validation, listing.test)
    train, validation, test = (tuple(Item(files.name_of(path), label) for path, label in items) for items in lists)
    listed = [item.path for items in lists for item in items]
    if not files.there:
        fix = f"paths start at {folder}"
        if (folder.parent / listed[0]).exists():
            fix += f", and the pictures are below {folder.parent}: move the manifest there"
        for below in sorted(path for path in folder.iterdir() if (path / listed[0]).exists()):
            fix += f", and the pictures are below {below}: move the manifest there"
        raise UserError(str(manifest), f"none of its {len(listed)} pictures is there", got=listed[0], fix=fix)
    if not files.renamed:
        return listing, ()
    count = f"{len(files.renamed)} {'file has' if len(files.renamed) == 1 else 'files have'}"
    return replace(listing, train=train, validation=validation, test=test), (
        f"{manifest.name}: {count} other capitals than listed, such as {files.renamed[0]}",
    )


class _Files:
    """The files of the folders that a manifest names, each folder listed once."""

    def __init__(self, folder: Path):
        self.there = 0
        self.renamed: list[str] = []
        self._folder = folder
        self._names: dict[str, dict[str, list[str]]] = {}  # folder -> name in lower case -> names

    def name_of(self, path: str) -> str:
        """Return a path, with the capitals of its file where one alone is meant."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            self._names[folder] = {}
            with contextlib.suppress(OSError):  # which the store will tell, picture by picture
                for found in (self._folder / folder).iterdir():
                    self._names[folder].setdefault(found.name.lower(), []).append(found.name)
        alike = self._names[folder].get(name.lower(), [])
        self.there += bool(alike)
        if name in alike or len(alike) != 1:
            return path
        self.renamed.append(f"{folder}/{alike[0]}".lstrip("/"))
        return self.renamed[-1]


def _table(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() == ".parquet":
            return pa.parquet.ParquetFile(file).read()
        with file.open("rb") as lines:
            header = lines.readline(1 << 16)
        parts = pa.csv.ParseOptions(delimiter=max(",;\t", key=lambda sign: header.count(sign.encode())))
        # Class 007 keeps its zeros, also where blanks follow the header's commas.
        texts = {blank + name: pa.string() for name in (*COLUMNS, "class name") for blank in ("", " ")}
        in_order = pa.csv.ReadOptions(use_threads=False)  # then a message names the row
        return pa.csv.read_csv(file, in_order, parts, pa.csv.ConvertOptions(column_types=texts))
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


def _relative(path: Any, folder: Path, notes: Counter[str]) -> Any:
    """Return a path from the manifest's folder, where it is one in other words."""
    if not isinstance(path, str):
        return path
    path = path.strip()
    if "\\" in path and "/" not in path and not re.search(r"^.?:", path):
        notes["backslashes read as slashes"] += 1
        path = path.replace("\\", "/")
    for above in (folder.absolute(), folder.resolve()):
        if path.startswith(f"{above}/"):
            notes["absolute paths below its folder"] += 1
            path = path.removeprefix(f"{above}/")
    return path.removeprefix("./")


def _row(place: str, path: Any, label: Any, name: Any, split: Any, *, labelled: bool, divided: bool) -> _Row:
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{place}: path", "must be a text", got=path)
    if path.startswith("/") or re.search(r"^.?:|\\|(?:^|/)\.{0,2}(?:/|$)", path):
        rule = "must lead from the manifest's folder to a picture in it, with forward slashes and without '.' or '..'"
        raise UserError(f"{place}: path", rule, got=path, fix="write it as class/1.jpg")
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

"""How pictures, labels and names are found in what the data sets' own archives contain.

A :data:`Source` lists the pictures of one folder or annotation file; :func:`deal` divides a list where no official
division exists. Everything is in an order that does not depend on the machine: directory listings are sorted, files
are read from top to bottom.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ammpl.data.listing import SplitName
from ammpl.data.split_file import Entry
from ammpl.errors import UserError, together

Source = Callable[[Path, Path], list[Entry]]
"""From (the data set's folder, the folder that paths are relative to) to pictures."""

Labels = Callable[[Path], dict[str, int]]
"""From the data set's folder to 0-based labels by what a list file calls the class."""


class LineFormat(NamedTuple):
    """How a line of a list file names a picture.

    Attributes:
        example: a line, for messages.
        read: from (a line, labels) to the picture. ValueError: malformed; KeyError: its class has no label.
    """

    example: str
    read: Callable[[str, Mapping[str, int]], Entry]


# Folders -------------------------------------------------------------------------------------------------------------


def class_folders(ignored: Sequence[str] = (), renames: Mapping[str, str] | None = None) -> Source:
    """A folder per class: labels in ASCII order of the folders, so that capitals come first; names are the folders'.

    Args:
        ignored: folders that are no classes.
        renames: folder -> class name.
    """
    new_names = renames or {}

    def read(folder: Path, images: Path) -> list[Entry]:
        found = [name for name in _children(images, folders=True) if name not in ignored]
        return [
            Entry(path, label, new_names.get(name, name))
            for label, name in enumerate(found)
            for path in _pictures(images, name)
        ]

    return read


def wordnet_folders(within: str = "", labels_of: str = "") -> Source:
    """A folder per WordNet id: labels by rank among the sorted folders, names from classnames.txt.

    Args:
        within: where the folders are, from the folder of pictures.
        labels_of: where the folders are that define the labels, likewise.
    """

    def read(folder: Path, images: Path) -> list[Entry]:
        names = _wordnet_names(folder)
        labels = {name: label for label, name in enumerate(_children(images / labels_of, folders=True))}
        entries = []
        for name in _children(images / within, folders=True):
            if name not in labels:
                raise UserError(str(images / within / name), f"has no counterpart in {images / labels_of}")
            if name not in names:
                raise UserError(str(folder / "classnames.txt"), "must name every folder of pictures", got=name)
            prefix = f"{within}/{name}" if within else name
            entries += [Entry(path, labels[name], names[name]) for path in _pictures(images, prefix)]
        return entries

    return read


def numbered_folders(folder: Path, images: Path) -> list[Entry]:
    """A folder per class, called by its row in classnames.txt, counted from 0 (ImageNetV2)."""
    names = list(_wordnet_names(folder).values())
    found = _children(images, folders=True)
    for name in found:
        if not re.fullmatch("0|[1-9][0-9]{0,5}", name) or int(name) >= len(names):
            raise UserError(
                str(images / name), f"must be the number of a row of classnames.txt, 0 to {len(names) - 1}"
            )
    return [
        Entry(path, int(name), names[int(name)]) for name in sorted(found, key=int) for path in _pictures(images, name)
    ]


def _children(folder: Path, *, folders: bool) -> list[str]:
    """Return the sorted names of the folders, or of the files, in a folder. Hidden ones are left out, as published."""
    with os.scandir(folder) as found:  # knows folders from files without a look at each: ImageNet has a million
        return sorted(entry.name for entry in found if entry.is_dir() == folders and not entry.name.startswith("."))


def _pictures(images: Path, folder: str) -> list[str]:
    files = _children(images / folder, folders=False)
    if not files:
        raise UserError(str(images / folder), "has no pictures")
    return [f"{folder}/{file}" for file in files]


def _wordnet_names(folder: Path) -> dict[str, str]:
    names = {}
    for place, line in _lines(folder / "classnames.txt"):
        wordnet_id, _, name = line.partition(" ")
        if not name:
            raise UserError(place, "must be '<WordNet id> <class name>'", got=line)
        names[wordnet_id] = name
    return names


# List files ----------------------------------------------------------------------------------------------------------


def listed(file: str, line_format: LineFormat, labels: Labels | None = None) -> Source:
    """A picture per line of a text file.

    Args:
        file: the list, from the data set's folder.
        line_format: reads one line.
        labels: of the classes that the lines name.
    """

    def read(folder: Path, images: Path) -> list[Entry]:
        known = labels(folder) if labels else {}
        entries = []
        for place, line in _lines(folder / file):
            try:
                entries.append(line_format.read(line, known))
            except ValueError as error:
                raise UserError(place, f"must look like {line_format.example!r}", got=line) from error
            except KeyError as error:
                raise UserError(place, "the class is not in the data set's list of classes", got=line) from error
        return entries

    return read


def _pet(line: str, labels: Mapping[str, int]) -> Entry:
    stem, label, _, _ = line.split()  # file, class from 1, species, breed
    return Entry(f"{stem}.jpg", int(label) - 1, stem.rpartition("_")[0].lower())


def _aircraft(line: str, labels: Mapping[str, int]) -> Entry:
    stem, name = line.split(" ", 1)
    return Entry(f"{stem}.jpg", labels[name], name)


def _action(line: str, labels: Mapping[str, int]) -> Entry:
    name, clip = line.split(" ")[0].split("/")  # the test list has no numbers
    words = "_".join(re.findall("[A-Z][^A-Z]*", name))  # one frame per clip, in folders that are called this way
    return Entry(f"{words}/{clip.removesuffix('.avi')}.jpg", labels[name], words)


def _scene(line: str, labels: Mapping[str, int]) -> Entry:
    folder = line.rpartition("/")[0]
    return Entry(line.removeprefix("/"), labels[folder], " ".join(reversed(folder.split("/")[2:])))


PET = LineFormat("Abyssinian_100 1 1 1", _pet)
"""Name: the file's without its number, in lower case."""
AIRCRAFT = LineFormat("1025794 707-320", _aircraft)
"""Name: the variant as it stands, which may have spaces."""
ACTION = LineFormat("YoYo/v_YoYo_g08_c01.avi 101", _action)
"""Name: the action's words, ``Yo_Yo``."""
SCENE = LineFormat("/a/apse/indoor/sun_aadoolijncfjbqnq.jpg", _scene)
"""Name: the folder's parts without the letter, the last one first, ``indoor apse``."""


def class_lines(file: str) -> Labels:
    """A class per line: the label is the line's number from 0."""
    return lambda folder: {text: label for label, (_, text) in enumerate(_lines(folder / file))}


def class_numbers(file: str) -> Labels:
    """A line per class, ``1 ApplyEyeMakeup``: 1-based number, name."""

    def read(folder: Path) -> dict[str, int]:
        labels = {}
        for place, text in _lines(folder / file):
            number, _, name = text.partition(" ")
            if not number.isdecimal() or not name:
                raise UserError(place, "must be '<number from 1> <class>'", got=text)
            labels[name] = int(number) - 1
        return labels

    return read


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, text) of the lines that are not blank. Archives have both kinds of line ends."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"must be UTF-8 ({error.reason} at byte {error.start})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file} line {number}", line.strip()


# MATLAB files --------------------------------------------------------------------------------------------------------


def flowers(folder: Path, images: Path) -> list[Entry]:
    """The i-th number of imagelabels.mat is the 1-based class of image_<i>.jpg; cat_to_name.json names the classes."""
    file = folder / "cat_to_name.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8-sig"))
        labels = [int(label) for label in _matlab(folder / "imagelabels.mat", "labels")]
        return [
            Entry(f"image_{number:05d}.jpg", label - 1, str(names[str(label)]))
            for number, label in enumerate(labels, start=1)
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = 'must be an object that names every class of imagelabels.mat: {"1": "pink primrose", ...}'
        raise UserError(str(file), rule, got=error) from error


def cars(annotations: str, pictures: str) -> Source:
    """An annotation file of Stanford Cars; devkit/cars_meta.mat names the classes. The year moves to the front.

    Args:
        annotations: the file, from the data set's folder.
        pictures: the folder that its file names refer to.
    """

    def read(folder: Path, images: Path) -> list[Entry]:
        names = [str(name) for name in _matlab(folder / "devkit/cars_meta.mat", "class_names")]
        try:
            entries = []
            for row in _matlab(folder / annotations, "annotations"):
                label = int(row["class"]) - 1
                model, _, year = names[label].rpartition(" ")
                entries.append(Entry(f"{pictures}/{row['fname']}", label, f"{year} {model}".strip()))
            return entries
        except (ValueError, IndexError, TypeError) as error:
            rule = "must hold 'fname' and 'class' of every picture, the class as a row of devkit/cars_meta.mat from 1"
            raise UserError(str(folder / annotations), rule, got=error) from error

    return read


def _matlab(file: Path, variable: str) -> np.ndarray[Any, Any]:
    """Return a variable of a MATLAB file (n,)."""
    from scipy.io import loadmat  # a fifth of a second, for two data sets

    content = io.BytesIO(file.read_bytes())
    try:
        return np.atleast_1d(loadmat(content, variable_names=[variable], squeeze_me=True)[variable])
    except Exception as error:  # whatever scipy trips over in a file that is none, or that is cut short
        raise UserError(str(file), f"must be a MATLAB file with the variable {variable}", got=error) from error


# Division ------------------------------------------------------------------------------------------------------------


def deal(
    entries: Sequence[Entry], shares: Mapping[SplitName, float], rest: SplitName, stream: random.Random
) -> dict[SplitName, list[Entry]]:
    """Divide a list class by class, in the order of first appearance: shuffle, then cut off the shares from the front.

    Args:
        entries: the pictures.
        shares: list -> its part of each class, rounded as Python does (ties to even), in the order of the cuts.
        rest: the list that gets what remains.
        stream: what the shuffles draw from.

    Raises:
        UserError: classes are too small to give every list a picture.
    """
    classes: dict[int, list[Entry]] = {}
    for entry in entries:
        classes.setdefault(entry.label, []).append(entry)
    dealt: dict[SplitName, list[Entry]] = {split: [] for split in (*shares, rest)}
    small = []
    for of_class in classes.values():
        stream.shuffle(of_class)
        counts = {split: round(len(of_class) * share) for split, share in shares.items()}
        counts[rest] = len(of_class) - sum(counts.values())
        if min(counts.values()) < 1:
            where, rule = (
                f"class {of_class[0].name!r} ({of_class[0].path}, ...)",
                "has too few pictures to divide among",
            )
            fix = "add some, or divide them into train, val and test yourself"
            small.append(UserError(where, f"{rule} {', '.join(counts)}", got=len(of_class), fix=fix))
        taken = 0
        for split, count in counts.items():
            dealt[split] += of_class[taken : taken + count]
            taken += count
    if small:
        raise together(small)
    return dealt

"""Your own pictures: a folder per class, or a manifest, and an optional ``dataset.yaml`` (docs/own_data.md).

What is divided stays divided; lists that are missing are cut, class by class, from the training list
(:func:`_completed`). Everything is in an order that does not depend on the machine: folders are sorted, a manifest is
read from top to bottom.
"""

from __future__ import annotations

import html
import os
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ammpl.data.layouts import deal
from ammpl.data.listing import Item, Listing, SplitName
from ammpl.data.manifest import LIST_NAMES, read_manifest
from ammpl.data.own_settings import SETTINGS, Settings, read_settings
from ammpl.data.split_file import Entry, Lists, class_names
from ammpl.errors import UserError, did_you_mean

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SEED = 1
"""Of the cuts, as for published data sets without their split file."""
SHOWN = 5
"""Names that a message lists; it counts the others."""
CLUTTER = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
"""Folders and files that archives, disks and servers have of their own, in lower case; others begin with a dot."""
LAYOUT = "\n  cat/1.jpg, cat/2.jpg, ...\n  dog/1.jpg, dog/2.jpg, ...\nor the same within train/, val/ and test/"


@dataclass(frozen=True)
class OwnData:
    """A user's pictures.

    Attributes:
        listing: names and the three lists.
        template: the zero-shot sentence, ``{}`` for the name.
        warnings: what was left out.
    """

    listing: Listing
    template: str
    warnings: tuple[str, ...] = ()


def read_own(path: Path) -> OwnData:
    """Read names and lists of a user's pictures; no picture is opened.

    Args:
        path: a folder with a sub-folder per class; one with such folders in train/, val/ (valid/, validation/) and
            test/; or a manifest, CSV or Parquet. A ``dataset.yaml`` in that folder, or beside the manifest, may set
            class names, the template and the manifest.

    Raises:
        UserError: something is not as it should be; it names the file, row or field.
    """
    try:
        if not path.exists():
            raise UserError(str(path), "does not exist", fix=_neighbour(path))
        folder = path if path.is_dir() else path.parent
        settings = read_settings(folder)
        manifest = path if folder != path else settings.manifest
        return _from_manifest(folder, manifest, settings) if manifest else _from_folders(folder, settings)
    except OSError as error:
        raise UserError(str(error.filename or path), f"cannot be read ({error.strerror})") from error


def _from_manifest(folder: Path, manifest: Path, settings: Settings) -> OwnData:
    return _own(folder, read_manifest(manifest), settings, manifest.name, str(manifest), ())


def _from_folders(folder: Path, settings: Settings) -> OwnData:
    scan = _Scan()
    found, loose = _children(folder)
    if _divided(folder, found):
        lists = {split: scan.classes(folder, name) for name, split in _list_folders(folder, found).items()}
        _refuse_loose(folder, loose, "in the class folders of train/, val/ and test/")
        made_by = "folders " + ", ".join(f"{name}/" for name in found)
    elif found and {name.lower() for name in found} <= LIST_NAMES.keys():
        raise UserError(str(folder / found[0]), f"must have a folder per class:{LAYOUT}")
    else:
        lists = {"train": scan.classes(folder, "")}
        made_by = "folders of classes"
    names = sorted({entry.name for entries in lists.values() for entry in entries})
    labels = {name: label for label, name in enumerate(names)}
    labelled = {split: [entry._replace(label=labels[entry.name]) for entry in lists[split]] for split in lists}
    clutter = sorted(entry.name for entry in folder.iterdir() if entry.name.lower() in CLUTTER)
    notes = (f"left out, a system's own: {_shown(clutter)}",) if clutter else ()
    return _own(folder, labelled, settings, made_by, str(folder), notes + scan.warnings())


def _own(
    folder: Path, lists: Lists, settings: Settings, made_by: str, where: str, warnings: tuple[str, ...]
) -> OwnData:
    """Hold lists to the rules and complete them; entries carry the user's own words for the classes."""
    trained = {entry.name for entry in lists.get("train", ())}
    if not trained:
        raise UserError(where, "has no training pictures", fix="a list called train; others can be cut from it")
    lacking = sorted({entry.name for entries in lists.values() for entry in entries} - trained)
    if lacking:
        raise UserError(where, f"{_shown(lacking)} must have training pictures, as other lists have some")
    if len(trained) < 2:
        raise UserError(where, "must have two classes or more", got=trained.pop())
    for name in settings.class_names:
        if name not in trained:
            raise UserError(
                f"{folder / SETTINGS}: class_names", "is no class", got=name, fix=did_you_mean(name, trained)
            )
    renamed = {
        split: [entry._replace(name=settings.class_names.get(entry.name, entry.name)) for entry in entries]
        for split, entries in lists.items()
    }
    try:
        complete, cut = _completed(renamed)
    except UserError as error:
        fix = "add some, or divide them into train, val and test yourself"
        raise UserError(f"{where}: {error.where}", error.rule, got=error.got, fix=fix) from None
    names = class_names(complete, where)
    _refuse_alike(names, where)
    train, validation, test = (
        tuple(Item(entry.path, entry.label) for entry in complete[split]) for split in ("train", "validation", "test")
    )
    split_source = f"{made_by}; {cut}" if cut else made_by
    return OwnData(Listing(folder, names, train, validation, test, split_source), settings.template, warnings)


def _completed(lists: Lists) -> tuple[dict[SplitName, Sequence[Entry]], str]:
    """Return all three lists, and the rule that made the missing ones.

    The pictures of each class in the training list are shuffled, from one stream with seed 1, classes in the order of
    their first appearance. Without validation and test, 50 % stay, 20 % validate, 30 % test. Without validation 20 %
    become it. Without test 30 % become it: a study ends with a sealed test, and what has served to choose is none.

    Raises:
        UserError: a class is too small.
    """
    stream = random.Random(SEED)
    train = lists["train"]
    if lists.get("validation") and lists.get("test"):
        return dict(lists), ""
    if lists.get("test"):
        cut, rule = deal(train, {"validation": 0.2}, "train", stream), "validation is 20 % of each class of train"
    elif lists.get("validation"):
        cut, rule = deal(train, {"test": 0.3}, "train", stream), "test is 30 % of each class of train"
    else:
        cut = deal(train, {"train": 0.5, "validation": 0.2}, "test", stream)
        rule = "50 % of each class train, 20 % validate, 30 % test"
    return {**lists, **cut}, f"{rule}, shuffled with seed {SEED}"


# Folders -------------------------------------------------------------------------------------------------------------


def _children(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files in a folder, links followed.

    Hidden ones are left out, and what systems and servers leave everywhere.
    """
    with os.scandir(folder) as found:
        kinds = [(e.name, e.is_dir()) for e in found if not e.name.startswith(".") and e.name.lower() not in CLUTTER]
    return sorted(name for name, is_dir in kinds if is_dir), sorted(name for name, is_dir in kinds if not is_dir)


def _divided(folder: Path, found: Sequence[str]) -> bool:
    """Return whether folders are lists, not classes: one is called train and holds folders. Trains are a class too."""
    return any(name.lower() in LIST_NAMES and _children(folder / name)[0] for name in found)


def _list_folders(folder: Path, found: Sequence[str]) -> dict[str, SplitName]:
    """Return folder -> list."""
    lists: dict[str, SplitName] = {}
    for name in found:
        split = LIST_NAMES.get(name.lower())
        if split is None:
            rule = "must be train, val or test, as a folder beside it is"
            raise UserError(str(folder / name), rule, fix=did_you_mean(name.lower(), LIST_NAMES))
        if split in lists.values():
            raise UserError(str(folder / name), f"there is another folder for {split}", fix="keep one")
        lists[name] = split
    return lists


class _Scan:
    """Lists the pictures of class folders. Depth is fixed, so that links cannot lead in circles."""

    def __init__(self) -> None:
        self._seen: dict[str, Path] = {}  # real path -> as the user sees it
        self._ignored: list[str] = []

    def classes(self, folder: Path, within: str) -> list[Entry]:
        """Return the pictures of each class folder, not yet labelled: ``within`` is train, val, test or nothing."""
        found, loose = _children(folder / within)
        _refuse_loose(folder / within, loose, "in the class folders")
        if not found:
            raise UserError(str(folder / within), f"must have a folder per class:{LAYOUT}")
        prefix = f"{within}/" if within else ""
        return [
            Entry(f"{prefix}{name}/{file}", -1, name)
            for name in found
            for file in self._pictures(folder / within / name)
        ]

    def _pictures(self, folder: Path) -> list[str]:
        below, files = _children(folder)
        if below:
            rule = f"must hold pictures only; there are folders in it: {_shown(below)}"
            near = get_close_matches(folder.name.lower(), LIST_NAMES, n=1)
            raise UserError(str(folder), rule, fix=f"did you mean '{near[0]}'?" if near else "a folder per class")
        pictures = [file for file in files if _is_picture(file)]
        self._ignored += [str(folder / file) for file in files if not _is_picture(file)]
        if not pictures:
            rule = f"has no pictures ({' '.join(PICTURES)})"
            raise UserError(str(folder), rule, fix="add some, or remove the folder")
        other = self._seen.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            raise UserError(str(folder), "is the same folder, by a link", got=str(other), fix="keep one")
        return pictures

    def warnings(self) -> tuple[str, ...]:
        """Return what to tell about the files that are no pictures by their names."""
        if not self._ignored:
            return ()
        count = len(self._ignored)
        return (f"{count} {'file' if count == 1 else 'files'} left out, no picture by name: {_shown(self._ignored)}",)


def _refuse_alike(names: Sequence[str], where: str) -> None:
    """Raise UserError for two classes whose names CLIP's tokenizer reads as one: their prompts would be the same."""
    read: dict[str, str] = {}
    for name in names:
        text = html.unescape(html.unescape(name.replace("_", " ")))
        other = read.setdefault(" ".join(unicodedata.normalize("NFKC", text).split()).lower(), name)
        if other != name:
            rule = f"classes {other!r} and {name!r} are one to the text tower, which sees neither case nor underscores"
            raise UserError(where, rule, fix="rename one, or put their pictures together")


def _refuse_loose(folder: Path, files: Sequence[str], where: str) -> None:
    pictures = [file for file in files if _is_picture(file)]
    if pictures:
        rule = f"has pictures beside its folders: {_shown(pictures)}"
        raise UserError(str(folder), rule, fix=f"put them {where}, or elsewhere")


def _is_picture(file: str) -> bool:
    return file.lower().endswith(PICTURES)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _neighbour(path: Path) -> str | None:
    there = path.parent
    return did_you_mean(path.name, [other.name for other in there.iterdir()]) if there.is_dir() else None

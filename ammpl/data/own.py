"""Your own pictures: a folder per class, or a manifest, and an optional ``dataset.yaml`` (docs/own_data.md).

What is divided stays divided; lists that are missing are cut, class by class, from the training list
(:func:`_completed`). Everything is in an order that does not depend on the machine: folders are sorted, a manifest is
read from top to bottom.
"""

from __future__ import annotations

import html
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from ammpl.data.layouts import deal
from ammpl.data.listing import Item, Listing, SplitName
from ammpl.data.manifest import LIST_NAMES, located, read_manifest
from ammpl.data.own_settings import SETTINGS, Settings, read_settings
from ammpl.data.split_file import Entry, Lists, class_names
from ammpl.errors import UserError, did_you_mean, together

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SEED = 1
"""Of the cuts, as for published data sets without their split file."""
SHOWN = 5
"""Names that a message lists; it counts the others."""
CLASSES = 30
"""Of those with their counts of pictures."""
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
    lists, notes = read_manifest(manifest)
    own = _own(folder, lists, settings, manifest.name, str(manifest), notes)
    listing, renamed = located(own.listing, manifest)
    return replace(own, listing=listing, warnings=own.warnings + renamed)


def _from_folders(folder: Path, settings: Settings) -> OwnData:
    scan = _Scan()
    found, loose = _children(folder)
    _refuse_other_level(folder, found, loose)
    if _divided(folder, found):
        lists = {split: scan.classes(folder, name) for name, split in _list_folders(folder, found).items()}
        scan.refuse_loose(folder, loose, "in the class folders of train/, val/ and test/")
        made_by = "folders " + ", ".join(f"{name}/" for name in found)
    elif found and {name.lower() for name in found} <= LIST_NAMES.keys():
        raise UserError(str(folder / found[0]), f"must have a folder per class:{LAYOUT}")
    else:
        lists = {"train": scan.classes(folder, "")}
        made_by = "folders of classes"
    names = sorted({entry.name for entries in lists.values() for entry in entries})
    labels = {name: label for label, name in enumerate(names)}
    labelled = {split: [entry._replace(label=labels[entry.name]) for entry in lists[split]] for split in lists}
    if scan.problems:
        try:
            _completed(labelled)  # a class too small to divide is told in the same round
        except UserError as error:
            scan.problems.append(error)
        raise together(scan.problems, f"pictures found: {scan.counted()}")
    clutter = sorted(entry.name for entry in folder.iterdir() if entry.name.lower() in CLUTTER)
    notes: tuple[str, ...] = (f"left out, a system's own: {_shown(clutter)}",) if clutter else ()
    beside = _children(folder.parent)[0] if folder.name.lower() in LIST_NAMES else []
    if any(name.lower() in LIST_NAMES and name != folder.name for name in beside):
        notes += (f"only {folder} is read, and there are other lists beside it; {folder.parent} has them all",)
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
    complete, cut = _completed(renamed)
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


def _refuse_other_level(folder: Path, found: Sequence[str], loose: Sequence[str]) -> None:
    """Raise UserError for a folder that is one level above or below the folder of classes."""
    if not found and any(map(_is_picture, loose)):
        rule = "holds pictures, and must hold a folder per class"
        raise UserError(str(folder), rule, fix=f"did you mean the folder above, {folder.parent}?")
    if len(found) == 1 and found[0].lower() not in LIST_NAMES and not any(map(_is_picture, loose)):
        below, files = _children(folder / found[0])
        if below and not any(map(_is_picture, files)):
            rule = f"holds one folder, {found[0]!r}, and the folders of pictures are in that"
            raise UserError(str(folder), rule, fix=f"--dataset {folder / found[0]}")


class _Scan:
    """Lists the pictures of class folders. Depth is fixed, so that links cannot lead in circles.

    Attributes:
        problems: all that must be mended, told together at the end.
    """

    def __init__(self) -> None:
        self.problems: list[UserError] = []
        self._counts: Counter[str] = Counter()  # of pictures, by class
        self._seen: dict[str, Path] = {}  # real path -> as the user sees it
        self._ignored: list[str] = []

    def classes(self, folder: Path, within: str) -> list[Entry]:
        """Return the pictures of each class folder, not yet labelled: ``within`` is train, val, test or nothing."""
        found, loose = _children(folder / within)
        self.refuse_loose(folder / within, loose, "in the class folders")
        if not found and not loose:
            self.problems.append(UserError(str(folder / within), f"must have a folder per class:{LAYOUT}"))
        prefix, entries = f"{within}/" if within else "", []
        for name in found:
            files = self._pictures(folder / within / name)
            self._counts[name] += len(files)
            entries += [Entry(f"{prefix}{name}/{file}", -1, name) for file in files]
        return entries

    def counted(self) -> str:
        """Return how many pictures each class has in all lists."""
        shown = [f"{name} {self._counts[name]}" for name in sorted(self._counts)]
        more = f" and {len(shown) - CLASSES} more classes" if len(shown) > CLASSES else ""
        return ", ".join(shown[:CLASSES]) + more

    def refuse_loose(self, folder: Path, files: Sequence[str], where: str) -> None:
        """Note pictures that are beside folders."""
        pictures = [file for file in files if _is_picture(file)]
        if pictures:
            rule = f"has pictures beside its folders: {_shown(pictures)}"
            self.problems.append(UserError(str(folder), rule, fix=f"put them {where}, or elsewhere"))

    def _pictures(self, folder: Path) -> list[str]:
        below, files = _children(folder)
        if below:
            rule = f"must hold pictures only; there are folders in it: {_shown(below)}"
            near = get_close_matches(folder.name.lower(), LIST_NAMES, n=1)
            fix = f"did you mean '{near[0]}'?" if near else "a folder per class"
            self.problems.append(UserError(str(folder), rule, fix=fix))
        pictures = [file for file in files if _is_picture(file)]
        self._ignored += [str(folder / file) for file in files if not _is_picture(file)]
        if not pictures and not below:
            rule = f"has no pictures ({' '.join(PICTURES)})"
            self.problems.append(UserError(str(folder), rule, fix="add some, or remove the folder"))
        other = self._seen.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            self.problems.append(
                UserError(str(folder), "is the same folder, by a link", got=str(other), fix="keep one")
            )
        odd = [name for name in (folder.name, *pictures) if not _is_utf8(name)]
        if odd:
            named = ", ".join(str(os.fsencode(name))[1:] for name in odd[:SHOWN])
            rule = f"{'a name is' if len(odd) == 1 else f'{len(odd)} names are'} not UTF-8: {named}"
            fix = f"rename, for example by: convmv -r --notest -f latin1 -t utf8 {folder.parent}"
            self.problems.append(UserError(str(folder), rule, fix=fix))
        return pictures if _is_utf8(folder.name) else []

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


def _is_picture(file: str) -> bool:
    return file.lower().endswith(PICTURES)


def _is_utf8(name: str) -> bool:
    return not re.search("[\ud800-\udfff]", name)  # what Python makes of other bytes


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _neighbour(path: Path) -> str | None:
    there = path.parent
    return did_you_mean(path.name, [other.name for other in there.iterdir()]) if there.is_dir() else None

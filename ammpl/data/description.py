"""What describes a data set on disk, and how a description is read.

A published split file alone defines the lists where it is present. Otherwise the archives' own annotations do,
divided at random where they have no official division (:func:`ammpl.data.layouts.deal`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from ammpl.data.layouts import Source, deal
from ammpl.data.listing import Item, Listing, SplitName, differences
from ammpl.data.split_file import Entry, Lists, class_names, read_split_file
from ammpl.errors import UserError

FALLBACK_SEED = 1
"""Ours: published code shuffles a listing that is not sorted, so that no seed brings its lists back."""


class Sizes(NamedTuple):
    """How much the lists should hold; the last two are the test list's base and new classes, where those are used."""

    classes: int
    train: int
    validation: int
    test: int
    base_test: int | None = None
    new_test: int | None = None


@dataclass(frozen=True)
class Description:
    """One data set.

    Attributes:
        name: as configurations write it.
        title: as published tables write it.
        folder: in the data root.
        images: what the paths of pictures are relative to, in the folder.
        example: the path of a picture, for messages.
        template: the zero-shot sentence, ``{}`` for the name.
        sizes: expected.
        source: publication and licence.
        rule: what makes the lists without a split file, for records.
        split_file: the published split, in the folder; None where there is none.
        official: lists that the archives define.
        trainval: what becomes training (80 %) and validation (20 %) without a split file.
        everything: what becomes training (50 %), validation (20 %) and test (30 %) without a split file.
        annotations: files that are read without a split file, in the folder.
        pictures: folders of pictures, in the folder; ``images`` if not given.
        repeated_names: whether labels may share a name.
    """

    name: str
    title: str
    folder: str
    images: str
    example: str
    template: str
    sizes: Sizes
    source: str
    rule: str
    split_file: str | None = None
    official: Mapping[SplitName, Source] = field(default_factory=dict, repr=False)
    trainval: Source | None = field(default=None, repr=False)
    everything: Source | None = field(default=None, repr=False)
    annotations: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    repeated_names: bool = False

    @property
    def layout(self) -> str:
        """What the data root must hold, a line each."""
        first, *others = self.pictures or (self.images,)
        example = (Path(self.images) / self.example).as_posix()
        rows = [(f"{first}/", f"pictures, such as {example}"), *((f"{folder}/", "pictures") for folder in others)]
        note = "annotations"
        if self.split_file:
            rows.append((self.split_file, "the published split"))
            note = "annotations, read only without the published split"
        rows += [(file, note) for file in self.annotations]
        width = max(len(path) for path, _ in rows)
        return "\n".join([f"{self.folder}/", *(f"  {path:{width}}  {note}" for path, note in rows)])

    def read(self, root: Path) -> Listing:
        """Read names and lists; no picture is opened.

        Args:
            root: the data root, which holds one folder a data set.

        Raises:
            UserError: files are missing, unreadable or not as they should be.
        """
        try:
            return self._read(root)
        except OSError as error:
            raise UserError(f"{self.title}: {error.filename}", f"cannot be read ({error.strerror})") from error

    def warnings(self, listing: Listing) -> tuple[str, ...]:
        """Return what to know before trusting a number: not the published split, counts off, pictures in two lists."""
        found = [*differences(listing, self.sizes._asdict()), *shared_pictures(listing)]
        if self.split_file and listing.split_source != self.split_file:
            without = f"{self.split_file} is not there, so that results do not compare with published ones"
            found.insert(0, f"{without}; the lists come from {listing.split_source}")
        return tuple(f"{self.title}: {sentence}" for sentence in found)

    def _read(self, root: Path) -> Listing:
        folder = root / self.folder
        file = folder / self.split_file if self.split_file else None
        if file and (file.exists() or file.is_symlink()):  # a dangling link is a mistake, not a wish for the fallback
            self._require(root, ())
            lists, split_source, where = read_split_file(file), file.name, str(file)
        else:
            self._require(root, self.annotations)
            lists, split_source = self._from_archives(folder)
            where = f"{self.title}, {split_source}"
        only_tests = not self.sizes.train
        names = class_names(lists, where, defining="test" if only_tests else "train", repeated=self.repeated_names)
        items = {split: tuple(Item(entry.path, entry.label) for entry in entries) for split, entries in lists.items()}
        return Listing(folder / self.images, names, items["train"], items["validation"], items["test"], split_source)

    def _require(self, root: Path, annotations: tuple[str, ...]) -> None:
        needed = ["", *(self.pictures or (self.images,)), *annotations]
        missing = [f"{self.folder}/{path}" for path in needed if not (root / self.folder / path).exists()]
        if missing:
            listed = missing[0] if missing[0] == f"{self.folder}/" else ", ".join(missing)
            rule = f"files are missing. Expected there:\n{self.layout}\nMissing: {listed}"
            fix = "--data-root DIR or AMMPL_DATA_ROOT"
            first = needed[1]
            if (root / first).exists():
                fix = f"did you mean --data-root {root.absolute().parent}?"
            elif (root / self.folder / self.folder / first).exists():
                fix = f"move what is in {self.folder}/{self.folder} one level up"
            raise UserError(f"{self.title} in {root.absolute()}", rule, fix=fix)
        images, name = root / self.folder / self.images, Path(self.images).name
        if name and (images / name).is_dir():
            rule = f"holds a folder {name!r}, and the pictures seem to be in that"
            raise UserError(f"{self.title}: {images}", rule, fix="move them one level up")

    def _from_archives(self, folder: Path) -> tuple[Lists, str]:
        images = folder / self.images
        lists: dict[SplitName, list[Entry]] = {"train": [], "validation": [], "test": []}
        lists |= {split: source(folder, images) for split, source in self.official.items()}
        stream = random.Random(FALLBACK_SEED)
        if self.trainval:
            lists |= deal(self.trainval(folder, images), {"validation": 0.2}, "train", stream)
        elif self.everything:
            lists |= deal(self.everything(folder, images), {"train": 0.5, "validation": 0.2}, "test", stream)
        else:
            return lists, self.rule
        return lists, f"{self.rule} (our fallback, seed {FALLBACK_SEED}: not the published split)"


def shared_pictures(listing: Listing) -> list[str]:
    """Return a sentence for each list that names a picture twice, and for each two lists that share pictures.

    Two lists that are one and the same are a choice, not an accident: ImageNet's validation list is its test list.
    """
    lists: dict[SplitName, tuple[Item, ...]] = {
        "train": listing.train,
        "validation": listing.validation,
        "test": listing.test,
    }
    counts = {split: Counter(item.path for item in items) for split, items in lists.items()}
    twice = {split: [path for path, count in found.items() if count > 1] for split, found in counts.items()}
    sentences = [_sentence(f"more than once in {split}", paths) for split, paths in twice.items() if paths]
    for one, other in combinations(lists, 2):
        both = [path for path in counts[one] if path in counts[other]]
        if both and lists[one] != lists[other]:
            sentences.append(_sentence(f"in {one} and in {other}", both))
    return sentences


def _sentence(where: str, paths: list[str]) -> str:
    return f"{len(paths)} {'picture' if len(paths) == 1 else 'pictures'} {where}, the first is {paths[0]}"

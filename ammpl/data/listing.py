"""What the files of a data set say: names, and three lists of (path, label), before any picture is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

SplitName = Literal["train", "validation", "test"]


class Item(NamedTuple):
    """One picture: its path relative to the listing's folder, with forward slashes, and its label."""

    path: str
    label: int


@dataclass(frozen=True)
class Listing:
    """A data set on disk.

    Attributes:
        folder: what the paths are relative to.
        class_names: in the order of the labels, as prompts write them.
        train: may be empty for a data set that only tests.
        validation: may be empty.
        test: the sealed list.
        split_source: the file that made the lists, or the rule.
    """

    folder: Path
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    split_source: str

    def counts(self) -> dict[str, int]:
        """Return the number of classes and of pictures in each list."""
        return {
            "classes": len(self.class_names),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def differences(listing: Listing, expected: Mapping[str, int]) -> list[str]:
    """Return a sentence for every count that is not the expected one."""
    return [
        f"{name}: {found} found, {expected[name]} expected"
        for name, found in listing.counts().items()
        if name in expected and found != expected[name]
    ]


def labels(items: Sequence[Item]) -> list[int]:
    """Return the labels of a list, in its order."""
    return [item.label for item in items]

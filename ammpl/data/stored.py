"""A data set on disk: its listing, read through the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ammpl.data.dataset import Dataset, Progress, Split
from ammpl.data.listing import Item, Listing, SplitName
from ammpl.data.store import Prepared, Store, StoredOriginals, StoredPixels
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError

SHOWN = 10
"""Broken pictures that a message names; it counts the others."""


class BrokenPicturesError(UserError):
    """Pictures of a list cannot be read."""


@dataclass(frozen=True, eq=False)
class StoredPictures:
    """One list of a data set on disk.

    Attributes:
        name: for messages and the store (``oxford_pets/train``).
        folder: what the items' paths are relative to.
        items: the pictures in the list's order.
        class_names: in the order of the labels.
        store: where they are prepared.
        skip_broken: leave out pictures that cannot be read, rather than stop.
        drawn_first: see :class:`ammpl.data.dataset.Pictures`.
        published: read as published code does; else as meant, see :mod:`ammpl.data.decoding`.
    """

    name: str
    folder: Path
    items: Sequence[Item]
    class_names: tuple[str, ...]
    store: Store
    skip_broken: bool = False
    drawn_first: bool = False
    published: bool = True

    @property
    def labels(self) -> Tensor:
        """int64 (n,), of every picture that the list names."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    def at(self, positions: Sequence[int]) -> StoredPictures:
        """Return the pictures at these positions, in this order: a list of its own in the store."""
        items = [self.items[position] for position in positions]
        drawn = hashlib.sha256(repr(items).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return replace(self, name=f"{self.name}-{drawn}", items=items)  # each sample has a file of its own

    def open(self, transform: ImageTransform, *, originals: bool = False, progress: Progress | None = None) -> Split:
        """Make the pictures readable; see :meth:`ammpl.data.dataset.Pictures.open`."""
        prepared = self._prepared(None if originals else transform, progress)
        images: StoredOriginals | StoredPixels
        if originals:
            images = StoredOriginals(prepared, transform, published=self.published)
        else:
            images = StoredPixels(prepared, transform.size)
        split = Split.whole(images, self.labels, self.class_names)
        broken = prepared.notes("problem")
        if not broken:
            return split
        if not self.skip_broken:
            raise BrokenPicturesError(
                f"{self.name} in {self.folder}",
                f"{len(broken)} of {len(self.items)} pictures cannot be read:\n{self._named(broken)}\n",
                fix="mend or replace them, or leave them out with --skip-broken",
            )
        return split.at([position for position in range(len(split)) if position not in broken])

    def notes(self, transform: ImageTransform, *, originals: bool = False) -> list[str]:
        """Return what a person should know; see :meth:`ammpl.data.dataset.Pictures.notes`."""
        prepared = self._prepared(None if originals else transform)
        found = []
        if broken := prepared.notes("problem"):
            found.append(f"{self.name}: {len(broken)} pictures left out:\n{self._named(broken)}")
        if remarks := prepared.notes("remark"):
            how = "read as published code does" if self.published else "changed as they are read"
            found.append(f"{self.name}: {len(remarks)} pictures are {how}:\n{self._named(remarks)}")
        return found

    def contents(self, transform: ImageTransform, *, originals: bool = False) -> dict[str, str]:
        """Return paths by content; see :meth:`ammpl.data.dataset.Pictures.contents`."""
        found = self._prepared(None if originals else transform).values("content")
        return {content: item.path for content, item in zip(found, self.items, strict=True) if content}

    def _prepared(self, form: ImageTransform | None, progress: Progress | None = None) -> Prepared:
        paths = [item.path for item in self.items]
        return self.store.open(self.name, self.folder, paths, form, progress, published=self.published)

    def _named(self, problems: dict[int, str]) -> str:
        lines = [f"  {self.items[position].path}: {text}" for position, text in list(problems.items())[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"  ... and {len(problems) - SHOWN} more")
        return "\n".join(lines)


def dataset_on_disk(
    name: str,
    listing: Listing,
    template: str,
    source: str,
    store: Store,
    *,
    skip_broken: bool = False,
    drawn_first: bool = False,
    published: bool = True,
    warnings: Sequence[str] = (),
) -> Dataset:
    """Return the data set of a listing.

    Args:
        name: as configurations write it.
        listing: names and lists.
        template: the zero-shot sentence.
        source: where the data come from, for records.
        store: where pictures are prepared.
        skip_broken: leave out pictures that cannot be read, rather than stop.
        drawn_first: see :class:`ammpl.data.dataset.Pictures`.
        published: how pictures are read, see :class:`StoredPictures`.
        warnings: what a person should know.

    Raises:
        UserError: the training list has no picture of some class.
    """
    lacking = sorted(set(range(len(listing.class_names))) - {item.label for item in listing.train})
    if listing.train and lacking:
        raise UserError(
            f"{name} in {listing.folder}",
            f"{len(lacking)} classes have no training picture, such as {listing.class_names[lacking[0]]!r}",
            fix="add pictures, or take the class out",
        )

    def pictures(part: SplitName) -> StoredPictures:
        return StoredPictures(
            f"{name}/{part}",
            listing.folder,
            getattr(listing, part),
            listing.class_names,
            store,
            skip_broken,
            drawn_first and part == "train",
            published,
        )

    return Dataset(
        name=name,
        class_names=listing.class_names,
        train=pictures("train"),
        validation=pictures("validation"),
        open_test=lambda: pictures("test"),
        template=template,
        source=source,
        split_source=listing.split_source,
        augmented=True,
        warnings=tuple(warnings),
    )

"""What a data set is: three lists of labelled pictures, names, and a sentence for zero-shot CLIP.

Three steps lead from a name to what a trial reads: a :class:`Dataset` names its lists; :class:`Pictures` is one list,
of which only the labels are known; :class:`Split` is what can be read of it for one backbone. Nothing is decoded
before the last one.

Shapes: n images, S pixels a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ammpl.data.transform import Crop, ImageTransform

Progress = Callable[[int], None]
"""Told how many more pictures are prepared."""


class Images(Protocol):
    """Pixels by position. A uint8 tensor (n, 3, S, S) is one; so is what a store has mapped."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Tensor | slice, /) -> Tensor:
        """Return uint8 (..., 3, S, S)."""


class Originals(ABC):
    """Pictures at their own sizes, decoded when asked for: random crops need all of their pixels.

    As :class:`Images` they read as evaluation shows them.

    Args:
        transform: from a picture to pixels.
    """

    def __init__(self, transform: ImageTransform):
        self.transform = transform

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, position: int) -> Image.Image:
        """Decode one picture, RGB."""

    @abstractmethod
    def size(self, position: int) -> tuple[int, int]:
        """Return (height, width) of a picture, in pixels, without decoding it."""

    def __getitem__(self, positions: Tensor | slice) -> Tensor:
        chosen = range(len(self))[positions] if isinstance(positions, slice) else positions.tolist()
        pixels = [self.transform.evaluation_pixels(self.picture(position)) for position in chosen]
        side = self.transform.size
        return torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, 3, side, side, dtype=torch.uint8)

    def augmented(self, position: int, crop: Crop) -> np.ndarray:
        """Return one picture as a training step shows it, uint8 (3, S, S)."""
        return self.transform.augmented_pixels(self.picture(position), crop)


@dataclass(frozen=True, eq=False)  # equal only to itself, so that it can key a cache
class Split:
    """Labelled images that can be read: some positions of a list, in an order. Choosing among them copies no pixels.

    Attributes:
        images: pixels of the whole list by position.
        positions: int64 (n,), which of them these are.
        labels: int64 (n,), indices into ``class_names``.
        class_names: as prompts write them.
    """

    images: Images | Originals
    positions: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @classmethod
    def whole(cls, images: Images | Originals, labels: Tensor, class_names: tuple[str, ...]) -> Split:
        """Return all images of a list."""
        return cls(images, torch.arange(len(labels)), labels, class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Return images as evaluation shows them, uint8 (m, 3, S, S); ``chosen`` counts from 0 to n - 1."""
        return self.images[self.positions[chosen]]

    def at(self, chosen: Sequence[int] | Tensor) -> Split:
        """Return these images, counted from 0 to n - 1, in this order."""
        index = torch.as_tensor(chosen, dtype=torch.int64)
        return Split(self.images, self.positions[index], self.labels[index], self.class_names)

    def of_classes(self, labels: Sequence[int]) -> Split:
        """Return the images of these classes alone, renumbered 0, 1, ... in the order given."""
        renumbered = torch.full((len(self.class_names),), -1)
        renumbered[list(labels)] = torch.arange(len(labels))
        new = renumbered[self.labels]
        kept = new >= 0
        names = tuple(self.class_names[label] for label in labels)
        return Split(self.images, self.positions[kept], new[kept], names)


class Pictures(Protocol):
    """One list of a data set, of which only the labels are known."""

    @property
    def labels(self) -> Tensor:
        """int64 (n,), of every picture that the list names."""

    @property
    def drawn_first(self) -> bool:
        """Whether a sample is drawn before anything is opened: the list is too long to be opened whole."""

    def at(self, positions: Sequence[int]) -> Pictures:
        """Return the pictures at these positions, in this order."""

    def open(self, transform: ImageTransform, *, originals: bool = False, progress: Progress | None = None) -> Split:
        """Make the pictures readable.

        Args:
            transform: of the backbone.
            originals: keep whole pictures, for random crops: ``images`` is then an :class:`Originals`.
            progress: told as pictures are prepared, where that takes time.

        Raises:
            UserError: pictures are missing or broken.
        """

    def notes(self, transform: ImageTransform, *, originals: bool = False) -> list[str]:
        """Return what a person should know of opened pictures: which are left out, which look otherwise than meant."""

    def contents(self, transform: ImageTransform, *, originals: bool = False) -> dict[str, str]:
        """Return a path for each content of opened pictures, by a digest of the file; none of those in memory."""


@dataclass(frozen=True)
class Dataset:
    """A data set with its three fixed lists.

    Attributes:
        name: as configurations write it.
        class_names: in the order of the labels, as prompts write them.
        train: few-shot samples are drawn from it.
        validation: validation samples are drawn from it.
        open_test: returns the sealed test list. A function, so that nothing reads it by accident: only the test
            phase of a study calls it.
        template: the zero-shot sentence, ``{}`` for the name.
        source: where the data come from and under which licence, for records.
        split_source: which file or rule made the three lists.
        augmented: whether training crops and mirrors at random unless told otherwise.
        warnings: what a person should know about the data before trusting a number.
    """

    name: str
    class_names: tuple[str, ...]
    train: Pictures
    validation: Pictures
    open_test: Callable[[], Pictures] = field(repr=False)
    template: str
    source: str
    split_source: str = "fixed"
    augmented: bool = False
    warnings: tuple[str, ...] = ()


class _MemoryOriginals(Originals):
    def __init__(self, pixels: Tensor, transform: ImageTransform):
        super().__init__(transform)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def picture(self, position: int) -> Image.Image:
        return Image.fromarray(self._pixels[position].permute(1, 2, 0).numpy())

    def size(self, position: int) -> tuple[int, int]:
        return self._pixels.shape[2], self._pixels.shape[3]


@dataclass(frozen=True, eq=False)
class MemoryPictures:
    """A list that is small enough to be held: uint8 pixels (n, 3, H, W), int64 labels (n,) and the names."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    drawn_first: bool = field(default=False, init=False)

    def at(self, positions: Sequence[int]) -> MemoryPictures:
        """Return the pictures at these positions, in this order."""
        return MemoryPictures(self.pixels[list(positions)], self.labels[list(positions)], self.class_names)

    def open(self, transform: ImageTransform, *, originals: bool = False, progress: Progress | None = None) -> Split:
        """Make the pictures readable; see :meth:`Pictures.open`."""
        kept = _MemoryOriginals(self.pixels, transform)
        if originals:
            return Split.whole(kept, self.labels, self.class_names)
        fits = self.pixels.shape[2:] == (transform.size, transform.size)
        return Split.whole(self.pixels if fits else kept[:], self.labels, self.class_names)

    def notes(self, transform: ImageTransform, *, originals: bool = False) -> list[str]:
        """Return nothing: these are as they were meant."""
        return []

    def contents(self, transform: ImageTransform, *, originals: bool = False) -> dict[str, str]:
        """Return nothing: these have no files."""
        return {}

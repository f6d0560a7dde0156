"""What a data set is: three lists of labelled images, names, and a sentence for zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # equal only to itself, so that it can key a cache
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8 (n, 3, H, W), as decoded.
        labels: int64 (n,), indices into ``class_names``.
        class_names: as prompts write them.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: list[int]) -> Split:
        """Return the images at these positions, in this order."""
        return Split(self.images[indices], self.labels[indices], self.class_names)

    def of_classes(self, labels: list[int]) -> Split:
        """Return the images of these classes alone, renumbered 0, 1, ... in the order given."""
        renumbered = torch.full((len(self.class_names),), -1)
        renumbered[labels] = torch.arange(len(labels))
        new = renumbered[self.labels]
        chosen = new >= 0
        return Split(self.images[chosen], new[chosen], tuple(self.class_names[label] for label in labels))


@dataclass(frozen=True)
class Dataset:
    """A data set with its three fixed lists.

    Attributes:
        name: as configurations write it.
        train: few-shot samples are drawn from it.
        validation: validation samples are drawn from it.
        open_test: returns the sealed test list. A function, so that nothing reads it by accident: only the test
            phase of a study calls it.
        template: the zero-shot sentence, ``{}`` for the name.
        source: where the data come from and under which licence, for records.
    """

    name: str
    train: Split
    validation: Split
    open_test: Callable[[], Split] = field(repr=False)
    template: str
    source: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.train.class_names

    @property
    def mean_pixel(self) -> tuple[float, float, float]:
        """The mean colour of the training list, three values in [0, 1]."""
        r, g, b = self.train.images.double().div(255).mean((0, 2, 3)).tolist()
        return r, g, b

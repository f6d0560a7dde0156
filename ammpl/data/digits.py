"""The embedded data set: 1,797 real handwritten digits of 8x8 pixels, from the scikit-learn wheel.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
(CC BY 4.0); scikit-learn ships its test part as ``load_digits``.

The first 90 images of each class, in the data set's order, are the pool: 50 to train on, 40 to validate on. The other
897 are the sealed test list; nothing in this project was chosen by looking at them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ammpl.data.dataset import Dataset, MemoryPictures

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POOL_PER_CLASS = 90
TRAIN_PER_CLASS = 50


Draw = Callable[[np.ndarray, np.ndarray], Tensor]
"""From (all digits, (n, 8, 8) with values 0..16; positions of some) to those as uint8 (m, 3, 28, 28)."""


def open_digits() -> Dataset:
    """Open the digits as 28x28 images of three equal channels."""
    return digits_drawn("digits", lambda raw, chosen: enlarge(raw[chosen]))


def digits_drawn(name: str, draw: Draw) -> Dataset:
    """Open the digits as images of some kind; those of the sealed test list are drawn when it is opened.

    Args:
        name: of the data set, as configurations write it.
        draw: makes the images.
    """
    raw, labels = read_digits()
    # How many images of the same class came before each one: its place within the class.
    one_hot = torch.nn.functional.one_hot(labels, len(NAMES))
    place = (one_hot.cumsum(0) - one_hot).gather(1, labels[:, None])[:, 0]

    def pictures(chosen: Tensor) -> MemoryPictures:
        return MemoryPictures(draw(raw, chosen.nonzero()[:, 0].numpy()), labels[chosen], NAMES)

    return Dataset(
        name=name,
        class_names=NAMES,
        train=pictures(place < TRAIN_PER_CLASS),
        validation=pictures((place >= TRAIN_PER_CLASS) & (place < POOL_PER_CLASS)),
        open_test=lambda: pictures(place >= POOL_PER_CLASS),
        template="a photo of a {}.",
        source="Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, CC BY 4.0), from scikit-learn",
        split_source="the first 50 images of each class, the next 40, the rest",
    )


def read_digits() -> tuple[np.ndarray, Tensor]:
    """Return all digits, (n, 8, 8) with values 0..16, and their classes, int64 (n,).

    They are read from scikit-learn's file: to import it, for its ``load_digits``, takes a worker a second.
    """
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is a requirement"
    table = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), torch.from_numpy(table[:, -1]).long()


def enlarge(raw: np.ndarray) -> Tensor:
    """Turn 8x8 digits with values 0..16 (n, 8, 8) into uint8 (n, 3, 28, 28): bicubic x3, then 2 pixels of margin."""
    large = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC))
            for image in (raw / 16).astype(np.float32)
        ]
    )
    pixels = torch.from_numpy(large).clamp(0, 1).mul(255).round().to(torch.uint8)
    return torch.nn.functional.pad(pixels, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1)

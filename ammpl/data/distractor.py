"""The embedded digits beside a distractor: a task for which the meaningless patches are known.

The canvas is 28x28, 7x7 patches of 4 pixels for the embedded backbone. The digit takes five columns of patches, the
distractor the two others: either uniform random pixels, or texture, which is 4x4 pieces of another digit, shuffled.
A picture's distractor is decided by its place in the data set alone, so that it tells nothing about the label.
Images, labels and lists are those of ``digits``; the sealed test list stays sealed.

Half of the canvas for each would be neater, but digits 16 pixels wide are too narrow for the embedded backbone.
Zero-shot accuracy on the pool (900 images; ``digits`` itself has .83, chance is .1), by the width of the digit:

========================= ================ =================
digit at                  left, 16 / 20 px right, 16 / 20 px
========================= ================ =================
distractor blacked out    .52 / .74        .40 / .67
beside noise              .27 / .65        .20 / .56
beside texture            .29 / .64        .29 / .57
========================= ================ =================
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ammpl.data.dataset import Dataset
from ammpl.data.digits import digits_drawn, enlarge

PATCH = 4
GRID = 7
DIGIT_COLUMNS = 5
SOURCES = 200
"""Textures are cut from the data set's first images: all of them are in the training list."""


class Distractor(NamedTuple):
    """Where the digit is, and what is on the other side."""

    digit: Literal["left", "right"]
    kind: Literal["texture", "noise"]


DISTRACTORS = {
    "digits-distractor": Distractor("left", "texture"),
    "digits-distractor-right": Distractor("right", "texture"),
    "digits-distractor-noise": Distractor("left", "noise"),
    "digits-distractor-noise-right": Distractor("right", "noise"),
}
"""By the name of the data set."""


def open_distractor(name: str) -> Dataset:
    """Open the digits beside a distractor, as 28x28 images of three equal channels.

    Args:
        name: one of :data:`DISTRACTORS`.
    """
    digit, kind = DISTRACTORS[name]

    def draw(raw: np.ndarray, chosen: np.ndarray) -> Tensor:
        beside = _noise(chosen) if kind == "noise" else _texture(raw, chosen)
        parts = [_narrow(raw[chosen]), beside]
        canvas = np.concatenate(parts if digit == "left" else parts[::-1], axis=2)
        return torch.from_numpy(canvas)[:, None].repeat(1, 3, 1, 1)

    return digits_drawn(name, draw)


def meaningless_patches(name: str) -> Tensor:
    """Return which patches tell nothing about the label, bool (49,), row by row.

    Args:
        name: one of :data:`DISTRACTORS`.
    """
    columns = torch.arange(GRID) >= DIGIT_COLUMNS
    if DISTRACTORS[name].digit == "right":
        columns = columns.flip(0)
    return columns.repeat(GRID)


def _narrow(raw: np.ndarray) -> np.ndarray:
    """Turn 8x8 digits with values 0..16 (n, 8, 8) into uint8 (n, 28, 20): two pixels of margin above and below.

    The outer columns of 8x8 digits are almost always empty; without them the strokes keep most of their width.
    """
    size = (PATCH * DIGIT_COLUMNS, 24)
    digits = [
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        for image in (raw[:, :, 1:7] / 16).astype(np.float32)
    ]
    pixels = np.rint(np.stack(digits).clip(0, 1) * 255).astype(np.uint8)
    return np.pad(pixels, ((0, 0), (2, 2), (0, 0)))


def _noise(chosen: np.ndarray) -> np.ndarray:
    """Return uniform random pixels, uint8 (n, 28, 8)."""
    shape = (PATCH * GRID, PATCH * (GRID - DIGIT_COLUMNS))
    return np.stack([_stream(position).randint(0, 256, shape).astype(np.uint8) for position in chosen])


def _texture(raw: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return patches of one random digit each, in a random order, uint8 (n, 28, 8)."""
    sources = enlarge(raw[:SOURCES])[:, 0].numpy()
    # (n, 7, 4, 7, 4) -> (n, 49, 4, 4): the patches of each source
    patches = sources.reshape(-1, GRID, PATCH, GRID, PATCH).swapaxes(2, 3).reshape(-1, GRID * GRID, PATCH, PATCH)
    width = GRID - DIGIT_COLUMNS
    textures = []
    for position in chosen:
        stream = _stream(position)
        of_source = patches[stream.randint(SOURCES)]
        taken = of_source[stream.permutation(GRID * GRID)[: GRID * width]]  # (14, 4, 4)
        textures.append(taken.reshape(GRID, width, PATCH, PATCH).swapaxes(1, 2).reshape(GRID * PATCH, width * PATCH))
    return np.stack(textures)


def _stream(position: np.intp) -> np.random.RandomState:
    return np.random.RandomState(int(position))  # NumPy promises that this one's numbers never change

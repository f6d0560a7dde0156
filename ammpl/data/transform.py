"""From a decoded picture to the square of pixels that a backbone reads.

Evaluation: open_clip's own preprocessing for the backbone (size, interpolation, resize mode). Training: the CoOp
family's augmentation, a random crop of 8 to 100 % of the area with an aspect of 3/4 to 4/3, resized with the
backbone's interpolation, mirrored half of the time (docs/protocol.md). Both return uint8: scaling and normalising are
the backbone's, on its device.

Shapes: S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

CROP_AREA = [0.08, 1.0]
CROP_ASPECT = [3 / 4, 4 / 3]
CROP_TRIES = 10
"""Boxes drawn before the centre is taken: of thread-like pictures few boxes fit."""
MIRRORED = 0.5
AUGMENTATION = {"crop_area": CROP_AREA, "crop_aspect": CROP_ASPECT, "mirrored": MIRRORED}
"""The training augmentation, as records tell it."""


@dataclass(frozen=True)
class Crop:
    """One draw of the training augmentation: a box in the picture, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


@dataclass(frozen=True)
class ImageTransform:
    """What a backbone's preprocessing says about geometry.

    Attributes:
        size: S, pixels a side.
        interpolation: ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest`` (resize the shorter side, cut the centre), ``longest`` (fit and pad) or ``squash``.
        fill_color: of the padding in ``longest``, 0..255.
    """

    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0

    def __str__(self) -> str:
        return f"{self.size}-{self.interpolation}-{self.resize_mode}-{self.fill_color}"

    @cached_property
    def _steps(self) -> Any:
        whole = image_transform(
            self.size,
            is_train=False,
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            fill_color=self.fill_color,
        )
        return whole.transforms[:-2]  # the last two make a float tensor and normalise it

    def evaluation_pixels(self, picture: Image.Image) -> np.ndarray:
        """Return an RGB picture as evaluation shows it, uint8 (3, S, S)."""
        for step in self._steps:
            picture = step(picture)
        return _channels_first(picture)

    def augmented_pixels(self, picture: Image.Image, crop: Crop) -> np.ndarray:
        """Return an RGB picture as one training step shows it, uint8 (3, S, S)."""
        box = (crop.top, crop.left, crop.height, crop.width)
        mode = InterpolationMode(self.interpolation)
        picture = transforms.resized_crop(picture, *box, [self.size, self.size], mode)
        return _channels_first(transforms.hflip(picture) if crop.mirrored else picture)


def draw_crops(sizes: Sequence[tuple[int, int]], seed: int) -> list[Crop]:
    """Draw one training augmentation for each picture.

    The law and the draws are those of torchvision's ``RandomResizedCrop.get_params`` under this seed, four times as
    fast and from a stream of their own: a batch of 32 takes a third of a millisecond.

    Args:
        sizes: (height, width) of each picture in pixels.
        seed: decides all of them.
    """
    stream = torch.Generator().manual_seed(seed)
    share, pixels = torch.empty(1), torch.empty(1, dtype=torch.int64)
    log_aspect = torch.tensor(CROP_ASPECT).log().tolist()

    def start(longest: int) -> int:
        return int(pixels.random_(0, longest + 1, generator=stream).item())

    def box(height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(CROP_TRIES):
            area = height * width * share.uniform_(*CROP_AREA, generator=stream).item()
            aspect = share.uniform_(*log_aspect, generator=stream).exp_().item()
            wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < tall <= height:
                return start(height - tall), start(width - wide), tall, wide
        wide, tall = min(width, round(height * CROP_ASPECT[1])), min(height, round(width / CROP_ASPECT[0]))
        return (height - tall) // 2, (width - wide) // 2, tall, wide  # the centre

    return [Crop(*box(*size), share.uniform_(generator=stream).item() < MIRRORED) for size in sizes]


def _channels_first(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

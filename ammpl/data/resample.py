"""Crops of decoded pictures, resized and mirrored on the device that holds them, as PIL does it.

PIL's antialiased resize: along each row, then along each column, a weighted mean of the pixels under a kernel that
widens with the reduction, rounded to 8 bits each time. Here the weights are float32 where PIL's are fixed-point, and
rows always come first, where late versions of PIL begin with columns for some shapes: on noise that makes half a level
of 255, on photographs less.

Two forms, equal but for a rounding now and then: one kernel for all pictures of a batch (:mod:`ammpl.data.kernel`),
where Triton can build it for the GPU; and plain tensor operations, picture by picture, everywhere. Neither reads
anything back from the device.

Shapes: B pictures, S pixels a side, N pixels of a crop along one side.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ammpl.data.transform import Crop, ImageTransform


@dataclass(frozen=True)
class Place:
    """Where rows of a picture lie in flat memory, (height, width, 3) bytes.

    Attributes:
        start: of the first row's first byte.
        width: of the picture in pixels.
    """

    start: int
    width: int


def resize_crops(source: Tensor, places: Sequence[Place], crops: Sequence[Crop], transform: ImageTransform) -> Tensor:
    """Return one training view of each picture, uint8 (B, 3, S, S), on the source's device.

    Args:
        source: uint8, flat: the pictures' bytes.
        places: of the pictures in it.
        crops: of each, inside of it.
        transform: says S and the interpolation.
    """
    if source.is_cuda and kernel_works(source.device, transform):
        return fused(source, places, crops, transform)
    return plain(source, places, crops, transform)


def plain(source: Tensor, places: Sequence[Place], crops: Sequence[Crop], transform: ImageTransform) -> Tensor:
    """:func:`resize_crops` in tensor operations."""
    views = []
    for place, crop in zip(places, crops, strict=True):
        first = place.start + 3 * (crop.top * place.width + crop.left)
        picture = source.as_strided((3, crop.height, crop.width), (1, 3 * place.width, 3), first).float()
        across = _weights(crop.width, transform, source.device)
        down = _weights(crop.height, transform, source.device)
        view = _rounded(down @ _rounded(picture @ across.T))
        views.append(view.flip(2) if crop.mirrored else view)
    return torch.stack(views).byte()


def fused(source: Tensor, places: Sequence[Place], crops: Sequence[Crop], transform: ImageTransform) -> Tensor:
    """:func:`resize_crops` in two launches of one Triton kernel, however many pictures and sizes there are."""
    from ammpl.data import kernel  # imports Triton, which not every machine has

    size = transform.size
    rows, table = 0, []
    for place, crop in zip(places, crops, strict=True):
        first = place.start + 3 * (crop.top * place.width + crop.left)
        table.append([first, 3 * place.width, crop.height, crop.width, rows * size * 3, crop.mirrored])
        rows += crop.height
    host = torch.tensor(table, dtype=torch.int64)
    table_B6 = host.pin_memory().to(source.device, non_blocking=True) if source.is_cuda else host
    middle = source.new_empty(rows * size * 3)
    pixels = source.new_empty(len(crops), 3, size, size)
    bicubic, tallest = transform.interpolation == "bicubic", max(crop.height for crop in crops)
    kernel.resample(source, middle, table_B6, tallest * size * 3, size, down=False, bicubic=bicubic)
    kernel.resample(middle, pixels, table_B6, size * size * 3, size, down=True, bicubic=bicubic)
    return pixels


@cache
def kernel_works(device: torch.device, transform: ImageTransform) -> bool:
    """Return whether Triton can build the kernel of a transform for a device; say it once where it cannot."""
    crop = Crop(0, 0, 2, 2, mirrored=False)
    try:
        fused(torch.zeros(12, dtype=torch.uint8, device=device), [Place(0, 2)], [crop], transform)
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:  # no Triton, no C compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"training pictures are cropped without the Triton kernel, slower: {reason}", stacklevel=2)
        return False
    return True


def _weights(length: int, transform: ImageTransform, device: torch.device) -> Tensor:
    """Return what each pixel along a side counts for each of the S new ones, float32 (S, N); rows add up to 1."""
    scale = length / transform.size
    centers_S1 = (torch.arange(transform.size, device=device)[:, None] + 0.5) * scale
    x = ((torch.arange(length, device=device) + 0.5 - centers_S1) / max(scale, 1.0)).abs()
    if transform.interpolation == "bicubic":  # Keys (1981), a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)

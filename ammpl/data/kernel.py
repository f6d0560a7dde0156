"""One pass of PIL's antialiased resize, along rows or columns, as a Triton kernel; see :mod:`ammpl.data.resample`.

Apart from it, since importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
"""Values that a program makes."""


@triton.jit  # type: ignore[untyped-decorator]
def _pass(  # type: ignore[no-untyped-def]
    source,
    out,
    table,
    SIZE: tl.constexpr,
    DOWN: tl.constexpr,
    BICUBIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The picture's row of the table.
    picture = tl.program_id(1)
    entry = table + picture * 6
    first = tl.load(entry)
    stride = tl.load(entry + 1)
    height = tl.load(entry + 2).to(tl.int32)
    width = tl.load(entry + 3).to(tl.int32)
    middle = tl.load(entry + 4)
    mirrored = tl.load(entry + 5)

    # A program's values: where they come from (their pixel 0, the step from one to the next, how many), where they go.
    begin = tl.program_id(0) * BLOCK
    value = begin + tl.arange(0, BLOCK)
    if DOWN:  # (height, S, 3) -> (3, S, S)
        count = 3 * SIZE * SIZE
        target = value // SIZE % SIZE
        column = value % SIZE
        column = tl.where(mirrored != 0, SIZE - 1 - column, column)
        origin = middle + column * 3 + value // (SIZE * SIZE)
        step = SIZE * 3
        length = height
        place = picture.to(tl.int64) * count + value
    else:  # a crop of a picture (., ., 3) -> (height, S, 3)
        count = height * (SIZE * 3)
        target = value // 3 % SIZE
        origin = first + (value // (SIZE * 3)) * stride + value % 3
        step = 3
        length = width
        place = middle + value
    inside = value < count

    scale = length.to(tl.float32) / SIZE
    spread = tl.maximum(scale, 1.0)
    reach = spread * (2.0 if BICUBIC else 1.0)
    center = (target.to(tl.float32) + 0.5) * scale
    lowest = tl.maximum((center - reach + 0.5).to(tl.int32), 0)
    taps = tl.where(begin < count, (2.0 * reach).to(tl.int32) + 2, 0)
    total = tl.zeros([BLOCK], tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    for tap in range(taps):
        index = lowest + tap
        x = tl.abs((index.to(tl.float32) + 0.5 - center) / spread)
        if BICUBIC:
            near = (1.5 * x - 2.5) * x * x + 1.0
            far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
            weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
        else:
            weight = tl.maximum(1.0 - x, 0.0)
        there = inside & (index < length)
        weight = tl.where(there, weight, 0.0)
        total += weight * tl.load(source + origin + index * step, mask=there, other=0).to(tl.float32)
        weights += weight
    mean = total / tl.where(inside, weights, 1.0)
    tl.store(out + place, tl.minimum(tl.maximum(mean + 0.5, 0.0), 255.0).to(tl.uint8), mask=inside)


def resample(
    source: Tensor, out: Tensor, table_B6: Tensor, largest: int, size: int, *, down: bool, bicubic: bool
) -> None:
    """Resize all crops of a batch along one side.

    Args:
        source: uint8; pictures, or with ``down`` what the pass along rows wrote.
        out: uint8; crops (height, S, 3), one after the other; with ``down`` the views (B, 3, S, S).
        table_B6: int64, a row a crop: first byte in the pictures, bytes from row to row, height, width, first byte in
            what lies between the passes, whether it is mirrored.
        largest: values that any one crop gets.
        size: S.
        down: along columns rather than rows.
        bicubic: rather than bilinear.
    """
    grid = (triton.cdiv(largest, BLOCK), len(table_B6))
    _pass[grid](source, out, table_B6, SIZE=size, DOWN=down, BICUBIC=bicubic, BLOCK=BLOCK)

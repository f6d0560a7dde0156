"""Triton kernels of the towers' blocks, for sequences as short as CLIP's; :mod:`ammpl.model.fused` uses them.

Attention: a program has one head of one sequence: all of its queries at a time, a block of its keys after the other.
So the gradient of a query is a sum that one program makes in one order, the same each time, and nothing is written
twice. Norms: a program has one row.

Apart from where they are used, since importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Of a block."""


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv,
    out,
    logsumexp,
    length,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    sequence = tl.program_id(0) // HEADS
    column = tl.program_id(0) % HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < length
    place = (sequence.to(tl.int64) * length + row)[:, None]
    wide = HEADS * WIDTH  # of a row of out; those of qkv are queries, keys and values side by side
    q = tl.load(qkv + place * (3 * wide) + column, mask=inside, other=0.0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        key_place = (sequence.to(tl.int64) * length + key)[:, None] * (3 * wide) + column
        k = tl.load(qkv + key_place + wide, mask=key[:, None] < length, other=0.0)
        v = tl.load(qkv + key_place + 2 * wide, mask=key[:, None] < length, other=0.0)
        seen = key[None, :] < length
        if CAUSAL:  # every row sees key 0, which is in the first block
            seen = seen & (row[:, None] >= key[None, :])
        score = tl.where(seen, tl.dot(q, tl.trans(k)) * (scale * LOG2E), float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        p = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(p, 1)
        mixed = mixed * shrink[:, None] + tl.dot(p.to(q.dtype), v)
        largest = larger
    tl.store(out + place * wide + column, (mixed / total[:, None]).to(q.dtype), mask=inside)
    tl.store(logsumexp + tl.program_id(0) * length + row, (largest + tl.log2(total)) / LOG2E, mask=row < length)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_backward(  # type: ignore[no-untyped-def]
    qkv,
    out,
    d_out,
    logsumexp,
    d_qkv,
    length,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    sequence = tl.program_id(0) // HEADS
    column = tl.program_id(0) % HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    row = tl.arange(0, ROWS)
    inside = row[:, None] < length
    place = (sequence.to(tl.int64) * length + row)[:, None]
    wide = HEADS * WIDTH
    q = tl.load(qkv + place * (3 * wide) + column, mask=inside, other=0.0)
    grad = tl.load(d_out + place * wide + column, mask=inside, other=0.0)
    mixed = tl.load(out + place * wide + column, mask=inside, other=0.0)
    mean = tl.sum(mixed.to(tl.float32) * grad.to(tl.float32), 1)
    normalizer = tl.load(logsumexp + tl.program_id(0) * length + row, mask=row < length, other=0.0) * LOG2E
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        there = key[:, None] < length
        key_place = (sequence.to(tl.int64) * length + key)[:, None] * (3 * wide) + column
        k = tl.load(qkv + key_place + wide, mask=there, other=0.0)
        v = tl.load(qkv + key_place + 2 * wide, mask=there, other=0.0)
        score = tl.dot(q, tl.trans(k)) * (scale * LOG2E)
        seen = inside & (key[None, :] < length)
        if CAUSAL:
            seen = seen & (row[:, None] >= key[None, :])
        p = tl.where(seen, tl.exp2(score - normalizer[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(q.dtype)), grad)
        dp = tl.dot(grad, tl.trans(v))
        ds = (p * (dp - mean[:, None])).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q) * scale
        dq += tl.dot(ds, k)
        tl.store(d_qkv + key_place + wide, dk.to(q.dtype), mask=there)
        tl.store(d_qkv + key_place + 2 * wide, dv.to(q.dtype), mask=there)
    tl.store(d_qkv + place * (3 * wide) + column, (dq * scale).to(q.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    x, y, weight, bias, total, normed, means, scales, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    dtype = x.dtype.element_ty
    both = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + tl.load(y + place, mask=inside, other=0.0)
    both = both.to(dtype)  # rounded as a sum that is written: what is normalised is what goes on
    tl.store(total + place, both, mask=inside)
    value = both.to(tl.float32)
    mean = tl.sum(value, 0) / WIDTH
    apart = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(apart * apart, 0) / WIDTH + epsilon)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, (apart * scale * factor + offset).to(dtype), mask=inside)
    tl.store(means + tl.program_id(0), mean)
    tl.store(scales + tl.program_id(0), scale)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_backward(  # type: ignore[no-untyped-def]
    total, d_total, d_normed, weight, means, scales, d_both, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(d_normed + place, mask=inside, other=0.0).to(tl.float32) * factor
    scale = tl.load(scales + tl.program_id(0))
    value = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
    hat = tl.where(inside, (value - tl.load(means + tl.program_id(0))) * scale, 0.0)
    through = (grad - tl.sum(grad, 0) / WIDTH - hat * (tl.sum(grad * hat, 0) / WIDTH)) * scale
    direct = tl.load(d_total + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_both + place, (direct + through).to(total.dtype.element_ty), mask=inside)


def attend(qkv_BLX: Tensor, out_BLW: Tensor, logsumexp_BHL: Tensor, *, causal: bool) -> None:
    """Write what rows make of the rows that they attend to.

    Args:
        qkv_BLX: queries, keys and values side by side; X is 3 W.
        out_BLW: where the result goes, heads side by side.
        logsumexp_BHL: where that of each query's scaled scores goes.
        causal: whether a query sees itself and what precedes it; else all.
    """
    B, H, L = logsumexp_BHL.shape
    E, keys, rows = out_BLW.shape[-1] // H, min(KEYS, _power(L)), min(128, _power(L))
    grid, warps = (B * H, triton.cdiv(L, rows)), 4 if rows <= 64 else 8
    _attend[grid](qkv_BLX, out_BLW, logsumexp_BHL, L, E**-0.5, H, E, rows, keys, causal, num_warps=warps)


def attend_backward(
    qkv_BLX: Tensor, out_BLW: Tensor, d_out_BLW: Tensor, logsumexp_BHL: Tensor, d_qkv_BLX: Tensor, *, causal: bool
) -> None:
    """Write the gradient of queries, keys and values, which stand side by side.

    Args:
        qkv_BLX: what :func:`attend` read.
        out_BLW: what it wrote.
        d_out_BLW: the gradient of that.
        logsumexp_BHL: what it wrote.
        d_qkv_BLX: where the gradient goes.
        causal: as there.
    """
    B, H, L = logsumexp_BHL.shape
    E, rows = out_BLW.shape[-1] // H, _power(L)
    tensors = (qkv_BLX, out_BLW, d_out_BLW, logsumexp_BHL, d_qkv_BLX)
    warps = 8 if rows > 64 else 4
    _attend_backward[(B * H,)](
        *tensors, L, E**-0.5, H, E, rows, min(KEYS, rows), causal, num_warps=warps, num_stages=1
    )


def add_norm(
    x_RW: Tensor,
    y_RW: Tensor,
    weight_W: Tensor,
    bias_W: Tensor,
    total_RW: Tensor,
    normed_RW: Tensor,
    means_R: Tensor,
    scales_R: Tensor,
    epsilon: float,
) -> None:
    """Write x + y, its layer norm, and each row's mean and 1 / standard deviation."""
    R, W = x_RW.shape
    tensors = (x_RW, y_RW, weight_W, bias_W, total_RW, normed_RW, means_R, scales_R)
    _add_norm[(R,)](*tensors, epsilon, W, _power(W), num_warps=4)


def add_norm_backward(
    total_RW: Tensor,
    d_total_RW: Tensor,
    d_normed_RW: Tensor,
    weight_W: Tensor,
    means_R: Tensor,
    scales_R: Tensor,
    d_both_RW: Tensor,
) -> None:
    """Write the gradient of x, which is that of y, from those of what :func:`add_norm` wrote."""
    R, W = total_RW.shape
    tensors = (total_RW, d_total_RW, d_normed_RW, weight_W, means_R, scales_R, d_both_RW)
    _add_norm_backward[(R,)](*tensors, W, _power(W), num_warps=4)


def _power(length: int) -> int:
    """Return the rows of a tile that holds so many; products need sixteen."""
    return max(16, 1 << (length - 1).bit_length())

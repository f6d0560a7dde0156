"""Triton kernels of the towers' blocks, for sequences as short as CLIP's; :mod:`ammpl.model.fused` uses them.

Attention: a program has one head of one sequence: all of its queries at a time, a block of its keys after the other.
So the gradient of a query is a sum that one program makes in one order, the same each time, and nothing is written
twice. Sequences may go on from prefixes that they share, whose rows stand before all others: each sequence has a
gradient of its prefix, to be added up. Norms: a program has one row.

Apart from where they are used, since importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Of a block."""


@triton.jit  # type: ignore[untyped-decorator]
def _place(sequence, row, length, prefix, sharing, prefixes, PREFIXED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return where rows of a sequence stand, (rows, 1)."""
    place = sequence.to(tl.int64) * length + row
    if PREFIXED:
        after = prefixes * prefix + place - (sequence + 1) * prefix
        place = tl.where(row < prefix, sequence // sharing * prefix + row, after)
    return place[:, None]


@triton.jit
def _is_own(sequence, row, prefix, sharing):  # type: ignore[no-untyped-def]
    """Return which rows a sequence writes, (rows, 1): those of a prefix, its first sequence."""
    return ((row >= prefix) | (sequence % sharing == 0))[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv,
    out,
    logsumexp,
    length,
    prefix,
    sharing,
    prefixes,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PREFIXED: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    sequence = tl.program_id(0) // HEADS
    column = tl.program_id(0) % HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < length
    place = _place(sequence, row, length, prefix, sharing, prefixes, PREFIXED)
    wide = HEADS * WIDTH  # of a row of out; those of qkv are queries, keys and values side by side
    q = tl.load(qkv + place * (3 * wide) + column, mask=inside, other=0.0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        key_place = _place(sequence, key, length, prefix, sharing, prefixes, PREFIXED) * (3 * wide) + column
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
    own = inside & _is_own(sequence, row, prefix, sharing)
    tl.store(out + place * wide + column, (mixed / total[:, None]).to(q.dtype), mask=own)
    tl.store(logsumexp + tl.program_id(0) * length + row, (largest + tl.log2(total)) / LOG2E, mask=row < length)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_backward(  # type: ignore[no-untyped-def]
    qkv,
    out,
    d_out,
    logsumexp,
    d_qkv,
    d_prefix,
    length,
    prefix,
    sharing,
    prefixes,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PREFIXED: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    sequence = tl.program_id(0) // HEADS
    column = tl.program_id(0) % HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    row = tl.arange(0, ROWS)
    inside = row[:, None] < length
    place = _place(sequence, row, length, prefix, sharing, prefixes, PREFIXED)
    wide = HEADS * WIDTH
    q = tl.load(qkv + place * (3 * wide) + column, mask=inside, other=0.0)
    own = inside & _is_own(sequence, row, prefix, sharing)
    grad = tl.load(d_out + place * wide + column, mask=own, other=0.0)
    mixed = tl.load(out + place * wide + column, mask=inside, other=0.0)
    mean = tl.sum(mixed.to(tl.float32) * grad.to(tl.float32), 1)
    normalizer = tl.load(logsumexp + tl.program_id(0) * length + row, mask=row < length, other=0.0) * LOG2E
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        there = key[:, None] < length
        key_place = _place(sequence, key, length, prefix, sharing, prefixes, PREFIXED) * (3 * wide) + column
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
        shared = key[:, None] < prefix
        tl.store(d_qkv + key_place + wide, dk.to(q.dtype), mask=there & ~shared)
        tl.store(d_qkv + key_place + 2 * wide, dv.to(q.dtype), mask=there & ~shared)
        if PREFIXED:
            of_prefix = (sequence.to(tl.int64) * prefix + key)[:, None] * (3 * wide) + column
            tl.store(d_prefix + of_prefix + wide, dk.to(q.dtype), mask=shared)
            tl.store(d_prefix + of_prefix + 2 * wide, dv.to(q.dtype), mask=shared)
    shared = row[:, None] < prefix
    tl.store(d_qkv + place * (3 * wide) + column, (dq * scale).to(q.dtype), mask=inside & ~shared)
    if PREFIXED:
        of_prefix = (sequence.to(tl.int64) * prefix + row)[:, None] * (3 * wide) + column
        tl.store(d_prefix + of_prefix, (dq * scale).to(q.dtype), mask=shared)


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


def attend(
    qkv_RX: Tensor, out_RW: Tensor, logsumexp_BHL: Tensor, prefixes: int, prefix_length: int, *, causal: bool
) -> None:
    """Write what rows make of the rows that they attend to.

    Args:
        qkv_RX: queries, keys and values side by side, the prefixes' rows first; X is 3 W.
        out_RW: where the result goes, heads side by side.
        logsumexp_BHL: where that of each query's scaled scores goes, of whole sequences.
        prefixes: how many there are, each of as many sequences; 0 where each stands alone.
        prefix_length: rows of each.
        causal: whether a query sees itself and what precedes it; else all. Prefixes need it.
    """
    B, H, L = logsumexp_BHL.shape
    E, keys, rows = out_RW.shape[1] // H, min(KEYS, _power(L)), min(128, _power(L))
    grid, warps = (B * H, triton.cdiv(L, rows)), 4 if rows <= 64 else 8
    places = (L, prefix_length, B // max(prefixes, 1), prefixes)
    constants = (H, E, rows, keys, causal, prefixes > 0)
    _attend[grid](qkv_RX, out_RW, logsumexp_BHL, *places, E**-0.5, *constants, num_warps=warps)


def attend_backward(
    qkv_RX: Tensor,
    out_RW: Tensor,
    d_out_RW: Tensor,
    logsumexp_BHL: Tensor,
    d_qkv_RX: Tensor,
    d_prefix_BPX: Tensor,
    prefixes: int,
    *,
    causal: bool,
) -> None:
    """Write the gradient of queries, keys and values, which stand side by side.

    Args:
        qkv_RX: what :func:`attend` read.
        out_RW: what it wrote.
        d_out_RW: the gradient of that.
        logsumexp_BHL: what it wrote.
        d_qkv_RX: where the gradient goes, but the prefixes'.
        d_prefix_BPX: where each sequence's part of its prefix's gradient goes.
        prefixes: as there.
        causal: as there.
    """
    B, H, L = logsumexp_BHL.shape
    E, rows = out_RW.shape[1] // H, _power(L)
    tensors = (qkv_RX, out_RW, d_out_RW, logsumexp_BHL, d_qkv_RX, d_prefix_BPX)
    places = (L, d_prefix_BPX.shape[1], B // max(prefixes, 1), prefixes)
    warps = 8 if rows > 64 else 4
    _attend_backward[(B * H,)](
        *tensors, *places, E**-0.5, H, E, rows, min(KEYS, rows), causal, prefixes > 0, num_warps=warps, num_stages=1
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

"""The backward pass of self-attention over short sequences, as a Triton kernel; see :mod:`ammpl.model.attention`.

A program has one head of one sequence: all of its queries at a time, a block of its keys after the other. So the
gradient of a query is a sum that one program makes in one order, the same each time, and nothing is written twice.

Apart from where it is used, since importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Of a block."""


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
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
    head = tl.program_id(0) % HEADS
    column = head * WIDTH + tl.arange(0, WIDTH)[None, :]
    row = tl.arange(0, ROWS)
    inside = row[:, None] < length
    place = (sequence.to(tl.int64) * length + row)[:, None]
    wide = HEADS * WIDTH  # of a row of out; those of qkv are queries, keys and values side by side
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


def backward(
    qkv_BLX: Tensor, out_BLW: Tensor, d_out_BLW: Tensor, logsumexp_BHL: Tensor, d_qkv_BLX: Tensor, *, causal: bool
) -> None:
    """Write the gradient of queries, keys and values, which stand side by side.

    Args:
        qkv_BLX: what attention read; X is 3 W.
        out_BLW: what it returned.
        d_out_BLW: the gradient of that.
        logsumexp_BHL: of the scaled scores of each query.
        d_qkv_BLX: where the gradient goes.
        causal: whether a query saw itself and what precedes it; else all.
    """
    B, H, L = logsumexp_BHL.shape
    E = out_BLW.shape[-1] // H
    rows = max(16, triton.next_power_of_2(L))
    tensors = (qkv_BLX, out_BLW, d_out_BLW, logsumexp_BHL, d_qkv_BLX)
    assert all(tensor.is_contiguous() for tensor in tensors)
    _backward[(B * H,)](
        *tensors, L, E**-0.5, H, E, rows, min(KEYS, rows), causal, num_warps=8 if rows > 64 else 4, num_stages=1
    )

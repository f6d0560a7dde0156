"""The towers' transformer blocks over open_clip's frozen modules, written for the backward pass.

Linear layers see 2-D input: with 3-D input they fall into a batched product with copies in the backward pass. Of the
last block only the row that is read is run. Tokens have the type of the blocks' weights.

Shapes: B sequences, L rows of each, R rows of all, W width, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ammpl.model import fused


@dataclass(frozen=True)
class Layout:
    """Causal sequences as the rows of one matrix, what they have in common once.

    A processor takes its time for rows: sequences stand in groups of one length, none is filled. A GPU takes it for
    kernels: all stand in one group, filled up to one length.

    Attributes:
        groups: of sequences of equal length, one after the other: (how many, rows of each).
        prefixes: how many sequences the first group has if the others go on from them (each of the other groups has as
            many after every prefix, the first prefix's first); 0 where each sequence stands alone.
        ends: which row of each sequence (but the prefixes) is read, where they are filled; else the last one is.
    """

    groups: tuple[tuple[int, int], ...]
    prefixes: int = 0
    ends: Tensor | None = None

    @classmethod
    def by_length(cls, lengths: Tensor, prefixes: int = 0, prefix_length: int = 0) -> tuple[Layout, list[Tensor]]:
        """Return the layout of sequences of these lengths, and which of them each group has (without the prefixes').

        Args:
            lengths: of the sequences; with prefixes, of what follows each of them. On the CPU.
            prefixes: how many there are.
            prefix_length: rows of each.
        """
        distinct = lengths.unique().tolist()
        members = [(lengths == length).nonzero()[:, 0] for length in distinct]
        groups = [(max(prefixes, 1) * len(m), length) for m, length in zip(members, distinct, strict=True)]
        return cls((((prefixes, prefix_length),) if prefixes else ()) + tuple(groups), prefixes), members

    @classmethod
    def filled(cls, lengths: Tensor, longest: int, prefixes: int = 0, prefix_length: int = 0) -> Layout:
        """Return the layout of sequences that are filled up to the length of the longest."""
        times = max(prefixes, 1)
        group = (times * len(lengths), longest)
        return cls((*([(prefixes, prefix_length)] if prefixes else []), group), prefixes, (lengths - 1).repeat(times))

    def split(self, rows_RX: Tensor) -> list[Tensor]:
        """Return each group's rows, (how many, rows of each, X)."""
        parts = rows_RX.split([count * length for count, length in self.groups])
        return [part.view(count, length, -1) for part, (count, length) in zip(parts, self.groups, strict=True)]


def run_block(block: Any, tokens_BLW: Tensor) -> Tensor:
    """Run one residual attention block in which a row attends to all rows of its sequence."""
    B, L, W = tokens_BLW.shape
    flat = tokens_BLW.reshape(B * L, W)
    mixed = _self_attention(_qkv(block, flat), block.attn.num_heads, Layout(((B, L),)))
    return _rest(block, flat, mixed).view(B, L, W)


def run_last_block(block: Any, tokens_BLW: Tensor) -> Tensor:
    """Run the last such block for row 0, the one that is read from it; returns (B, W)."""
    B, L, W = tokens_BLW.shape
    k, v = _heads(_qkv(block, tokens_BLW.reshape(B * L, W), slice(W, None)).view(B, L, -1), 2, block.attn.num_heads)
    first_BW = tokens_BLW[:, 0]
    (q,) = _heads(_qkv(block, first_BW, slice(W)).view(B, 1, W), 1, block.attn.num_heads)
    return _rest(block, first_BW, _attention(q, k, v))


def run_causal_block(block: Any, rows_RW: Tensor, layout: Layout) -> Tensor:
    """Run one residual attention block in which a row attends to itself and what precedes it in its sequence.

    Args:
        block: open_clip's module.
        rows_RW: its input.
        layout: which rows are whose.
    """
    heads = block.attn.num_heads
    qkv_RX = _qkv(block, rows_RW)
    if layout.ends is not None:
        return _rest(block, rows_RW, _self_attention(qkv_RX, heads, layout, causal=True))
    mixed, past = [], None
    for index, qkv in enumerate(layout.split(qkv_RX)):
        q, k, v = _heads(qkv, 3, heads)
        mixed.append(_attention(q, *_after(past, k, v), causal=True))
        if layout.prefixes and index == 0:
            past = (k, v)
    return _rest(block, rows_RW, torch.cat(mixed))


def run_last_causal_block(block: Any, rows_RW: Tensor, layout: Layout) -> Tensor:
    """Run the last such block for the row of each sequence that is read from it.

    Returns:
        (sequences, W) in the layout's order, the prefixes left out.
    """
    W, heads = rows_RW.shape[1], block.attn.num_heads
    if layout.ends is not None:
        mixed_RW = _self_attention(_qkv(block, rows_RW), heads, layout, causal=True)
        # Not indexed: the gradient of a product is the same each time, and 0 and 1 leave every value as it is.
        places = torch.arange(layout.groups[-1][1], device=layout.ends.device)
        end_CS1 = (layout.ends[:, None] == places)[:, :, None]
        ends_CW, mixed_CW = ((layout.split(rows)[-1] * end_CS1).sum(1) for rows in (rows_RW, mixed_RW))
        return _rest(block, ends_CW, mixed_CW)
    keys_values = layout.split(_qkv(block, rows_RW, slice(W, None)))
    ends, past = [rows[:, -1] for rows in layout.split(rows_RW)], None
    if layout.prefixes:
        past, keys_values, ends = _heads(keys_values[0], 2, heads), keys_values[1:], ends[1:]
    ends_BW = torch.cat(ends)
    queries = _qkv(block, ends_BW, slice(W)).split([len(end) for end in ends])
    mixed = []
    for query, key_value in zip(queries, keys_values, strict=True):
        (q,), (k, v) = _heads(query[:, None], 1, heads), _heads(key_value, 2, heads)
        mixed.append(_attention(q, *_after(past, k, v)))
    return _rest(block, ends_BW, torch.cat(mixed))


def _qkv(block: Any, rows_RW: Tensor, part: slice = slice(None)) -> Tensor:
    """Return queries, keys and values side by side, or a part of them."""
    weight, bias = block.attn.in_proj_weight[part], block.attn.in_proj_bias[part]
    return F.linear(block.ln_1(rows_RW), weight, bias)


def _after(past: tuple[Tensor, ...] | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values with those of the prefixes before them, each prefix's for all that follow it."""
    if past is None:
        return k, v
    times = len(k) // len(past[0])
    key, value = (heads.repeat_interleave(times, dim=0) if times > 1 else heads for heads in past)
    return torch.cat([key, k], 2), torch.cat([value, v], 2)


def _rest(block: Any, rows_RW: Tensor, mixed_RW: Tensor) -> Tensor:
    """Return a block's output, from its input and what attention made of it."""
    branch_RW, norm = block.ls_1(block.attn.out_proj(mixed_RW)), block.ln_2
    if fused.serves(rows_RW):
        rows_RW, normed_RW = fused.AddNorm.apply(rows_RW, branch_RW, norm.weight, norm.bias, norm.eps)
    else:
        rows_RW = rows_RW + branch_RW
        normed_RW = norm(rows_RW)
    return cast(Tensor, rows_RW + block.ls_2(block.mlp(normed_RW)))


def _self_attention(qkv_RX: Tensor, heads: int, layout: Layout, *, causal: bool = False) -> Tensor:
    """Return what rows make of the rows of their sequence, heads side by side: (R, W).

    Args:
        qkv_RX: queries, keys and values side by side.
        heads: H.
        layout: of sequences of one length, with prefixes or without.
        causal: whether a row attends to itself and what precedes it; else to all.
    """
    X, prefixes = qkv_RX.shape[1], layout.prefixes
    (_, S), P = layout.groups[-1], layout.groups[0][1] if prefixes else 0
    if fused.serves(qkv_RX) and P + S <= fused.LONGEST and 3 * heads * fused.HEAD_WIDTH == X:
        return cast(Tensor, fused.Attention.apply(qkv_RX, heads, P + S, prefixes, P, causal))
    if not prefixes:
        return _attention(*_heads(qkv_RX.view(-1, S, X), 3, heads), causal=causal)
    # Every sequence is put together whole.
    prefix_BPX, suffix_CSX = layout.split(qkv_RX)
    suffix_BCSX = suffix_CSX.view(prefixes, -1, S, X)
    prefix_BCPX = prefix_BPX[:, None].expand(-1, suffix_BCSX.shape[1], -1, -1)
    whole_CLX = torch.cat([prefix_BCPX, suffix_BCSX], 2).flatten(0, 1)
    mixed_BCLW = _attention(*_heads(whole_CLX, 3, heads), causal=causal).view(*suffix_BCSX.shape[:2], P + S, -1)
    prefix_BCPW, suffix_BCSW = mixed_BCLW.split([P, S], 2)
    return torch.cat([prefix_BCPW[:, 0].flatten(0, 1), suffix_BCSW.flatten(0, 2)])


def _heads(rows_BLX: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Return the parts that stand side by side, each (B, H, L, E)."""
    B, L, X = rows_BLX.shape
    # Split along the rows' width: in the backward pass that is one concatenation, unbinding is two copies.
    return tuple(part.view(B, L, heads, -1).transpose(1, 2) for part in rows_BLX.split(X // parts, dim=-1))


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v, heads side by side: (B * rows, W).

    Args:
        q: of the rows that attend, (B, H, rows, E).
        k: of the rows attended to, (B, H, keys, E).
        v: of the rows attended to, (B, H, keys, E).
        causal: whether the rows are the last ones, and each attends to itself and what precedes it; else to all.
    """
    rows, keys = q.shape[2], k.shape[2]
    plain = q.dtype is torch.bfloat16 and not q.is_cuda
    square, visible = causal and rows == keys and not plain, None
    if causal and rows > 1 and not square:
        visible = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows)
    if not plain:
        mixed = F.scaled_dot_product_attention(q, k, v, visible, is_causal=square)
    else:
        # On a CPU the fused backward pass is as slow in bf16 as in fp32, or slower; two plain products are 3 to 20
        # times faster and keep the probabilities, a fifth more memory.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        mixed = scores.softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

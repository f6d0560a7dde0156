"""The towers' transformer blocks over open_clip's frozen modules, written for the backward pass.

Linear layers see 2-D input: with 3-D input they fall into a batched product with copies in the backward pass. Of the
last block only the row that is read is run. Tokens have the type of the blocks' weights.

Shapes: B sequences, L rows, W width, H heads, E width of a head, P rows that precede them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

KeysAndValues = tuple[Tensor, Tensor]
"""Of one attention layer: each (B, H, rows, E)."""


def run_block(
    block: Any, tokens_BLW: Tensor, *, causal: bool, past: KeysAndValues | None = None
) -> tuple[Tensor, KeysAndValues]:
    """Run one residual attention block over all rows; return its output and the rows' keys and values.

    Args:
        block: open_clip's module.
        tokens_BLW: its input.
        causal: whether a row attends to itself and what precedes it, or to all rows.
        past: of rows that precede these ones, already run; with ``causal``.
    """
    B, L, W = tokens_BLW.shape
    H = block.attn.num_heads
    flat = tokens_BLW.reshape(B * L, W)
    qkv = F.linear(block.ln_1(flat), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = qkv.view(B, L, 3, H, W // H).permute(2, 0, 3, 1, 4)  # each (B, H, L, E)
    if past is None:
        mixed = _attention(q, k, v, causal=causal)
    else:
        P = past[0].shape[2]
        visible = torch.ones(L, P + L, dtype=torch.bool, device=q.device).tril(P)
        mixed = _attention(q, torch.cat([past[0], k], 2), torch.cat([past[1], v], 2), visible)
    flat = flat + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).reshape(B * L, W)))
    flat = flat + block.ls_2(block.mlp(block.ln_2(flat)))
    return flat.view(B, L, W), (k, v)


def run_last_block(block: Any, tokens_BLW: Tensor, rows_B: Tensor | None, past: KeysAndValues | None = None) -> Tensor:
    """Run the last block for the one row that is read from it; returns (B, W).

    Args:
        block: open_clip's module.
        tokens_BLW: its input.
        rows_B: the row of each sequence, which attends to itself and what precedes it (causal); None is row 0
            attending to all (the class token).
        past: of rows that precede these ones, already run.
    """
    B, L, W = tokens_BLW.shape
    H = block.attn.num_heads
    k, v = keys_and_values(block, tokens_BLW)
    if rows_B is None:
        picked, visible = tokens_BLW[:, 0], None
    else:
        picked = tokens_BLW[torch.arange(B, device=tokens_BLW.device), rows_B]
        visible = (torch.arange(L, device=tokens_BLW.device) <= rows_B[:, None])[:, None, None]  # (B, 1, 1, L)
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        visible = None if visible is None else F.pad(visible, (past[0].shape[2], 0), value=True)
    q = F.linear(block.ln_1(picked), block.attn.in_proj_weight[:W], block.attn.in_proj_bias[:W])
    mixed = _attention(q.view(B, H, 1, W // H), k, v, visible).reshape(B, W)
    row = picked + block.ls_1(block.attn.out_proj(mixed))
    return cast(Tensor, row + block.ls_2(block.mlp(block.ln_2(row))))


def keys_and_values(block: Any, tokens_BLW: Tensor) -> KeysAndValues:
    """Return a block's keys and values of all rows."""
    B, L, W = tokens_BLW.shape
    H = block.attn.num_heads
    normed = block.ln_1(tokens_BLW.reshape(B * L, W))
    kv = F.linear(normed, block.attn.in_proj_weight[W:], block.attn.in_proj_bias[W:])
    k, v = kv.view(B, L, 2, H, W // H).permute(2, 0, 3, 1, 4)
    return k, v


def repeat(heads_BHPE: Tensor, times: int) -> Tensor:
    """Repeat each sequence's keys or values for the suffixes that follow it: (B, ...) -> (B * times, ...)."""
    return heads_BHPE.repeat_interleave(times, dim=0) if times > 1 else heads_BHPE


def _attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v, each (B, H, rows, E).

    Args:
        q: of the rows that attend.
        k: of the rows attended to.
        v: of the rows attended to.
        visible: which of them each row attends to, True or False; None is all.
        causal: whether each row attends to itself and what precedes it.
    """
    if q.dtype is not torch.bfloat16 or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
    # On a CPU the fused backward pass is as slow in bf16 as in fp32, or slower; two plain products are 3 to 20 times
    # faster and keep the probabilities, a fifth more memory.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed

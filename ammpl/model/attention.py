"""Attention of the towers' blocks: which implementation serves which device, type and length.

On a GPU in bf16, sequences as short as CLIP's have a kernel for the backward pass
(:mod:`ammpl.model.attention_kernel`):
flash attention's deterministic one spends most of its time on what only long sequences need. Elsewhere PyTorch's own
are used, which all are deterministic if they are told to be.

Shapes: B sequences, L rows of each, W width, H heads, E width of a head, X = 3 W.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 256
"""Rows of a sequence that the kernel holds at a time."""


def self_attention(qkv_BLX: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Return what rows make of the rows that they attend to, heads side by side: (B * L, W).

    Args:
        qkv_BLX: queries, keys and values side by side.
        heads: H.
        causal: whether a row attends to itself and what precedes it; else to all rows of its sequence.
    """
    _, L, X = qkv_BLX.shape
    if (
        qkv_BLX.is_cuda
        and qkv_BLX.dtype is torch.bfloat16
        and L <= LONGEST
        and X // heads == 3 * 64
        and _kernel_works()
    ):
        mixed_BLW: Tensor = _SelfAttention.apply(qkv_BLX, heads, causal)
        return mixed_BLW.flatten(0, 1)
    return attention(*split_heads(qkv_BLX, 3, heads), causal=causal)


def split_heads(rows_BLX: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Return the parts that stand side by side, each (B, H, L, E)."""
    B, L, X = rows_BLX.shape
    # Split along the rows' width: in the backward pass that is one concatenation, unbinding is two copies.
    return tuple(part.view(B, L, heads, -1).transpose(1, 2) for part in rows_BLX.split(X // parts, dim=-1))


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
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


class _SelfAttention(torch.autograd.Function):
    """Flash attention forward, the kernel backward."""

    @staticmethod
    def forward(ctx: Any, qkv_BLX: Tensor, heads: int, causal: bool) -> Tensor:
        q, k, v = split_heads(qkv_BLX, 3, heads)
        mixed, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        mixed_BLW: Tensor = mixed.transpose(1, 2).flatten(2)
        ctx.save_for_backward(qkv_BLX, mixed_BLW, logsumexp)
        ctx.causal = causal
        return mixed_BLW

    @staticmethod
    def backward(ctx: Any, d_out_BLW: Tensor) -> tuple[Tensor, None, None]:
        from ammpl.model import attention_kernel  # imports Triton, which not every machine has

        qkv_BLX, out_BLW, logsumexp_BHL = (tensor.contiguous() for tensor in ctx.saved_tensors)
        gradient = torch.empty_like(qkv_BLX)
        attention_kernel.backward(qkv_BLX, out_BLW, d_out_BLW.contiguous(), logsumexp_BHL, gradient, causal=ctx.causal)
        return gradient, None, None


@cache
def _kernel_works() -> bool:
    """Return whether Triton can build the kernel for this GPU; say it once where it cannot."""
    qkv = torch.zeros(1, 16, 3 * 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    try:
        with torch.enable_grad():
            _SelfAttention.apply(qkv, 1, False).sum().backward()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:  # no Triton, no C compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"attention runs without the Triton kernel, slower: {reason}", stacklevel=2)
        return False
    return True

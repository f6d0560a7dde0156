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
        mixed_BLW: Tensor = torch.ops.ammpl.self_attention(qkv_BLX, heads, causal)[0]
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


@torch.library.custom_op("ammpl::self_attention", mutates_args=())
def _forward(qkv_BLX: Tensor, heads: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Return what rows make of the rows that they attend to (B, L, W), and their scores' logsumexp (B, H, L)."""
    q, k, v = split_heads(qkv_BLX, 3, heads)
    mixed, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return mixed.transpose(1, 2).flatten(2), logsumexp


@_forward.register_fake
def _(qkv_BLX: Tensor, heads: int, causal: bool) -> tuple[Tensor, Tensor]:
    B, L, X = qkv_BLX.shape
    return qkv_BLX.new_empty(B, L, X // 3), qkv_BLX.new_empty(B, heads, L, dtype=torch.float32)


@torch.library.custom_op("ammpl::self_attention_backward", mutates_args=())
def _backward(qkv_BLX: Tensor, out_BLW: Tensor, d_out_BLW: Tensor, logsumexp_BHL: Tensor, causal: bool) -> Tensor:
    """Return the gradient of queries, keys and values, side by side."""
    from ammpl.model import attention_kernel  # imports Triton, which not every machine has

    d_qkv_BLX = torch.empty_like(qkv_BLX, memory_format=torch.contiguous_format)
    values = (qkv_BLX.contiguous(), out_BLW.contiguous(), d_out_BLW.contiguous(), logsumexp_BHL.contiguous())
    attention_kernel.backward(*values, d_qkv_BLX, causal=causal)
    return d_qkv_BLX


@_backward.register_fake
def _(qkv_BLX: Tensor, out_BLW: Tensor, d_out_BLW: Tensor, logsumexp_BHL: Tensor, causal: bool) -> Tensor:
    return torch.empty_like(qkv_BLX, memory_format=torch.contiguous_format)


def _keep(
    context: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int, bool], output: tuple[Tensor, Tensor]
) -> None:
    context.save_for_backward(inputs[0], *output)
    context.causal = inputs[2]  # type: ignore[attr-defined]


def _gradient(context: torch.autograd.function.FunctionCtx, d_out_BLW: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    qkv_BLX, out_BLW, logsumexp_BHL = context.saved_tensors  # type: ignore[attr-defined]
    gradient = torch.ops.ammpl.self_attention_backward(
        qkv_BLX,
        out_BLW,
        d_out_BLW,
        logsumexp_BHL,
        context.causal,  # type: ignore[attr-defined]
    )
    return gradient, None, None


_forward.register_autograd(_gradient, setup_context=_keep)


@cache
def _kernel_works() -> bool:
    """Return whether Triton can build the kernel for this GPU; say it once where it cannot."""
    qkv = torch.zeros(1, 16, 3 * 64, dtype=torch.bfloat16, device="cuda")
    try:
        with torch.no_grad():
            _backward(qkv, *[qkv[..., :64].contiguous()] * 2, torch.zeros(1, 1, 16, device="cuda"), False)
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:  # no Triton, no C compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"attention runs without the Triton kernel, slower: {reason}", stacklevel=2)
        return False
    return True

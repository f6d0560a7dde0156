"""Parts of a frozen block that a GPU runs as one kernel each (:mod:`ammpl.model.kernels`), in bf16.

Flash attention's deterministic backward pass spends most of its time on what only long sequences need, and adding what
a norm then reads again costs a pass over memory. Weights are frozen: only inputs have gradients.

Shapes: B sequences, L rows of each, R rows of all, W width, H heads, X = 3 W.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

LONGEST = 256
"""Rows of a sequence that the backward kernel holds at a time."""
HEAD_WIDTH = 64


def serves(tensor: Tensor) -> bool:
    """Return whether the kernels are used for a tensor: in bf16 on a GPU for which Triton can build them.

    What torch.compile traces is left to it.
    """
    return tensor.is_cuda and tensor.dtype is torch.bfloat16 and not torch.compiler.is_compiling() and works()


class Attention(torch.autograd.Function):
    """Self-attention of rows (R, X), queries, keys and values side by side, to (R, W)."""

    @staticmethod
    def forward(
        ctx: Any, qkv_RX: Tensor, heads: int, length: int, prefixes: int, prefix_length: int, causal: bool
    ) -> Tensor:
        """Let each row attend to all of its sequence, or with ``causal`` to itself and what precedes it.

        Args:
            ctx: what the backward pass reads.
            qkv_RX: the prefixes' rows first, if there are any; then the other rows of each sequence.
            heads: H.
            length: L, rows of a whole sequence.
            prefixes: how many; as many sequences go on from each.
            prefix_length: P, rows of each.
            causal: see there.
        """
        from ammpl.model import kernels  # imports Triton, which not every machine has

        R, X = qkv_RX.shape
        sequences = (R - prefixes * prefix_length) // (length - prefix_length)
        qkv_RX = qkv_RX.contiguous()
        out_RW = qkv_RX.new_empty(R, X // 3)
        logsumexp_BHL = qkv_RX.new_empty(sequences, heads, length, dtype=torch.float32)
        kernels.attend(qkv_RX, out_RW, logsumexp_BHL, prefixes, prefix_length, causal=causal)
        ctx.save_for_backward(qkv_RX, out_RW, logsumexp_BHL)
        ctx.prefixes, ctx.prefix_length, ctx.causal = prefixes, prefix_length, causal
        return out_RW

    @staticmethod
    def backward(ctx: Any, d_out_RW: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Return the gradient of queries, keys and values."""
        from ammpl.model import kernels

        qkv_RX, out_RW, logsumexp_BHL = ctx.saved_tensors
        d_qkv_RX = torch.empty_like(qkv_RX)
        d_prefix_BPX = qkv_RX.new_empty(len(logsumexp_BHL), ctx.prefix_length, qkv_RX.shape[1])
        values = (qkv_RX, out_RW, d_out_RW.contiguous(), logsumexp_BHL)
        kernels.attend_backward(*values, d_qkv_RX, d_prefix_BPX, ctx.prefixes, causal=ctx.causal)
        if ctx.prefixes:  # their rows are the first
            P, X = d_prefix_BPX.shape[1:]
            d_qkv_RX[: ctx.prefixes * P] = d_prefix_BPX.view(ctx.prefixes, -1, P, X).sum(1).flatten(0, 1)
        return d_qkv_RX, None, None, None, None, None


class AddNorm(torch.autograd.Function):
    """x + y and its layer norm, both (R, W)."""

    @staticmethod
    def forward(
        ctx: Any, x_RW: Tensor, y_RW: Tensor, weight_W: Tensor, bias_W: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Add, and normalise with the norm's weight, bias and epsilon."""
        from ammpl.model import kernels

        x_RW, y_RW = x_RW.contiguous(), y_RW.contiguous()
        total_RW, normed_RW = torch.empty_like(x_RW), torch.empty_like(x_RW)
        means_R, scales_R = x_RW.new_empty(2, len(x_RW), dtype=torch.float32).unbind()
        kernels.add_norm(x_RW, y_RW, weight_W, bias_W, total_RW, normed_RW, means_R, scales_R, epsilon)
        ctx.save_for_backward(total_RW, weight_W, means_R, scales_R)
        return total_RW, normed_RW

    @staticmethod
    def backward(ctx: Any, d_total_RW: Tensor, d_normed_RW: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradient of x, and once more as that of y."""
        from ammpl.model import kernels

        total_RW, weight_W, means_R, scales_R = ctx.saved_tensors
        d_both_RW = torch.empty_like(total_RW)
        given = (d_total_RW.contiguous(), d_normed_RW.contiguous())
        kernels.add_norm_backward(total_RW, *given, weight_W, means_R, scales_R, d_both_RW)
        return d_both_RW, d_both_RW, None, None, None


@cache
def works() -> bool:
    """Return whether Triton can build the kernels for this GPU; say it once where it cannot."""
    rows = torch.zeros(32, 3 * HEAD_WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    try:
        with torch.enable_grad():
            mixed = Attention.apply(rows, 1, 16, 0, 0, False)
            sum(AddNorm.apply(mixed, mixed, rows[0, :64], rows[0, :64], 1e-5)).sum().backward()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:  # no Triton, no C compiler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"the towers run without Triton kernels, slower: {reason}", stacklevel=2)
        return False
    return True

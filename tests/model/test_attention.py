"""The kernel's gradient is that of plain attention."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ammpl.model import attention


def test_the_kernel_equals_plain_attention(tmp_path):
    """Triton's interpreter runs it without a GPU; the variable that asks for it is read when Triton is imported."""
    pytest.importorskip("triton")
    script = tmp_path / "compare.py"
    script.write_text(
        "from tests.model.test_attention import *\n"
        "for length in (3, 16, 40, 197):\n"
        "    for causal in (False, True):\n"
        "        compare(length, causal)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)


def compare(length: int, causal: bool) -> None:
    """Hold the kernel's gradient against autograd's, of two sequences with two heads."""
    from ammpl.model import attention_kernel

    qkv, d_out, expected = example(length, causal, torch.device("cpu"), torch.float32)
    q, k, _ = attention.split_heads(qkv, 3, 2)
    scores = q @ k.mT / 8
    if causal:
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    out = attention.self_attention(qkv, 2, causal=causal).view(2, length, 128)
    found = torch.full_like(qkv, torch.nan)
    attention_kernel.backward(qkv, out, d_out, scores.logsumexp(-1), found, causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def example(
    length: int, causal: bool, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values, a gradient of what attention returns, and theirs, as autograd has it."""
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(2, length, 3 * 128, generator=generator).to(device, dtype)
    d_out = torch.randn(2, length, 128, generator=generator).to(device, dtype)
    leaf = qkv.float().clone().requires_grad_()
    attention.self_attention(leaf, 2, causal=causal).backward(d_out.float().flatten(0, 1))
    return qkv, d_out, leaf.grad


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [3, 17, 50, 77, 197, 256, 257])
def test_on_a_gpu_bf16_has_the_gradient_of_fp32_the_same_each_time(length, causal):
    assert attention._kernel_works()
    qkv, d_out, expected = example(length, causal, torch.device("cuda"), torch.bfloat16)
    found = []
    for _ in range(3):
        leaf = qkv.clone().requires_grad_()
        attention.self_attention(leaf, 2, causal=causal).backward(d_out.flatten(0, 1))
        found.append(leaf.grad)
    assert all(torch.equal(found[0], other) for other in found)
    assert (found[0].float() - expected).norm() / expected.norm() < 0.01

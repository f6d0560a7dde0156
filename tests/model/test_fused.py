"""The kernels are what they stand for: values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from ammpl.model import blocks, fused
from ammpl.model.blocks import Layout
from ammpl.model.fused import AddNorm

LENGTHS = (3, 17, 50, 77, 197, 256)


def test_the_kernels_equal_plain_operations(tmp_path):
    """Triton's interpreter runs them without a GPU; the variable that asks for it is read when Triton is imported."""
    pytest.importorskip("triton")
    script = tmp_path / "compare.py"
    script.write_text(
        "from tests.model.test_fused import *\n"
        "cpu = torch.device('cpu')\n"
        "for length in (3, 16, 40, 197):\n"
        "    for causal in (False, True):\n"
        "        compare_attention(length, causal, cpu, torch.float32, 1e-5)\n"
        "for prefix, length in ((3, 5), (17, 11), (60, 17), (64, 64)):\n"
        "    compare_prefixes(prefix, length, cpu, torch.float32, 1e-5)\n"
        "compare_norm(cpu, torch.float32, 1e-5)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)


def compare_attention(length: int, causal: bool, device: torch.device, dtype: torch.dtype, most: float) -> None:
    """Hold attention of two sequences with two heads against PyTorch's in single precision."""
    compare_layout(Layout(((2, length),)), causal, device, dtype, most)


def compare_prefixes(prefix: int, length: int, device: torch.device, dtype: torch.dtype, most: float) -> None:
    """Hold attention of three sequences after each of two prefixes against PyTorch's in single precision."""
    compare_layout(Layout(((2, prefix), (6, length)), prefixes=2), True, device, dtype, most)


def compare_layout(layout: Layout, causal: bool, device: torch.device, dtype: torch.dtype, most: float) -> None:
    """Hold attention with two heads against PyTorch's in single precision."""
    rows = sum(count * length for count, length in layout.groups)
    generator = torch.Generator().manual_seed(rows)
    qkv = torch.randn(rows, 3 * 128, generator=generator).to(device, dtype)
    d_out = torch.randn(rows, 128, generator=generator).to(device, dtype)

    def attend(served: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def attention(leaf: torch.Tensor) -> torch.Tensor:
            with mock.patch.object(fused, "serves", lambda tensor: served):
                return blocks._self_attention(leaf, 2, layout, causal=causal)

        return attention

    compare(attend(True), attend(False), [qkv], [d_out], most)


def compare_norm(device: torch.device, dtype: torch.dtype, most: float) -> None:
    """Hold a sum and its norm against PyTorch's in single precision; both results have a gradient."""
    generator = torch.Generator().manual_seed(1)
    x, y, d_total, d_normed = (torch.randn(7, 96, generator=generator).to(device, dtype) for _ in range(4))
    weight, bias = (1 + 0.3 * torch.randn(96, generator=generator).to(device, dtype) for _ in range(2))

    def plain(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + y, F.layer_norm(x + y, (96,), weight.float(), bias.float(), 1e-5)

    compare(lambda x, y: AddNorm.apply(x, y, weight, bias, 1e-5), plain, [x, y], [d_total, d_normed], most)


def compare(ours, plain, inputs, gradients, most):
    """Hold values and gradients against those of single precision, and three times against each other."""
    found = []
    for _ in range(3):
        leaves = [value.clone().requires_grad_() for value in inputs]
        results = ours(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        found.append([*results, *torch.autograd.grad(results, leaves, gradients)])
    leaves = [value.float().clone().requires_grad_() for value in inputs]
    results = plain(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    expected = [*results, *torch.autograd.grad(results, leaves, [gradient.float() for gradient in gradients])]
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)
    for value, wanted in zip(found[0], expected, strict=True):
        assert value.shape == wanted.shape
        assert (value.float() - wanted).norm() <= most * wanted.norm(), (
            (value.float() - wanted).norm(),
            wanted.norm(),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_on_a_gpu_attention_in_bf16_is_that_of_fp32_the_same_each_time(length, causal):
    assert fused.works()
    compare_attention(length, causal, torch.device("cuda"), torch.bfloat16, 0.01)


@pytest.mark.gpu
@pytest.mark.parametrize(("prefix", "length"), [(3, 5), (17, 11), (60, 17), (64, 64)])
def test_on_a_gpu_attention_after_prefixes_in_bf16_is_that_of_fp32_the_same_each_time(prefix, length):
    assert fused.works()
    compare_prefixes(prefix, length, torch.device("cuda"), torch.bfloat16, 0.01)


@pytest.mark.gpu
def test_on_a_gpu_a_norm_in_bf16_is_that_of_fp32_the_same_each_time():
    assert fused.works()
    compare_norm(torch.device("cuda"), torch.bfloat16, 0.01)

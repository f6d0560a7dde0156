"""The device that trials of this process run on, and how exactly it computes."""

from __future__ import annotations

import os

import torch

from ammpl.config import BackboneConfig


def device() -> str:
    """Return where trials of this process run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_up(backbone: BackboneConfig, *, deterministic: bool = True) -> str:
    """Let a GPU compute as a configuration says; return the device.

    Settings are the process's: each trial makes its own before it begins.

    Args:
        backbone: its precision ``tf32`` lets products in single precision round their factors to TF32; else they are
            exact, convolutions too.
        deterministic: take only algorithms that give the same bits each time.
    """
    if device() == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; else sums vary
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = backbone.precision == "tf32"
    return device()

"""How many operations a training step is in a GPU's form: what a CPU would have to launch one by one.

ViT-B/16's shapes on fake tensors: nothing is computed. Forward, backward, gradient norm and optimiser; what only makes
another view of a tensor is not counted. The reference is the most that a step may have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone
from ammpl.training.optimization import build_optimizer
from ammpl.training.step import Batch, run_step
from tests.benchmarks.record import Record
from tests.benchmarks.vit_b16 import vit_b16

TASK = {"model.mask.scope": "task"}
MOST = {
    ("coop", 37, 32): ({}, 500),
    ("cocoop", 37, 1): ({}, 500),
    ("cocoop", 37, 8): ({}, 500),
    ("vpt", 37, 4): ({}, None),
    ("maple", 37, 4): ({}, None),
    ("ammpl, task", 37, 32): (TASK, 1200),
    ("ammpl, class", 37, 8): ({}, 1400),
    ("ammpl, text", 37, 8): ({"model.mask.scope": "text"}, None),
    ("ammpl, 8 candidates", 37, 8): ({"model.candidates": 8}, None),
}
"""(method, classes, images) -> settings, and the most operations."""


class Counted(TorchDispatchMode):
    """Counts the operations that launch work."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, and do it."""
        found = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and func not in FREE:
            self.count += 1
        return found


FREE = {torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.lift_fresh.default}
"""Views that do not say so."""


def benchmark() -> Iterator[Record]:
    """Yield each step's operations."""
    backbone = vit_b16()
    backbone.static_shapes = True
    for (name, classes, images), (values, most) in MOST.items():
        count = operations(backbone, name.split(",")[0], [f"red thing {i}" for i in range(classes)], images, values)
        yield Record("operations", f"{name}, {classes} classes x {images} images", count, most, "operations")


def operations(backbone: Backbone, method: str, names: list[str], images: int, values: dict[str, Any]) -> int:
    """Return how many operations a step is; its chunk holds all pairs."""
    settings = {"backbone.name": "ViT-B-16", "backbone.pretrained": "random", "training.chunk": images * len(names)}
    config = resolve(method, settings | values)
    model = AMMPL(config.model, backbone, names, SeedConfig())
    classes, optimizer = model.classes(names), build_optimizer(model, config.training)
    patches, pooled = backbone.patch_count, backbone.joint_width
    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as counted:
        batch = Batch(
            torch.zeros(images, dtype=torch.long),
            patches_BNV=torch.zeros(images, patches, backbone.vision_width) if model.reads_patches else None,
            pooled_BD=torch.zeros(images, pooled) if model.reads_pooled else None,
        )
        draws = model.draws(images, classes, 0)
        counted.count = 0
        run_step(config.training, model, classes, optimizer, batch, draws)
    return counted.count

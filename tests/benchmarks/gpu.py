"""What a GPU makes of it: training steps, evaluation, sameness, and the hours of the paper's main table.

ViT-B/16's shapes and random weights. A step is the trial's own (:class:`ammpl.training.step.TrainingStep`): noise
drawn, batch copied, forward, backward, gradient norm, optimiser, recorded where it can be. Wall time of some steps in
a row, ended by one wait, medians. Beside it, in the same run: plain open_clip modules under autocast, one graph, all
texts padded to 77 tokens; and the published CoCoOp loop, image by image. ``peak`` is the rate of one large bf16
product measured here. Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ammpl.config import BackboneConfig, SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone, Preprocessing
from ammpl.training.device import set_up
from ammpl.training.optimization import build_optimizer
from ammpl.training.step import Batch, TrainingStep, forget, run_step
from tests.benchmarks.record import Record

ROUNDS = 5
SECONDS = 0.4
"""Of steps in a row, about; at least two of them."""
WORDS = ("red", "small", "old", "wild", "sea", "house", "long", "dark")


@dataclass(frozen=True)
class Case:
    """A training step.

    Attributes:
        method: of :data:`ammpl.config.METHODS`.
        classes: to tell apart.
        images: of a batch.
        values: settings.
    """

    method: str
    classes: int
    images: int
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = "".join(f", {name.split('.')[-1]} {value}" for name, value in self.values.items())
        return f"{self.method}, {self.classes} classes x {self.images} images{settings}"


BF16 = {"backbone.precision": "bf16"}
TASK = {"model.mask.scope": "task"}
CASES = (
    Case("coop", 37, 32, BF16),
    Case("coop", 397, 32, BF16),
    Case("cocoop", 37, 1, BF16),
    Case("cocoop", 37, 8, BF16),
    Case("vpt", 37, 4, BF16),
    Case("maple", 37, 4, BF16),
    Case("ammpl", 37, 32, TASK | BF16),
    Case("ammpl", 37, 8, BF16),
    Case("ammpl", 37, 8, {"backbone.precision": "tf32"}),
    Case("ammpl", 37, 8, {"backbone.precision": "fp32"}),
    Case("ammpl", 37, 8, {"model.padding.depth": 4} | BF16),
    Case("ammpl", 37, 8, {"model.mask.scope": "text"} | BF16),
    Case("ammpl", 100, 32, {"model.candidates": 8} | BF16),
    Case("ammpl", 397, 4, BF16),
)


def benchmark() -> Iterator[Record]:
    """Yield each case's milliseconds, then what became of them."""
    if not torch.cuda.is_available():
        return
    peak = _peak()
    yield Record("gpu", f"bf16 product, {torch.cuda.get_device_name()}", peak / 1e12, None, "TFLOP/s")
    backbones: dict[str, Backbone] = {}
    for case in CASES:
        precision = case.values["backbone.precision"]
        set_up(BackboneConfig(precision=precision))
        if precision not in backbones:
            backbones.clear()
            backbones[precision] = _backbone(precision)
        yield from _step(case, backbones[precision], peak)
    backbones.clear()


def _step(case: Case, backbone: Backbone, peak: float) -> Iterator[Record]:
    forget()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = resolve(case.method, {"backbone.name": "ViT-B-16", "backbone.pretrained": "random"} | case.values)
    names = class_names(case.classes)
    model = AMMPL(config.model, backbone, names, SeedConfig())
    classes, batch = model.classes(names), _batch(model, case)
    optimizer = build_optimizer(model, config.training)
    draws = model.draws(case.images, classes, 0)
    counter = FlopCounterMode(display=False)
    with counter:
        run_step(config.training, model, classes, optimizer, batch, draws)
    take_step, number = TrainingStep(config.training, model, classes, optimizer), 0

    def step() -> None:
        nonlocal number
        take_step(batch, number, 1.0)
        number += 1

    seconds = wall(step)
    busy, kernels = _busy(step)
    rate = counter.get_total_flops() / seconds
    memory = torch.cuda.max_memory_allocated() / 2**30
    note = f"{rate / 1e12:.0f} TFLOP/s, {rate / peak:.0%} of the peak; {kernels} kernels; {memory:.1f} GiB"
    yield Record("gpu", f"{case}: step", 1000 * seconds, None, "ms", note)
    yield Record("gpu", f"{case}: share of the step that the GPU works", 100 * busy / seconds, None, "%")
    take_step.close()


def class_names(count: int) -> list[str]:
    """Return names of one to ten tokens."""
    return [
        f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} thing {i}" if i % 3 else f"{WORDS[i % 8]} thing {i}" + " b" * (i % 5)
        for i in range(count)
    ]


def _backbone(precision: str) -> Backbone:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    )
    half = (0.5, 0.5, 0.5)
    backbone = Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(224, half, half), "B16").to("cuda")
    return backbone.cast_blocks(torch.bfloat16) if precision == "bf16" else backbone


def _batch(model: AMMPL, case: Case) -> Batch:
    backbone, generator = model.backbone, torch.Generator().manual_seed(1)
    labels = (torch.arange(case.images) % case.classes).to("cuda")
    patches = torch.randn(case.images, backbone.patch_count, backbone.vision_width, generator=generator)
    pooled = torch.randn(case.images, backbone.joint_width, generator=generator)
    return Batch(
        labels,
        patches_BNV=patches.to("cuda") if model.reads_patches else None,
        pooled_BD=pooled.to("cuda") if model.reads_pooled else None,
    )


def wall(run: Callable[[], object]) -> float:
    """Return the median seconds of a run among some in a row, after some to warm up."""
    for _ in range(4):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    count = max(2, int(SECONDS / ROUNDS / max(1e-6, time.perf_counter() - began)))
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / count)
    return statistics.median(taken)


def _busy(run: Callable[[], object], times: int = 3) -> tuple[float, int]:
    """Return the seconds that the GPU works in a run, and how many kernels and copies it is."""
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(times):
            run()
        torch.cuda.synchronize()
    events = [event for event in watched.key_averages() if event.self_device_time_total > 0]
    return sum(e.self_device_time_total for e in events) / 1e6 / times, sum(e.count for e in events) // times


def _peak() -> float:
    """Return the rate of a large bf16 product, in operations a second."""
    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / wall(lambda: factor @ factor)

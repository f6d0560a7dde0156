"""One GPU: training steps, evaluation, sameness, and the hours of the paper's main table. Five minutes.

ViT-B/16's shapes and random weights. A step is the trial's own (:class:`ammpl.training.step.TrainingStep`): noise
drawn, batch copied, forward, backward, gradient norm, optimiser, recorded where it can be. Wall time of some steps in
a row, ended by one wait, medians. Beside it, in the same run: plain open_clip modules under autocast, one graph, all
texts padded to 77 tokens; and the published CoCoOp loop, image by image, under autocast. Shares are of the rate of one
large bf16 product, measured here. Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ammpl.config import BackboneConfig, SeedConfig, resolve
from ammpl.data.catalog import DESCRIPTIONS
from ammpl.model import fused
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.training.device import set_up
from ammpl.training.evaluation import scores
from ammpl.training.optimization import build_optimizer, total_steps
from ammpl.training.step import Batch, TrainingStep, forget, run_step
from tests.benchmarks.record import Record
from tests.benchmarks.vit_b16 import vit_b16

ROOT = Path(__file__).resolve().parents[2]
FEWSHOT = ROOT / "search_spaces/paper_fewshot.yaml"
WARM = 3
"""Steps first: the third is recorded."""
ROUNDS = 3
SECONDS = 0.3
"""Of steps, about."""
WORDS = ("red", "small", "old", "wild", "sea", "house", "long", "dark")


@dataclass(frozen=True)
class Case:
    """A training step.

    Attributes:
        method: of :data:`ammpl.config.METHODS`.
        classes: to tell apart.
        images: of a batch.
        values: settings.
        pixels: whether the batch is pictures, as with augmentation; else what the towers make of them is kept.
    """

    method: str
    classes: int
    images: int
    values: dict[str, Any] = field(default_factory=dict)
    pixels: bool = False

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
    backbone, precision = None, None
    for case in CASES:
        if backbone is None or precision != case.values["backbone.precision"]:
            precision, backbone = case.values["backbone.precision"], None  # two do not fit beside a large step
            set_up(BackboneConfig(precision=precision))
            backbone = _backbone(precision)
        yield from _step(case, backbone, peak)
    set_up(BackboneConfig(precision="bf16"))
    backbone = _backbone("bf16")
    for case in (CASES[0], CASES[7]):
        yield from _sameness(case, backbone)
    yield from _hours(backbone)
    yield from _study()


class Running:
    """A trial's steps on a batch of any images.

    Args:
        case: which.
        backbone: in its precision.
    """

    def __init__(self, case: Case, backbone: Backbone):
        settings = {"backbone.name": "ViT-B-16", "backbone.pretrained": "random"}
        self.config = resolve(case.method, settings | case.values)
        names = class_names(case.classes)
        self.model = AMMPL(self.config.model, backbone, names, SeedConfig())
        self.classes, self.batch = self.model.classes(names), _batch(self.model, case)
        self.number = 0
        if list(self.model.parameters()):
            self.optimizer = build_optimizer(self.model, self.config.training)
            self.take_step = TrainingStep(self.config.training, self.model, self.classes, self.optimizer)

    def step(self) -> None:
        """Take the next step."""
        self.take_step(self.batch, self.number, 1.0)
        self.number += 1

    def operations(self) -> int:
        """Return the floating-point operations of a step, which is taken kernel by kernel."""
        counter = FlopCounterMode(display=False)
        served, fused.serves = fused.serves, lambda tensor: False  # it does not know the kernels
        try:
            draws = self.model.draws(len(self.batch.labels_B), self.classes, 0)
            with counter:
                run_step(self.config.training, self.model, self.classes, self.optimizer, self.batch, draws)
        finally:
            fused.serves = served
        return counter.get_total_flops()

    def close(self) -> None:
        """Let go of it."""
        if self.number:
            self.take_step.close()
        forget()
        gc.collect()
        torch.cuda.empty_cache()


def _step(case: Case, backbone: Backbone, peak: float) -> Iterator[Record]:
    torch.cuda.reset_peak_memory_stats()
    running = Running(case, backbone)
    seconds = wall(running.step)
    busy, kernels = _busy(running.step)
    memory = torch.cuda.max_memory_allocated() / 2**30
    running.close()
    rate = running.operations() / seconds
    running.close()
    note = f"{rate / 1e12:.0f} TFLOP/s, {rate / peak:.0%} of the peak; {kernels} kernels; {memory:.1f} GiB"
    reference = None
    if case.method == "cocoop":
        reference = 1000 * _published_cocoop(case)
    elif case == CASES[7]:
        reference = 1000 * _plain_class_scope(case)
    yield Record("gpu", f"{case}: step", 1000 * seconds, reference, "ms", note)
    print(f"    {note}", flush=True)
    yield Record("gpu", f"{case}: share of the step that the GPU works", 100 * busy / seconds, None, "%")


def _sameness(case: Case, backbone: Backbone) -> Iterator[Record]:
    """Yield how far two runs of six steps are apart, and what the same bits cost."""
    found = []
    for _ in range(2):
        running = Running(case, backbone)
        for _ in range(6):
            running.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in running.model.parameters()]))
        forget()
    apart = (found[0] - found[1]).abs().max().item()
    yield Record("gpu", f"{case}: largest difference of a learnable after six steps, twice", apart, None, "")
    taken = {}
    for deterministic in (True, False):
        set_up(BackboneConfig(precision="bf16"), deterministic=deterministic)
        running = Running(case, backbone)
        taken[deterministic] = 1000 * wall(running.step)
        running.close()
    set_up(BackboneConfig(precision="bf16"))
    yield Record("gpu", f"{case}: step, the same bits against any", taken[True], taken[False], "ms")


COUNTS = (37, 101, 397)
"""Classes of which times are measured; in between, and below, they are on the nearest line."""


def _hours(backbone: Backbone) -> Iterator[Record]:
    """Yield the hours of search_spaces/paper_fewshot.yaml, computed from measured times and the protocol's counts.

    steps x (a + b x classes) + images of test and validations x (c + d x classes), piecewise, without starts and
    decoding.
    """
    space = parse_ablation(yaml.safe_load(FEWSHOT.read_text()), FEWSHOT.name)
    times: dict[str, tuple[list[float], list[float]]] = {}
    hours: dict[str, list[float]] = {}
    for cell in space.cells():
        config = space.config(cell.variant, cell.repeat, cell.setting)
        if cell.variant not in times:
            values = {"model.mask.scope": config.model.mask.scope} if config.method == "ammpl" else {}
            cases = [
                Case(config.method, classes, config.training.batch_size, values | BF16, pixels=True)
                for classes in COUNTS
            ]
            learns = config.training.steps != 0
            times[cell.variant] = (
                [_seconds_of_step(case, backbone) if learns else 0.0 for case in cases],
                [_seconds_of_image(case, backbone) for case in cases],
            )
        sizes, shots = DESCRIPTIONS[config.data.name].sizes, config.data.shots
        assert sizes is not None
        steps = total_steps(config.training, sizes.classes * shots)
        validations = -(-steps // config.training.evaluate_every) if steps else 1
        images = validations * sizes.classes * min(shots, 4)
        of_step, of_image = (_between(measured, sizes.classes) for measured in times[cell.variant])
        training, testing = hours.setdefault(cell.variant, [0.0, 0.0])
        hours[cell.variant] = [
            training + (steps * of_step + images * of_image) / 3600,
            testing + sizes.test * of_image / 3600,
        ]
    for variant, (training, testing) in hours.items():
        steps_ms, images_ms = (", ".join(f"{1000 * second:.3g}" for second in seconds) for seconds in times[variant])
        note = f"a step {steps_ms} ms, an image {images_ms} ms, of {', '.join(map(str, COUNTS))} classes"
        yield Record("gpu", f"paper_fewshot, {variant}: training and validation", training, None, "h", note)
        yield Record("gpu", f"paper_fewshot, {variant}: tests", testing, None, "h")
        print(f"    {note}", flush=True)
    yield Record("gpu", "paper_fewshot: all", sum(map(sum, hours.values())), None, "h", "without starts")


def _between(seconds: list[float], classes: int) -> float:
    right = next((i for i, count in enumerate(COUNTS[1:-1], 1) if classes <= count), len(COUNTS) - 1)
    slope = (seconds[right] - seconds[right - 1]) / (COUNTS[right] - COUNTS[right - 1])
    return seconds[right] + slope * (classes - COUNTS[right])


def _seconds_of_step(case: Case, backbone: Backbone) -> float:
    running = Running(case, backbone)
    seconds = wall(running.step)
    running.close()
    return seconds


def _seconds_of_image(case: Case, backbone: Backbone) -> float:
    """Return the seconds in which a picture is scored among all classes, by masks that mask something."""
    running = Running(case, backbone)
    model, names = running.model, class_names(case.classes)
    if model.image_prompt is not None:
        with torch.no_grad():
            model.image_prompt.mask.matrix_GN.normal_()
    count = 6000 // case.classes if model.masks_each_class else 512
    pixels = torch.zeros(count, 3, 224, 224, dtype=torch.uint8, device="cuda")
    seconds = wall(lambda: scores(model, lambda chosen: pixels[chosen], count, names)) / count
    running.close()
    return seconds


def _study() -> Iterator[Record]:
    """Yield the seconds of `python tune.py`, alone and packed."""
    for setting in ([], ["--gpus-per-trial", "auto"]):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "tune.py"), "--quiet", "--output", folder, *setting]
            began = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            yield Record("gpu", f"tune.py {' '.join(setting)}", time.perf_counter() - began, None, "s")


def class_names(count: int) -> list[str]:
    """Return names of one to ten tokens."""
    return [
        f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} thing {i}" if i % 3 else f"{WORDS[i % 8]} thing {i}" + " b" * (i % 5)
        for i in range(count)
    ]


def _backbone(precision: str) -> Backbone:
    backbone = vit_b16().to("cuda")
    return backbone.cast_blocks(torch.bfloat16) if precision == "bf16" else backbone


def _batch(model: AMMPL, case: Case) -> Batch:
    backbone, generator = model.backbone, torch.Generator().manual_seed(1)
    labels = (torch.arange(case.images) % case.classes).to("cuda")
    if case.pixels:
        pictures = torch.randint(0, 256, (case.images, 3, 224, 224), generator=generator, dtype=torch.uint8)
        return Batch(labels, pictures.to("cuda"))
    patches = torch.randn(case.images, backbone.patch_count, backbone.vision_width, generator=generator)
    pooled = torch.randn(case.images, backbone.joint_width, generator=generator)
    return Batch(
        labels,
        patches_BNV=patches.to("cuda") if model.reads_patches else None,
        pooled_BD=pooled.to("cuda") if model.reads_pooled else None,
    )


def wall(run: Callable[[], object]) -> float:
    """Return the median seconds of a run among some in a row, after some to warm up."""
    for _ in range(WARM):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    count = max(1, int(SECONDS / ROUNDS / max(1e-6, time.perf_counter() - began)))
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


def _plain_class_scope(case: Case) -> float:
    """Return the seconds of the class-scope step in open_clip's own modules under autocast, forward and backward."""
    running = Running(case, _backbone("fp32"))
    model, batch = running.model, running.batch
    backbone, prompt, names = model.backbone, model.image_prompt, class_names(case.classes)
    clip, visual, C, B = backbone.clip, backbone.clip.visual, case.classes, case.images
    assert prompt is not None and model.image_to_text is not None and model.text_to_image is not None
    assert batch.patches_BNV is not None
    context = model.text_prompt.context
    ids_CL = backbone.tokenizer([" ".join(["X"] * len(context)) + f" {name}." for name in names]).cuda()
    embedded_CLT, ends_C = clip.token_embedding(ids_CL), ids_CL.argmax(-1)
    draws = model.draws(B, running.classes, 0)

    def texts(context_RMT: Tensor, repeats: int) -> Tensor:
        embedded = embedded_CLT.repeat(repeats, 1, 1)
        tokens = torch.cat([embedded[:, :1], context_RMT, embedded[:, 1 + len(context) :]], 1)
        tokens = clip.transformer(tokens + clip.positional_embedding, attn_mask=clip.attn_mask)
        ends = clip.ln_final(tokens)[torch.arange(len(tokens)), ends_C.repeat(repeats)]
        return ends @ clip.text_projection

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            alone_CD = texts(context.expand(C, -1, -1), 1)
            mask = prompt.mask.sample(torch.arange(C, device="cuda"), draws.uniform_BGN)[..., None]
            padding = (prompt.padding_JGV[0] + model.text_to_image(alone_CD.float()))[:, None]
            patches = (mask * batch.patches_BNV[:, None] + (1 - mask) * padding).flatten(0, 1)
            tokens = torch.cat([visual.class_embedding.expand(B * C, 1, -1), patches], 1)
            tokens = visual.transformer(visual.ln_pre(tokens + visual.positional_embedding))
            image_RD = visual.ln_post(tokens[:, 0]) @ visual.proj
            text_RD = texts(context + model.image_to_text(image_RD.float())[:, None], B)
            cosine_R = (F.normalize(image_RD.float(), dim=-1) * F.normalize(text_RD.float(), dim=-1)).sum(-1)
        F.cross_entropy(backbone.logit_scale * cosine_R.view(B, C), batch.labels_B).backward()

    return _alone(step, running)


def _published_cocoop(case: Case) -> float:
    """Return the seconds of the published loop: every image runs the text tower by itself, forward and backward."""
    running = Running(case, _backbone("fp32"))
    model, batch = running.model, running.batch
    backbone, names = model.backbone, class_names(case.classes)
    clip, context = backbone.clip, model.text_prompt.context
    assert batch.pooled_BD is not None and model.image_to_text is not None
    ids_CL = backbone.tokenizer([" ".join(["X"] * len(context)) + f" {name}." for name in names]).cuda()
    embedded_CLT, ends_C = clip.token_embedding(ids_CL), ids_CL.argmax(-1)

    def step() -> None:
        model.zero_grad()
        logits = []
        with torch.autocast("cuda", torch.bfloat16):
            for pooled_1D in batch.pooled_BD.split(1):
                shifted = (context + model.image_to_text(pooled_1D)).expand(len(names), -1, -1)
                tokens = torch.cat([embedded_CLT[:, :1], shifted, embedded_CLT[:, 1 + len(context) :]], 1)
                tokens = clip.transformer(tokens + clip.positional_embedding, attn_mask=clip.attn_mask)
                text_CD = clip.ln_final(tokens)[torch.arange(len(names)), ends_C] @ clip.text_projection
                image_1D, text_CD = F.normalize(pooled_1D, dim=-1), F.normalize(text_CD.float(), dim=-1)
                logits.append(backbone.logit_scale * image_1D @ text_CD.T)
        F.cross_entropy(torch.cat(logits).float(), batch.labels_B).backward()

    return _alone(step, running)


def _alone(step: Callable[[], object], running: Running) -> float:
    torch.use_deterministic_algorithms(False)  # as these are run
    seconds = wall(step)
    torch.use_deterministic_algorithms(True)
    running.close()
    return seconds

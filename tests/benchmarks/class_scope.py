"""A training step of class scope: two passes in chunks of pairs, against one graph through open_clip's own modules.

ViT-B/16's shapes and random weights, with fewer blocks of the same width in both towers where a case would take ten
minutes (it says how many); one image, so that the plain form fits at all. Each measurement runs in a process of its
own, the two sides alternating: CPU seconds of the step, and the peak of resident memory above its level before.
In addition: candidates, bf16 blocks, and what ``grad_tolerance`` does to the gradient of a model trained on digits. A
random model has no pairs that cannot matter; where time is taken with a tolerance, it is the one that skips as many
of them as the trained model may at an error of a hundredth.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone, Preprocessing
from ammpl.model.scoring import Backward, backward, give_back_memory
from ammpl.training.checkpoint import FILE, load_learnables
from ammpl.training.run import _model as _build
from ammpl.training.run import _open, train
from tests.benchmarks.record import Record

CASES = ((10, 12), (37, 12), (37, 2), (102, 2), (397, 2))  # classes, blocks
CHUNK = 16
CANDIDATES = 8
PLAIN_UP_TO = 102  # classes; beyond, one graph does not fit
TOLERANCES = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3)
LARGEST_ERROR = 0.01  # of a gradient, relative
REPEATS = 3
WORDS = ("red", "small", "old", "wild", "sea", "house", "long", "dark")


def benchmark() -> Iterator[Record]:
    """Yield time and memory for each number of classes."""
    peaks = {}
    for classes, blocks in CASES:
        sides: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for _ in range(REPEATS):
            for side, runs in sides.items():
                if side == "ours" or classes <= PLAIN_UP_TO:
                    runs.append(_in_a_process(side, classes, blocks))
        seconds, peak = (_medians(sides["ours"], part) for part in (0, 1))
        plain_seconds, plain_peak = (_medians(sides["plain"], part) for part in (0, 1))
        peaks[classes, blocks] = peak
        case = f"{classes} classes, {blocks} blocks"
        assert seconds is not None and peak is not None
        yield Record("class_scope", f"step, {case}", seconds, plain_seconds, "CPU s")
        yield Record("class_scope", f"peak memory above the level before, {case}", peak, plain_peak, "MB")
    yield Record("class_scope", "peak memory, 397 classes against 37, 2 blocks", peaks[397, 2], peaks[37, 2], "MB")
    yield from short()


def short() -> Iterator[Record]:
    """Yield what takes minutes: candidates, the gradient's error by tolerance, bf16 with and without one."""
    yield _against("candidates", "ours", "8 candidates of 102 classes against all, 2 blocks", 102, 2)
    skipped = 0.0
    for tolerance, error, share in _tolerances():
        case = f"trained on digits, bf16, tolerance {tolerance:g}"
        yield Record("class_scope", f"error of the gradient, {case}", 100 * error, None, "%")
        yield Record("class_scope", f"pairs skipped, {case}", 100 * share, None, "%")
        if error <= LARGEST_ERROR:
            skipped = max(skipped, share)
    for classes, blocks in ((37, 12), (102, 2)):
        case = f"{classes} classes, {blocks} blocks, bf16 against plain in fp32"
        yield _against("bf16", "plain", case, classes, blocks)
        case = f"{case}, {skipped:.0%} of pairs skipped"
        yield _against("bf16", "plain", case, classes, blocks, skipped)


def _against(side: str, other: str, case: str, classes: int, blocks: int, skipped: float = 0.0) -> Record:
    """Return the time of one side's step beside the other's, the two alternating."""
    seconds: dict[str, list[float]] = {side: [], other: []}
    for _ in range(REPEATS):
        seconds[side].append(_in_a_process(side, classes, blocks, skipped)[0])
        seconds[other].append(_in_a_process(other, classes, blocks)[0])
    medians = (statistics.median(seconds[name]) for name in (side, other))
    return Record("class_scope", f"step, {case}", *medians, "CPU s")


def _tolerances() -> Iterator[tuple[float, float, float]]:
    """Yield (tolerance, relative error of the gradient, share of pairs skipped) after 60 steps on digits, in bf16."""
    values = {"training.steps": 60, "training.evaluate_every": 60, "training.batch_size": 8}
    more = {"data.validation_shots": 1, "backbone.precision": "bf16", "model.text.init": "random"}
    config = resolve("ammpl", {**values, **more, "model.text.length": 16})
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(config, Path(folder)):
            pass
        backbone, task = _open(config, None)
        model = _build(config, backbone, task)
        load_learnables(model, Path(folder) / FILE)
    chosen = torch.arange(0, len(task.train), 10)[:16]
    patches = backbone.embed_patches(backbone.normalize(task.train.pixels(chosen)))
    classes, labels = model.classes(task.train.class_names), task.train.labels[chosen]

    def gradient(tolerance: float) -> tuple[torch.Tensor, Backward]:
        model.zero_grad()
        done = backward(
            model,
            patches,
            None,
            classes,
            labels,
            model.draws(len(patches), classes, 0),
            chunk=CHUNK,
            tolerance=tolerance,
        )
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), done

    exact, _ = gradient(0.0)
    for tolerance in TOLERANCES:
        found, done = gradient(tolerance)
        share = done.skipped / (len(labels) * len(task.train.class_names))
        yield tolerance, ((found - exact).norm() / exact.norm()).item(), share


def _medians(runs: list[tuple[float, float]], part: int) -> float | None:
    return statistics.median(run[part] for run in runs) if runs else None


def _in_a_process(side: str, classes: int, blocks: int, skipped: float = 0.0) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (side, classes, blocks, skipped))


def _measure(side: str, count: int, blocks: int, skipped: float) -> tuple[float, float]:
    """Return (seconds, megabytes) of one step, after one on 16 classes to warm up."""
    torch.set_num_threads(1)
    backbone = _backbone(blocks)
    names = [f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} thing {n}" for n in range(count)]
    prepare: Callable[..., Callable[[], float]] = {"plain": _plain}.get(side, partial(_ours, skipped=skipped))
    if side == "bf16":
        backbone.cast_blocks(torch.bfloat16)
    candidates = CANDIDATES if side == "candidates" else None
    prepare(backbone, names[:CHUNK], candidates)()  # warms up, a chunk of the largest size included
    step = prepare(backbone, names, candidates)
    give_back_memory(torch.device("cpu"))  # what warming up has left counts neither way
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    began = time.process_time()
    step()
    return time.process_time() - began, (_status("VmHWM") - before) / 1e6


def _status(field: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _backbone(blocks: int) -> Backbone:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"image_size": 224, "patch_size": 16, "width": 768, "layers": blocks},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": blocks},
    )
    half = (0.5, 0.5, 0.5)
    return Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(224, half, half), "ViT-B-16, few blocks")


def _model(backbone: Backbone, names: list[str], candidates: int | None) -> tuple[AMMPL, torch.Tensor]:
    values = {"backbone.name": "ViT-B-16", "backbone.pretrained": "random", "model.candidates": candidates}
    config = resolve("ammpl", values).model
    image = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return AMMPL(config, backbone, names, SeedConfig()), backbone.normalize(image)


def _ours(backbone: Backbone, names: list[str], candidates: int | None, skipped: float) -> Callable[[], float]:
    model, pixels = _model(backbone, names, candidates)
    patches, classes = backbone.embed_patches(pixels), model.classes(names)
    pooled = torch.randn(1, 512, generator=torch.Generator().manual_seed(2)) if model.reads_pooled else None
    model.candidates(pooled, classes)  # encodes the names' sentences, once a process
    label, tolerance = torch.tensor([1]), 0.0
    if skipped:
        with torch.no_grad():
            slopes = model(patches, pooled, classes, 0).float().softmax(-1)[0] - F.one_hot(label[0], len(names))
        tolerance = slopes.abs().quantile(skipped).item()
    draws = model.draws(len(patches), classes, 0)
    return lambda: backward(
        model, patches, pooled, classes, label, draws, chunk=CHUNK, tolerance=tolerance
    ).loss.item()


def _plain(backbone: Backbone, names: list[str], candidates: None) -> Callable[[], float]:
    """Every class's masked image and prompt in one graph, at the text tower's full length."""
    model, pixels = _model(backbone, names, candidates)
    return lambda: _one_graph(backbone, model, pixels, names)


def _one_graph(backbone: Backbone, model: AMMPL, pixels: torch.Tensor, names: list[str]) -> float:
    clip, visual = backbone.clip, backbone.clip.visual
    context = model.text_prompt.context
    C, M = len(names), len(context)
    ids = backbone.tokenizer([" ".join(["X"] * M) + f" {name}." for name in names])
    embedded = clip.token_embedding(ids)

    def encode(context_CMT: torch.Tensor) -> torch.Tensor:
        x = torch.cat([embedded[:, :1], context_CMT, embedded[:, 1 + M :]], dim=1) + clip.positional_embedding
        x = clip.transformer(x, attn_mask=clip.attn_mask)
        return clip.ln_final(x)[torch.arange(C), ids.argmax(-1)] @ clip.text_projection

    prompt = model.image_prompt
    assert prompt is not None and model.text_to_image is not None and model.image_to_text is not None
    alone = encode(context.expand(C, -1, -1))
    rows = torch.arange(C)
    mask = prompt.mask.sample(rows, model.training_noise(1, C, 0))[0, :, :, None]
    padding = (prompt.padding_JGV[0] + model.text_to_image(alone))[:, None]
    tokens = mask * backbone.embed_patches(pixels) + (1 - mask) * padding
    x = torch.cat([visual.class_embedding.expand(C, 1, -1), tokens], dim=1) + visual.positional_embedding
    x = visual.transformer(visual.ln_pre(x))
    image = visual.ln_post(x[:, 0]) @ visual.proj
    text = encode(context + model.image_to_text(image)[:, None])
    logits = backbone.logit_scale * (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
    loss = F.cross_entropy(logits[None], torch.tensor([1]))
    loss.backward()
    return loss.item()

"""A training step of class scope: two passes in chunks of pairs, against one graph through open_clip's own modules.

ViT-B/16's shapes and random weights, with fewer blocks of the same width in both towers where a case would take ten
minutes (it says how many); one image, so that the plain form fits at all. Each measurement runs in a process of its
own, the two sides alternating: seconds of the step, and the peak of resident memory above its level before the step.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone, Preprocessing
from ammpl.model.scoring import backward
from tests.benchmarks.record import Record

CASES = ((10, 12), (37, 12), (37, 2), (102, 2), (397, 2))  # classes, blocks
CHUNK = 16
PLAIN_UP_TO = 102  # classes; beyond, one graph does not fit
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
        yield Record("class_scope", f"step, {case}", seconds, plain_seconds, "s")
        yield Record("class_scope", f"peak memory above the level before, {case}", peak, plain_peak, "MB")
    yield Record("class_scope", "peak memory, 397 classes against 37, 2 blocks", peaks[397, 2], peaks[37, 2], "MB")


def _medians(runs: list[tuple[float, float]], part: int) -> float | None:
    return statistics.median(run[part] for run in runs) if runs else None


def _in_a_process(side: str, classes: int, blocks: int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (side, classes, blocks))


def _measure(side: str, count: int, blocks: int) -> tuple[float, float]:
    """Return (seconds, megabytes) of one step, after one on two classes to warm up."""
    torch.set_num_threads(1)
    backbone = _backbone(blocks)
    names = [f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} thing {n}" for n in range(count)]
    run: Callable[..., Any] = _ours if side == "ours" else _plain
    run(backbone, names[:2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    began = time.perf_counter()
    run(backbone, names)
    return time.perf_counter() - began, (_status("VmHWM") - before) / 1e6


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


def _model(backbone: Backbone, names: list[str]) -> tuple[AMMPL, torch.Tensor]:
    config = resolve("ammpl", {"backbone.name": "ViT-B-16", "backbone.pretrained": "random"}).model
    image = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return AMMPL(config, backbone, names, SeedConfig()), backbone.normalize(image)


def _ours(backbone: Backbone, names: list[str]) -> float:
    model, pixels = _model(backbone, names)
    patches = backbone.embed_patches(pixels)
    done = backward(model, patches, None, model.classes(names), torch.tensor([1]), 0, chunk=CHUNK)
    return done.loss.item()


def _plain(backbone: Backbone, names: list[str]) -> float:
    """Every class's masked image and prompt in one graph, at the text tower's full length."""
    model, pixels = _model(backbone, names)
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

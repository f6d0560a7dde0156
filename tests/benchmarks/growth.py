"""How the time of a class-scope step grows: one factor doubled (patches fourfold), the others kept.

A small CLIP with random weights (four blocks of width 128 in both towers), fp32, one thread; CPU seconds, medians of
interleaved runs of the doubled step and of the one it is compared with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import open_clip
import torch

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone, Preprocessing
from ammpl.model.scoring import backward
from tests.benchmarks.record import Record

BASE = {"C": 10, "N": 49, "B": 2, "M": 4, "J": 1, "r": 16}
GROWN = {"C": 20, "N": 196, "B": 4, "M": 8, "J": 2, "r": 32}
WHAT = {
    "C": "classes",
    "N": "patches",
    "B": "images",
    "M": "context vectors",
    "J": "padding depth",
    "r": "width of N1",
}
RUNS = 5
CHUNK = 8


def benchmark() -> Iterator[Record]:
    """Yield a step's time with each factor grown, beside the base's."""
    torch.set_num_threads(1)
    for name, grown in GROWN.items():
        steps = (_step(**BASE | {name: grown}), _step(**BASE))
        seconds: tuple[list[float], list[float]] = ([], [])
        for run in range(RUNS + 1):
            for step, times in zip(steps, seconds, strict=True):
                began = time.process_time()
                step()
                if run > 0:  # the first one warms up
                    times.append(time.process_time() - began)
        case = f"{grown} {WHAT[name]}, against {BASE[name]}"
        yield Record("growth", case, *map(statistics.median, seconds), "CPU s")


def _step(C: int, N: int, B: int, M: int, J: int, r: int) -> Callable[[], object]:
    torch.manual_seed(0)
    side = 4 * int(N**0.5)
    vision = {"image_size": side, "patch_size": 4, "width": 128, "layers": 4, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4}
    half = (0.5, 0.5, 0.5)
    clip = open_clip.CLIP(embed_dim=128, vision_cfg=vision, text_cfg=text)
    backbone = Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(side, half, half), "small")
    values = {"text.init": "random", "text.length": M, "padding.depth": J, "interaction.width": r}
    config = resolve("ammpl", {f"model.{name}": value for name, value in values.items()}).model
    names = [f"thing {index}" for index in range(C)]
    model = AMMPL(config, backbone, names, SeedConfig())
    classes, patches = model.classes(names), torch.randn(B, N, 128)
    labels = torch.arange(B) % C
    draws = model.draws(len(patches), classes, 0)
    return lambda: backward(model, patches, None, classes, labels, draws, chunk=CHUNK)

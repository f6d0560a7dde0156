"""Batches of training images on the device that trains, the next ones made while the current one is trained on."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ammpl.data.dataset import Originals, Split
from ammpl.data.decoded import decoded_pictures
from ammpl.data.transform import Crop, draw_crops

AHEAD = 2
"""Batches in preparation: one may be slow to decode without holding up the step."""

CPU = torch.device("cpu")
Begin = Callable[[Tensor, Sequence[Crop], ThreadPoolExecutor], Callable[[], Tensor]]
"""Begins a batch of (chosen, crops); what it returns waits for its pixels."""


def load_batches(
    split: Split, order: Iterator[Tensor], seed: int, first: int = 0, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (chosen, pixels) for each of an order's batches.

    Where the split keeps originals, each batch is cropped and mirrored at random, decided by (seed, number of the
    batch). On a GPU decoded pictures are cropped there (:mod:`ammpl.data.decoded`). On a CPU each is decoded and
    cropped by PIL, without Python's lock, so threads share the work: as many as torch may use.

    Args:
        split: what to read.
        order: the positions of each batch, int64 (B,), on the CPU; may be endless.
        seed: of the augmentation.
        first: the number of the order's first batch; a trial that goes on does not begin at 0.
        device: where pixels are wanted.

    Yields:
        The positions, and uint8 pixels (B, 3, S, S) on the device.
    """
    originals = split.images
    if not isinstance(originals, Originals):
        for chosen in order:
            yield chosen, _moved(split.pixels(chosen), device)
        return
    begin = decoded_pictures(split, device).start if device.type == "cuda" else _by_pil(split, originals)
    yield from made_ahead(split, order, seed, first, begin)


def made_ahead(
    split: Split, order: Iterator[Tensor], seed: int, first: int, begin: Begin
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of :func:`load_batches` for a split that keeps originals, each begun AHEAD batches before."""
    originals = split.images
    assert isinstance(originals, Originals)

    def start(number: int, chosen: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        sizes = [originals.size(position) for position in split.positions[chosen].tolist()]
        return chosen, begin(chosen, draw_crops(sizes, _seed(seed, number)), threads)

    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
        numbered = enumerate(order, first)
        ahead = deque(start(*item) for item in itertools.islice(numbered, AHEAD))
        try:
            while ahead:
                chosen, finish = ahead.popleft()
                pixels = finish()
                ahead.extend(start(*item) for item in itertools.islice(numbered, 1))
                yield chosen, pixels
        finally:  # the trial has ended, perhaps by a pruner
            threads.shutdown(wait=False, cancel_futures=True)


def _by_pil(split: Split, originals: Originals) -> Begin:
    def begin(chosen: Tensor, crops: Sequence[Crop], threads: ThreadPoolExecutor) -> Callable[[], Tensor]:
        pairs = zip(split.positions[chosen].tolist(), crops, strict=True)
        futures = [threads.submit(originals.augmented, position, crop) for position, crop in pairs]
        return lambda: torch.from_numpy(np.stack([future.result() for future in futures]))

    return begin


def _moved(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"crops {seed} {number}".encode()).digest()[:4], "big")

"""Batches of training images, the next ones decoded while the current one is trained on."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ammpl.data.dataset import Originals, Split
from ammpl.data.transform import draw_crops

AHEAD = 2
"""Batches in preparation: one may be slow to decode without holding up the step."""


def load_batches(split: Split, order: Iterator[Tensor], seed: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (chosen, pixels) for each of an order's batches.

    Where the split keeps originals, each batch is cropped and mirrored at random, decided by (seed, number of the
    batch); PIL decodes without Python's lock, so threads share the work: as many as torch may use.

    Args:
        split: what to read.
        order: the positions of each batch, int64 (B,); may be endless.
        seed: of the augmentation.
        first: the number of the order's first batch; a trial that goes on does not begin at 0.

    Yields:
        The positions, and uint8 pixels (B, 3, S, S).
    """
    originals = split.images
    if not isinstance(originals, Originals):
        for chosen in order:
            yield chosen, split.pixels(chosen)
        return

    def start(number: int, chosen: Tensor) -> tuple[Tensor, list[Future[np.ndarray]]]:
        positions = split.positions[chosen].tolist()
        crops = draw_crops([originals.size(position) for position in positions], _seed(seed, number))
        pairs = zip(positions, crops, strict=True)
        return chosen, [threads.submit(originals.augmented, position, crop) for position, crop in pairs]

    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
        numbered = enumerate(order, first)
        ahead = deque(start(*item) for item in itertools.islice(numbered, AHEAD))
        try:
            while ahead:
                chosen, futures = ahead.popleft()
                pixels = torch.from_numpy(np.stack([future.result() for future in futures]))
                ahead.extend(start(*item) for item in itertools.islice(numbered, 1))
                yield chosen, pixels
        finally:  # the trial has ended, perhaps by a pruner
            threads.shutdown(wait=False, cancel_futures=True)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"crops {seed} {number}".encode()).digest()[:4], "big")

"""How many trials share a GPU, from what one of them needs."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

HEADROOM = 1.25
"""Other configurations need more than the one that was measured, and memory falls into pieces; a trial that runs out
all the same runs again on a GPU of its own."""

MOST_TRIALS = 8
"""On a GPU, however large: more of them mostly wait for each other."""


@dataclass(frozen=True)
class Memory:
    """GPU memory, in bytes.

    Attributes:
        peak: the most that PyTorch has held at a time.
        besides: in use on the device beside what PyTorch held when it was measured: the process's own context.
        total: of the device.
    """

    peak: int
    besides: int
    total: int


def measure() -> Memory | None:
    """Return what this process has needed of its GPU, which it has to itself; None if it has not used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    besides = total - free - torch.cuda.memory_reserved()
    return Memory(torch.cuda.max_memory_reserved(), max(0, besides), total)


def trials_that_fit(memory: Memory | None) -> int:
    """Return how many trials like the measured one share a GPU, with head-room; 1 if nothing was measured."""
    if memory is None or memory.peak <= 0:
        return 1
    return max(1, min(MOST_TRIALS, math.floor(memory.total / (HEADROOM * (memory.peak + memory.besides)))))


def share(trials: int) -> float:
    """Return the fraction of a GPU for each of so many trials, in Ray's steps of a ten-thousandth."""
    return math.floor(10_000 / trials) / 10_000


def describe(memory: Memory | None) -> str:
    """Return what was measured, for people."""
    if memory is None:
        return "the first one has used none"
    gigabytes = [f"{size / 2**30:.1f}" for size in (memory.peak + memory.besides, memory.total)]
    return f"the first one needed {gigabytes[0]} of {gigabytes[1]} GiB"

"""Timing of sides that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return each side's median seconds of processor time; they take turns, after one turn to warm up.

    With one thread, processor time is what a quiet machine's clock would show: time that other work takes is left out
    (not what it does to caches and memory).
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            began = time.process_time()
            run()
            if turn:
                taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}

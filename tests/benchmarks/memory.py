"""How much the driver's memory grows with each trial, each way in a process of its own.

Measured from a quarter of the trials to the last one, so that imports and first allocations are left out.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from tests.benchmarks import engine
from tests.benchmarks.record import Record

TRIALS = 2000

RUNS: dict[str, Callable[[engine.Watch], object]] = {
    "bare Ray Tune": lambda watch: engine.bare(TRIALS, watch),
    "ours": lambda watch: engine.ours(TRIALS, watch=watch),
    "ours, with MLflow": lambda watch: engine.ours(TRIALS, tracking=True, watch=watch),
}


class _Growth(engine.Watch):
    """Notes resident memory at a quarter of the trials and at the last."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = 0
        self.bytes: list[int] = []

    def end(self) -> None:
        super().end()
        self._ended += 1
        if self._ended in (TRIALS // 4, TRIALS):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))


def _measure(name: str) -> float:
    """Return kilobytes a trial."""
    engine.connect()
    watch = _Growth()
    try:
        RUNS[name](watch)
    finally:
        ray.shutdown()
    return (watch.bytes[1] - watch.bytes[0]) / 1000 / (TRIALS - TRIALS // 4)


def benchmark() -> Iterator[Record]:
    """Yield the growth of each way."""
    grown: dict[str, float] = {}
    for name in RUNS:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            grown[name] = process.apply(_measure, (name,))
        reference = grown["bare Ray Tune"] if name != "bare Ray Tune" else None
        yield Record("memory", f"{TRIALS} trials: {name}", grown[name], reference, "kB/trial")

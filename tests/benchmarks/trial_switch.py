"""How long a warm worker takes from one trial of the embedded default to the next.

From the last evaluation of a trial to the begin of the next one's first step: the last files of the one; model,
prompts, optimiser and first batch of the other. The reference is the same in a process whose caches are empty; imports
are not counted. What Ray adds is in the benchmark ``engine``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from ammpl.config import TrialConfig
from ammpl.study.space.search_space import load_space
from ammpl.training import run
from ammpl.training.step import TrainingStep
from tests.benchmarks.record import Record
from tests.benchmarks.trial_phases import DEFAULT, forget

REPEATS = 15


class _StepBeginsError(Exception):
    pass


def benchmark() -> Iterator[Record]:
    """Yield the two halves of a switch and the whole."""
    torch.set_num_threads(1)
    base = load_space(DEFAULT).base.with_values({"training.steps": 2, "training.evaluate_every": 2})
    ends, warm, cold = [], [], []
    for turn in range(REPEATS):
        config = base.with_values({"training.learning_rate": 0.01 + turn / 1000, "model.padding.depth": 1 + turn % 4})
        ends.append(_end(config))
        warm.append(_start(config.with_values({"model.interaction.width": 8})))
        forget()
        cold.append(_start(config))
    end, start, first = (1000 * median(seconds) for seconds in (ends, warm, cold))
    yield Record("trial_switch", "end of a trial: its last files", end, None, "ms")
    yield Record("trial_switch", "start of the next one up to its first step, warm against cold", start, first, "ms")
    yield Record("trial_switch", "switch, warm against cold", end + start, end + first, "ms")


def _end(config: TrialConfig) -> float:
    """Return the seconds from a trial's last evaluation to its end."""
    with tempfile.TemporaryDirectory() as folder:
        trial = run.train(config, Path(folder))
        next(trial)
        began = time.perf_counter()
        assert next(trial, None) is None
        return time.perf_counter() - began


def _start(config: TrialConfig) -> float:
    """Return the seconds from a trial's begin to that of its first step."""

    def stop(*_: object) -> None:
        raise _StepBeginsError

    honest = TrainingStep.__call__
    TrainingStep.__call__ = stop  # type: ignore[assignment]
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            next(run.train(config, Path(folder)))
    except _StepBeginsError:
        return time.perf_counter() - began
    finally:
        TrainingStep.__call__ = honest  # type: ignore[method-assign]
    raise AssertionError("the trial made no step")

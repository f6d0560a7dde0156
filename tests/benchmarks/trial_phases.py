"""A whole trial of the embedded default by phase, in a warm worker; the reference is the first trial of a process.

Processor time of one thread: what other work on the machine takes is left out, and so is waiting for the disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ammpl.config import TrialConfig
from ammpl.data import decoded
from ammpl.data.registry import open_dataset
from ammpl.data.task import load_task
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import load_backbone
from ammpl.study.space.search_space import load_space
from ammpl.training import checkpoint, features, run, running_checkpoint
from ammpl.training.step import TrainingStep
from tests.benchmarks.record import Record

DEFAULT = Path(__file__).resolve().parents[2] / "search_spaces/default.yaml"
REPEATS = 3

PHASES: dict[str, tuple[Any, str]] = {
    "open backbone and data": (run, "_open"),
    "build learnables": (run, "_model"),
    "build optimiser": (run, "build_optimizer"),
    "tokenise prompts": (AMMPL, "classes"),
    "steps": (TrainingStep, "__call__"),
    "evaluations": (run, "_validate"),
    "running checkpoints": (running_checkpoint.RunningCheckpoint, "save"),
    "learnables": (checkpoint, "save_learnables"),
    "masks.png": (run, "draw_masks"),
}
"""Phase -> the function whose calls it is; where one calls another, the outer one has the time."""


def benchmark() -> Iterator[Record]:
    """Yield each phase, warm against cold, and the whole."""
    torch.set_num_threads(1)
    config = load_space(DEFAULT).base
    colds, warms = [], []
    for _ in range(REPEATS):
        forget()
        colds.append(_phases(config))
        warms.append(_phases(config.with_values({"training.learning_rate": 0.011})))
    for phase in warms[0]:
        warm, cold = (median(1000 * run[phase] for run in runs) for runs in (warms, colds))
        yield Record("trial_phases", f"{phase}, warm worker against a new one", warm, cold, "ms")
    whole = median(1000 * run["whole trial"] for run in warms)
    for scope, precision in (("class", "fp32"), ("task", "fp32"), ("task", "bf16")):
        changed = config.with_values({"model.mask.scope": scope, "backbone.precision": precision})
        other = 1000 * _phases(changed)["whole trial"]
        case = f"whole trial, scope {scope} in {precision} against the default"
        yield Record("trial_phases", case, other, whole, "ms")


def forget() -> None:
    """Empty the caches of this process, as a new worker's are; what is imported stays."""
    for cached in (load_backbone, load_task, open_dataset):
        cached.cache_clear()
    features.forget()
    decoded.forget()


def _phases(config: TrialConfig) -> dict[str, float]:
    with timed(PHASES) as seconds, tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        for _ in run.train(config, Path(folder)):
            pass
        whole = time.process_time() - began
    return {**seconds, "all else, the optimiser's steps among it": whole - sum(seconds.values()), "whole trial": whole}


@contextmanager
def timed(phases: dict[str, tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Add up the seconds of functions while the block runs."""
    seconds = dict.fromkeys(phases, 0.0)
    outer: list[str] = []
    honest = {phase: getattr(owner, name) for phase, (owner, name) in phases.items()}

    def wrapped(phase: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if outer:
                return honest[phase](*arguments, **named)
            outer.append(phase)
            began = time.process_time()
            try:
                return honest[phase](*arguments, **named)
            finally:
                seconds[phase] += time.process_time() - began
                outer.clear()

        return call

    for phase, (owner, name) in phases.items():
        setattr(owner, name, wrapped(phase))
    try:
        yield seconds
    finally:
        for phase, (owner, name) in phases.items():
            setattr(owner, name, honest[phase])

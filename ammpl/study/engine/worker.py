"""The worker's side of a trial: an Execute driven one evaluation at a time, its failures turned into words."""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ammpl.config import TrialConfig
from ammpl.data.home import DataHome
from ammpl.errors import reason_of
from ammpl.study.engine import packing
from ammpl.study.engine.carried import Files
from ammpl.study.engine.packing import Memory
from ammpl.study.trial import Execute, Trial

MACHINE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENODEV", "ENXIO", "EMFILE", "ENFILE", "ENOTCONN")
    if hasattr(errno, name)
}
"""Of disks that are full, broken or gone, and of too many open files: none of them a trial's own."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Evaluation:
    """What a trial measured at a step."""

    step: int
    metrics: dict[str, float]
    seconds: float
    memory: Memory | None = None
    files: Files = field(default_factory=dict)  # of a trial whose node does not see the study folder


@dataclass(frozen=True)
class End:
    """A trial ran out (no ``failure``) or raised: by itself, for want of GPU memory, or by the machine's fault."""

    seconds: float
    failure: str | None = None
    out_of_memory: bool = False
    machine: bool = False
    files: Files = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what trials need, or found that it cannot."""

    error: Exception | None = None


class Attempt:
    """One run of a trial in its own folder.

    Args:
        folder: the trial's own; created here. A failure leaves its traceback in ``error.txt``.
    """

    def __init__(self, execute: Execute, trial: Trial, folder: Path):
        self._start = time.perf_counter()
        self._execute = execute
        self._trial = trial
        self._folder = folder
        self._evaluations: Iterator[tuple[int, dict[str, float]]] | None = None

    def next(self) -> Evaluation | End:
        """Run to the next evaluation or to the end."""
        try:
            if self._evaluations is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._evaluations = self._execute(self._trial, self._folder)
            step, metrics = next(self._evaluations)
            values = {name: float(value) for name, value in metrics.items()}
            return Evaluation(int(step), values, self._seconds(), packing.measure())
        except StopIteration:
            _release_memory()
            return End(self._seconds())
        except Exception as error:
            text, name = reason_of(error, 10_000), type(error).__name__
            reason = name if text == name else f"{name}: {text}"
            with contextlib.suppress(OSError):  # on a full disk the reason is all there is
                (self._folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            end = End(self._seconds(), reason, _is_out_of_memory(error), _is_machines(error))
        # Only here are the frames gone that the exception held, with all their tensors.
        _release_memory()
        return end

    def close(self) -> None:
        """Stop the trial where it is, so that the execute's own clean-up runs."""
        close = getattr(self._evaluations, "close", None)
        if close is not None:
            close()
            _release_memory()

    def _seconds(self) -> float:
        return time.perf_counter() - self._start


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an exception is that a GPU's memory did not suffice; told by names, since this may run without torch."""
    texts = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def _is_machines(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, is a fault of the machine that may pass: no room on a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            return True
        # Libraries in Rust (safetensors) and C++ (Arrow) tell the number in the text alone.
        if (told := re.search(r"\(os error (\d+)\)|\berrno:? (\d+)", str(error))) and int(
            told[1] or told[2]
        ) in MACHINE_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _release_memory() -> None:
    """Give memory that PyTorch keeps for later back to the GPU, where the trials that share it can have it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def execute(trial: Trial, folder: Path, home: DataHome | None = None) -> Iterator[tuple[int, dict[str, float]]]:
    """Train a trial of the search or the confirmation; score one of the test phase on the sealed split.

    Args:
        trial: what to run.
        folder: the trial's own.
        home: where data lie; None takes the worker's environment's.
    """
    from ammpl.training import run  # imports torch: here, in the worker, and not in the driver

    if trial.phase == "test":
        return run.test(trial.config, trial.learnables, folder, home)
    return run.train(trial.config, folder, home)


def prepare(configs: Sequence[TrialConfig], home: DataHome | None = None) -> None:
    """Load what trials of these configurations need; later trials of this process find it loaded.

    Raises:
        UserError: what :func:`ammpl.training.run.preflight` finds wrong.
    """
    from ammpl.training import run

    for config in configs:
        run.preflight(config, home)

"""What tests have forks of the warm process do. Who imports it there imports nothing beside."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ammpl.errors import UserError
from ammpl.study.trial import Trial


def about(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Tell what the process is like, then end."""
    import torch

    (folder / "modules").write_text("\n".join(sys.modules))
    (folder / "place").write_text(f"{Path.cwd()}\n{os.environ.get('AMMPL_TEST')}\n{os.environ['OMP_NUM_THREADS']}")
    yield 1, {"pid": os.getpid(), "threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized()}


def hang(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Say which process, then never come back."""
    yield 1, {"pid": os.getpid()}
    (folder / "hangs").touch()
    time.sleep(3600)


def die(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Die in the first step."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield 1, {}


def refuse() -> None:
    """Find what a person can mend."""
    raise UserError("data", "is not there", fix="get it")


def break_down() -> None:
    """Fail in a way of our own."""
    raise ValueError("a surprise")


def die_once(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Report three times; the first time that trial 1 comes to its third step, die."""
    for step in (10, 20, 30):
        if trial.number == 1 and step == 30 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield step, {"validation/accuracy": step / 100, "forked": float("ray" not in sys.modules)}

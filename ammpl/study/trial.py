"""What a study runs (:class:`Trial`), how it ends (:class:`Outcome`), and who is told (:class:`Observer`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from ammpl.config import Scalar, TrialConfig


class State(StrEnum):
    """How a trial ended; the same word in Optuna, MLflow and Parquet."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"  # the configuration's fault: its reason says why
    LOST = "LOST"  # nobody's fault: its process or node died, or the study was interrupted


class MachineError(Exception):
    """The machine, not a trial, keeps a study from going on: a full disk, a process of Ray that has died."""


INTERRUPTED = "interrupted"
"""The reason of trials that are LOST because the study was ended before its time; when it goes on, so do they."""

OVERDUE = "(budget.trial_time)"
"""How the reason of a trial ends that took longer than its study allows."""

Phase = Literal["search", "confirm", "ablation", "test"]

Direction = Literal["maximize", "minimize"]

FIRST_PHASES = ("search", "ablation")
"""What a study begins with, and what a budget ends."""


@dataclass(frozen=True)
class Trial:
    """One execution of one configuration.

    Attributes:
        key: unique within the study and telling: ``search-0007``, ``confirm-0007-r2``, ``test-coop-r3``,
            ``ablation-random-r2``.
        phase: ``search`` (sampled, may be pruned), ``confirm`` (fresh repeats of the best and of the baselines),
            ``ablation`` (a variant), ``test`` (the sealed split, from saved learnables).
        candidate: which configuration: the search trial's number as text (``"7"``), a baseline's name (``"coop"``) or
            a variant's.
        number: the Optuna trial's number in the search phase, else None.
        repeat: which listed repeat; its number is the data seed.
        config: everything that decides the numbers.
        params: the searched parameters, or what the variants of an ablation set, by dotted name; empty for baselines.
        learnables: the safetensors file that a test trial loads, None where there is nothing to load.
    """

    key: str
    phase: Phase
    candidate: str
    number: int | None
    repeat: int
    config: TrialConfig
    params: Mapping[str, Scalar] = field(default_factory=dict)
    learnables: Path | None = None

    def folder(self, study: Path) -> Path:
        """Return the trial's own folder within the study's."""
        return study / "checkpoints" / self.key


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: see :class:`State`.
        value: the objective at the last evaluation; None when there was none.
        step: optimiser steps at the last evaluation; None when there was none.
        metrics: the last evaluation's metrics.
        seconds: wall time of the trial in its worker.
        reason: why it was FAILED or LOST, else None.
        duplicate_of: the key of the trial of the same configuration whose record answered this one, which did not run
            then; else None.
        gpus: the GPUs that it held, a fraction for a shared one.
    """

    state: State
    value: float | None
    step: int | None
    metrics: Mapping[str, float]
    seconds: float
    reason: str | None = None
    duplicate_of: str | None = None
    gpus: float = 0.0


Execute = Callable[[Trial, Path], Iterator[tuple[int, dict[str, float]]]]
"""What a worker does with a trial and its own folder: yields (step, metrics) at each evaluation, writes its files to
the folder at the end. Closed early when pruned. An exception means FAILED, with its text as the reason."""


class Observer(Protocol):
    """Is told what happens in a study, in order, on the driver. Must return quickly and must not raise."""

    def trial_started(self, trial: Trial) -> None:
        """The trial has been handed to a worker."""

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """One evaluation came in; every step comes once, in order."""

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """The trial ended; nothing more comes of it."""

    def close(self) -> None:
        """Nothing more comes at all; block until everything told is where it belongs."""

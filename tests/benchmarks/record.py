"""What a benchmark returns, and the registry that ``run.py`` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One measured case.

    Attributes:
        name: of the benchmark.
        case: what was measured.
        ours: our figure.
        reference: what it is compared with, None where it stands alone.
        unit: of both.
        note: how to read it.
    """

    name: str
    case: str
    ours: float
    reference: float | None
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the reference."""
        return self.ours / self.reference if self.reference else None


Benchmark = Callable[..., Iterable[Record]]
"""Yields its records as it goes."""

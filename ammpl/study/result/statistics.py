"""Statistics of repeats: mean, sd of a sample, 95 % t-interval; alone or as paired differences, with a verdict.

The interval assumes repeats drawn at random and conditions on the images that they share: it says how far the mean
would move with other few-shot samples and starts, not with another data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import special

from ammpl.study.trial import Direction

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats.

    Attributes:
        n: how many repeats.
        mean: in the metric's unit, as everything here.
        sd: standard deviation of a sample (ddof 1); None below two values.
        low: lower end of the 95 % t-interval of the mean; None below two values.
        high: its upper end.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    def figures(self) -> dict[str, float]:
        """Return what is known, by name."""
        values: dict[str, Any] = vars(self)
        return {name: float(value) for name, value in values.items() if value is not None}


class Verdict(StrEnum):
    """Whether the reference beats another candidate by at least the smallest effect of interest."""

    HOLDS = "holds"  # the interval lies beyond that effect
    DOES_NOT = "does not"  # the interval excludes that effect
    UNDECIDED = "undecided"


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, sd and t-interval: mean ± t(.975, n - 1) * sd / sqrt(n).

    Raises:
        ValueError: no value, or one that is not finite: a mean over the others would hide it.

    Examples:
        >>> estimate([1.0, 2.0, 3.0]).sd
        1.0
    """
    if len(values) == 0:
        raise ValueError("there is nothing to estimate from")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"every value must be finite, got {list(values)}")
    sample = np.asarray(values, dtype=np.float64)
    n, mean = len(sample), float(sample.mean())
    if n < 2:
        return Estimate(n, mean, None, None, None)
    sd = float(sample.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Return the estimate of values minus reference over the repeats that both have; None without a common one.

    Args:
        values: by repeat.
        reference: by repeat.

    Raises:
        ValueError: as :func:`estimate`.
    """
    common = sorted(values.keys() & reference.keys())
    return estimate([values[repeat] - reference[repeat] for repeat in common]) if common else None


def verdict(difference: Estimate, direction: Direction, smallest_effect: float | None) -> Verdict | None:
    """Return whether the reference is better by at least ``smallest_effect``, judged by the 95 % interval.

    Args:
        difference: candidate minus reference.
        direction: which of two values is better.
        smallest_effect: what the reference should be better by, in the metric's unit; None gives no verdict.
    """
    if smallest_effect is None or difference.low is None or difference.high is None:
        return None
    if direction == "maximize":
        low, high = -difference.high, -difference.low
    else:
        low, high = difference.low, difference.high
    if low >= smallest_effect:
        return Verdict.HOLDS
    return Verdict.DOES_NOT if high < smallest_effect else Verdict.UNDECIDED

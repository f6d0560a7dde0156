"""Figures of evaluation, worked out by hand."""

from __future__ import annotations

import pytest

from ammpl.training.evaluation import above_chance, harmonic_mean


@pytest.mark.parametrize(
    ("accuracy", "classes", "expected"),
    [(1.0, 2, 1.0), (0.75, 2, 0.5), (0.5, 2, 0.0), (0.3, 2, 0.0), (0.25, 4, 0.0), (0.7, 4, 0.6), (0.55, 10, 0.5)],
)
def test_above_chance(accuracy: float, classes: int, expected: float) -> None:
    """(accuracy - 1/C) / (1 - 1/C); a guess or worse is nothing."""
    assert above_chance(accuracy, classes) == pytest.approx(expected)


def test_harmonic_mean() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.6, 0.6) == pytest.approx(0.6)
    assert harmonic_mean(0.0, 0.0) == harmonic_mean(0.0, 1.0) == 0.0

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ammpl.study.result.statistics import Estimate, estimate, paired


def test_by_hand() -> None:
    # 2, 4, 4, 6: mean 4, squared deviations 4 + 0 + 0 + 4 = 8, sd = sqrt(8 / 3); t(.975, 3) = 3.182446 from a table.
    found = estimate([2.0, 4.0, 4.0, 6.0])
    assert (found.n, found.mean) == (4, 4.0)
    assert found.sd == pytest.approx(math.sqrt(8 / 3), rel=1e-12)
    half = 3.182446 * math.sqrt(8 / 3) / 2
    assert (found.low, found.high) == (pytest.approx(4 - half, abs=1e-6), pytest.approx(4 + half, abs=1e-6))


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_as_scipy_has_it(n: int) -> None:
    dice = np.random.default_rng(n)
    first, second = dice.normal(0.9, 0.02, n), dice.normal(0.88, 0.03, n)
    alone = estimate(first.tolist())
    interval = stats.t.interval(0.95, n - 1, loc=first.mean(), scale=stats.sem(first))
    assert (alone.low, alone.high) == pytest.approx(interval, rel=1e-10)
    difference = paired(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())))
    assert difference is not None
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), rel=1e-8)
    assert difference.mean == pytest.approx((first - second).mean())


def test_pairs_are_the_repeats_that_both_have() -> None:
    assert paired({1: 0.5, 2: 0.75, 4: 9.0}, {2: 0.5, 1: 0.25, 3: 7.0}) == Estimate(2, 0.25, 0.0, 0.25, 0.25)
    assert paired({1: 0.5}, {2: 0.5}) is None


def test_one_value_has_a_mean_only() -> None:
    assert estimate([0.5]) == Estimate(1, 0.5, None, None, None)
    assert estimate([0.5]).figures() == {"n": 1.0, "mean": 0.5}


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_what_cannot_be_estimated(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"nothing to estimate|must be finite"):
        estimate(values)

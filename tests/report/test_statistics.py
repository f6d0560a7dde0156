"""Comparisons against published tables with known answers, and against scipy and plain enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ammpl.report.statistics import Values, compare, harmonic, holm, rank, summarize
from ammpl.study.result.statistics import Estimate, Verdict, estimate, verdict

# Cushny and Peebles' sleep data, as analysed by "Student" (Biometrika 6, 1908): hours gained with two drugs.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

# Demšar (JMLR 7, 2006), table 6: area under the curve of four trees on fourteen data sets, in thousandths. Where .975
# stands twice the table ranks one before the other: they differed before rounding.
DEMSAR = {
    "C4.5": "763 599 954 628 882 936 661 583 775 1000 940 619 972 957",
    "C4.5+m": "768 591 971 661 888 931 668 583 838 1000 962 666 981 978",
    "C4.5+cf": "771 590 968 654 886 916 609 563 866 1000 965 614 975.1 946",
    "C4.5+m+cf": "798 569 967 657 898 931 685 625 875 1000 962 669 975 970",
}


def on_one(values: Sequence[float]) -> Values:
    return {("digits", repeat): value for repeat, value in enumerate(values, 1)}


def on_several(values: Sequence[float]) -> Values:
    return {(f"set {number}", 1): value for number, value in enumerate(values)}


def test_students_own_example() -> None:
    [found] = compare({"2": on_one(DRUG_2), "1": on_one(DRUG_1)}, "1")
    # As textbooks and R's documentation have it: t = 4.0621, df = 9, p = .002833, interval 0.7001 to 2.4599.
    assert (found.unit, found.difference.n) == ("repeats", 10)
    assert found.difference.mean == pytest.approx(1.58)
    assert found.difference.sd == pytest.approx(1.229995, abs=5e-7)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.p_holm == found.p  # a family of one
    assert found.effect == pytest.approx(1.58 / 1.229995, abs=5e-6)


def test_holm_by_hand() -> None:
    # Sorted: .005 * 4, .01 * 3, .03 * 2, .04 * 1, each at least the one before.
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}


def test_only_the_family_is_corrected() -> None:
    dice = np.random.default_rng(0)
    measured = {
        name: on_one(dice.normal(shift, 1.0, 12).tolist()) for name, shift in zip("abcr", (0, 1, 2, 0), strict=True)
    }
    found = {c.name: c for c in compare(measured, "r", family=["a", "c"])}
    plain = {n: stats.ttest_rel(list(measured[n].values()), list(measured["r"].values())).pvalue for n in "abc"}
    assert {name: c.p for name, c in found.items()} == pytest.approx(plain)
    low, high = sorted((plain["a"], plain["c"]))
    assert sorted((found["a"].p_holm or 0, found["c"].p_holm or 0)) == pytest.approx([2 * low, max(high, 2 * low)])
    assert found["b"].p_holm is None
    assert found["b"].wilcoxon is None


def signed_rank_p(differences: Sequence[float]) -> float:
    """The exact two-sided p by enumeration of all signs, mid-ranks where there are ties."""
    moved = np.round([d for d in differences if d != 0], 12)
    ranks = stats.rankdata(np.abs(moved))
    middle = ranks.sum() / 2
    seen = abs(ranks[moved > 0].sum() - middle)
    signs = itertools.product((0, 1), repeat=len(moved))
    return float(np.mean([abs(np.dot(sign, ranks) - middle) >= seen - 1e-9 for sign in signs]))


@pytest.mark.parametrize(
    "differences",
    [
        [0.01, 0.02, 0.03, 0.04, -0.005, 0.06, 0.07, 0.08],
        [0.025, 0.025, -0.025, 0.05, 0.05, 0.0, 0.075, 0.1, 0.1, 0.025],  # ties and a zero, as accuracies have
    ],
)
def test_wilcoxon_is_exact(differences: list[float]) -> None:
    [found] = compare({"a": on_one(differences), "r": on_one([0.0] * len(differences))}, "r")
    assert found.wilcoxon == pytest.approx(signed_rank_p(differences), rel=1e-9)


@pytest.mark.parametrize(("n", "size", "allowed"), [(5, 1, False), (6, 1, True), (7, 5, False), (8, 5, True)])
def test_wilcoxon_only_where_it_can_reject(n: int, size: int, allowed: bool) -> None:
    measured = {f"v{i}": on_one([0.1 + 0.01 * i + 0.001 * k for k in range(n)]) for i in range(size)}
    found = compare({**measured, "r": on_one([0.0] * n)}, "r")
    assert [c.wilcoxon is not None for c in found] == [allowed] * size
    if allowed:  # all differences point one way: the smallest p there is, and it passes
        assert all((c.wilcoxon or 1) <= 0.05 for c in found)


def test_several_data_sets_are_the_sample() -> None:
    reference = {(data_set, repeat): 0.5 for data_set in "abc" for repeat in (1, 2)}
    changed = {**reference, ("a", 1): 0.7, ("b", 2): 0.6, ("c", 1): 0.56, ("c", 2): 0.54}
    [found] = compare({"x": changed, "r": reference}, "r")
    expected = estimate([0.1, 0.05, 0.05])
    assert (found.unit, found.difference.n) == ("data sets", 3)
    assert found.difference.figures() == pytest.approx(expected.figures())
    assert summarize(changed).figures() == pytest.approx(estimate([0.6, 0.55, 0.55]).figures())
    assert summarize(on_one([0.1, 0.2])) == estimate([0.1, 0.2])


def test_demsars_example() -> None:
    measured = {name: on_several([float(word) for word in row.split()]) for name, row in DEMSAR.items()}
    found = rank(measured)
    assert found is not None
    expected = {"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert list(found.mean_ranks) == list(expected)
    assert found.mean_ranks == pytest.approx(expected, abs=5e-4)
    # Section 3.2.2: q = 2.569, so CD at .05 is 2.569 * sqrt(4 * 5 / (6 * 14)) = 1.25; Friedman rejects.
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert found.p < 0.05
    squares = sum(rank**2 for rank in found.mean_ranks.values())
    assert 12 * 14 / (4 * 5) * (squares - 4 * 5**2 / 4) == pytest.approx(9.28, abs=0.01)  # Friedman's statistic there
    assert found.groups == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    assert rank({name: dict(list(values.items())[:5]) for name, values in measured.items()}) is None


@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_nemenyis_table(k: int, q: float) -> None:
    """Demšar's table 5a: critical values of the two-tailed Nemenyi test at .05."""
    measured = {f"v{i}": on_several([float(i)] * 6) for i in range(k)}
    found = rank(measured)
    assert found is not None
    assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / 36), abs=1e-3)


def test_groups_of_ranks() -> None:
    """With 3 candidates on 40 data sets the critical difference is .524."""
    table = np.array([[1, 2, 3]] * 20 + [[2, 1, 3]] * 20)
    found = rank({name: on_several((-table[:, i]).tolist()) for i, name in enumerate("abc")})
    assert found is not None
    assert found.mean_ranks == pytest.approx({"a": 1.5, "b": 1.5, "c": 3.0})
    assert found.groups == (("a", "b"),)


def test_verdicts_by_hand() -> None:
    def judged(low: float, high: float, direction: str = "maximize") -> Verdict | None:
        return verdict(Estimate(10, (low + high) / 2, 1.0, low, high), direction, 0.01)  # type: ignore[arg-type]

    assert judged(-0.05, -0.02) is Verdict.HOLDS  # the candidate is worse by .02 to .05
    assert judged(-0.05, -0.005) is Verdict.UNDECIDED
    assert judged(-0.009, 0.004) is Verdict.DOES_NOT  # worse by less than .01 at most
    assert judged(0.02, 0.05) is Verdict.DOES_NOT  # better
    assert judged(-0.05, 0.05) is Verdict.UNDECIDED
    assert judged(0.02, 0.05, "minimize") is Verdict.HOLDS  # a loss that is higher
    assert verdict(Estimate(1, 0.5, None, None, None), "maximize", 0.01) is None
    assert verdict(estimate([0.1, 0.2]), "maximize", None) is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(1e-3, 0.5))
def test_a_verdict_never_contradicts_its_interval(differences: list[float], smallest: float) -> None:
    found = estimate(differences)
    judged = verdict(found, "minimize", smallest)
    assert found.low is not None and found.high is not None
    assert (judged is Verdict.HOLDS) == (found.low >= smallest)
    assert (judged is Verdict.DOES_NOT) == (found.high < smallest)


def test_both_definitions_of_h() -> None:
    base, new = on_one([0.9, 0.7]), on_one([0.3, 0.5])
    found = harmonic(base, new)
    assert found is not None
    assert found.of_means == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert found.mean_of == pytest.approx((2 * 0.27 / 1.2 + 2 * 0.35 / 1.2) / 2)
    assert harmonic(base, {}) is None
    assert harmonic(on_one([0.0]), on_one([0.5])) is not None


def test_the_published_average_h_is_that_of_the_means() -> None:
    """MaPLe's table: base 82.28, new 75.14 over eleven data sets, H printed as 78.55."""
    base = [76.66, 97.74, 95.43, 72.94, 95.92, 90.71, 37.44, 80.82, 80.36, 94.07, 83.00]
    new = [70.54, 94.36, 97.76, 74.00, 72.46, 92.05, 35.61, 78.70, 59.18, 73.23, 78.66]
    found = harmonic(on_several(base), on_several(new))
    assert found is not None
    assert round(found.of_means, 2) == 78.55
    assert round(found.mean_of, 2) != 78.55


def without_spread(shift: float) -> Mapping[str, Values]:
    return {"a": on_one([0.5 + shift] * 3), "r": on_one([0.5] * 3)}


def test_differences_without_a_spread() -> None:
    [same], [moved] = compare(without_spread(0.0), "r"), compare(without_spread(0.25), "r")
    assert (same.p, same.effect) == (1.0, None)
    assert (moved.p, moved.effect) == (0.0, None)
    [single] = compare({"a": on_one([0.5]), "r": on_one([0.4])}, "r", smallest_effect=0.01)
    assert (single.difference.n, single.p, single.verdict) == (1, None, None)

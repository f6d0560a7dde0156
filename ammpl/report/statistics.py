"""Comparisons of candidates on the same instances, by the rules of docs/report.md.

An instance is a (data set, repeat). On one data set the repeats are the sample; over several, each data set's repeats
are averaged first and the data sets are the sample. Intervals and tests assume that sample drawn at random, and
condition on the images that the instances share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ammpl.study.result.statistics import LEVEL, Estimate, Verdict, estimate, verdict
from ammpl.study.trial import Direction

Instance = tuple[str, int]
"""A data set and a repeat."""

Values = Mapping[Instance, float]

ALPHA = 1 - LEVEL
FEWEST_DATA_SETS = 6
"""From which on ranks over data sets are compared."""
MOST_EXACT = 16
"""Differences of which all 2^n signs are enumerated where ties leave no table."""


@dataclass(frozen=True)
class Comparison:
    """A candidate against the reference.

    Attributes:
        name: of the candidate.
        unit: what the sample is of.
        difference: the candidate minus the reference, in the metric's unit, over the units that both have.
        effect: mean difference / sd of the differences (Cohen's d of paired samples); None without a spread.
        p: of the paired t-test, two-sided; None below two units.
        p_holm: the same, corrected for its family; None outside it.
        wilcoxon: p of the signed-rank test, corrected for the family; None where it could not reject whatever came
            out, and outside the family.
        verdict: None where no smallest effect is declared, or there is no interval.
    """

    name: str
    unit: Literal["repeats", "data sets"]
    difference: Estimate
    effect: float | None = None
    p: float | None = None
    p_holm: float | None = None
    wilcoxon: float | None = None
    verdict: Verdict | None = None


def compare(
    measured: Mapping[str, Values],
    reference: str,
    *,
    direction: Direction = "maximize",
    smallest_effect: float | None = None,
    family: Iterable[str] | None = None,
) -> list[Comparison]:
    """Compare each candidate with the reference, in the order of ``measured``.

    Args:
        measured: by candidate.
        reference: a key of ``measured``.
        direction: which of two values is better.
        smallest_effect: what the reference should be better by, in the metric's unit; None gives no verdicts.
        family: the candidates whose p-values are corrected together; None takes all.

    Raises:
        ValueError: a value is not finite.
    """
    inside = set(measured if family is None else family)
    found: dict[str, tuple[Literal["repeats", "data sets"], list[float]]] = {}
    for name, values in measured.items():
        unit, differences = _differences(values, measured[reference])
        if name != reference and differences:
            found[name] = unit, differences
    tests = {name: _t_test(differences) for name, (_, differences) in found.items()}
    corrected = holm({name: p for name, p in tests.items() if name in inside and p is not None})
    ranked = _wilcoxon({name: differences for name, (_, differences) in found.items() if name in inside})
    comparisons = []
    for name, (unit, differences) in found.items():
        difference = estimate(differences)
        comparisons.append(
            Comparison(
                name,
                unit,
                difference,
                difference.mean / difference.sd if difference.sd else None,
                tests[name],
                corrected.get(name),
                ranked.get(name),
                verdict(difference, direction, smallest_effect),
            )
        )
    return comparisons


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted by Holm's step-down method: each is below alpha where the method rejects at alpha."""
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests  # a second of import, of reports only

    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


def data_set_means(values: Values) -> dict[str, float]:
    """Return the mean over a data set's repeats, by data set."""
    by_data_set: dict[str, list[float]] = {}
    for (data_set, _), value in values.items():
        by_data_set.setdefault(data_set, []).append(value)
    return {data_set: float(np.mean(found)) for data_set, found in by_data_set.items()}


def summarize(values: Values) -> Estimate:
    """Return mean, sd and interval: over repeats on one data set, over the data sets' means on several."""
    means = data_set_means(values)
    return estimate(list(values.values()) if len(means) == 1 else list(means.values()))


@dataclass(frozen=True)
class Harmonic:
    """The harmonic mean H = 2 B N / (B + N) of base and new accuracy, by its two definitions.

    Attributes:
        of_means: H of the mean base and the mean new accuracy, the published definition of an average.
        mean_of: the mean of H: of each repeat's on one data set, of each data set's on several.
    """

    of_means: float
    mean_of: float


def harmonic(base: Values, new: Values) -> Harmonic | None:
    """Return H over the instances that have both accuracies; None where none has."""
    common = sorted(base.keys() & new.keys())
    if not common:
        return None
    b, n = ({instance: values[instance] for instance in common} for values in (base, new))
    means_b, means_n = data_set_means(b), data_set_means(n)
    of_means = _h(float(np.mean(list(means_b.values()))), float(np.mean(list(means_n.values()))))
    if len(means_b) > 1:
        return Harmonic(of_means, float(np.mean([_h(means_b[name], means_n[name]) for name in means_b])))
    return Harmonic(of_means, float(np.mean([_h(b[instance], n[instance]) for instance in common])))


@dataclass(frozen=True)
class Ranks:
    """Candidates by their mean rank over data sets (Demšar, JMLR 7, 2006, section 3.2.2).

    Attributes:
        mean_ranks: by candidate, best first; 1 is the best rank.
        data_sets: how many.
        p: of Friedman's test that all candidates are alike.
        critical_difference: of Nemenyi's test at .05: mean ranks further apart than that differ.
        groups: candidates among which no two differ, where there is more than one; none within another.
    """

    mean_ranks: Mapping[str, float]
    data_sets: int
    p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]


def rank(measured: Mapping[str, Values], direction: Direction = "maximize") -> Ranks | None:
    """Rank three or more candidates over the data sets that all have; None below six of those."""
    means = {name: data_set_means(values) for name, values in measured.items()}
    shared = set.intersection(*(set(found) for found in means.values())) if means else set()
    if len(means) < 3 or len(shared) < FEWEST_DATA_SETS:
        return None
    order = sorted(shared)
    table = np.array([[found[data_set] for data_set in order] for found in means.values()])
    ranks = stats.rankdata(-table if direction == "maximize" else table, axis=0).mean(axis=1)
    k, n = table.shape
    q = float(stats.studentized_range.ppf(LEVEL, k, np.inf)) / np.sqrt(2)
    difference = float(q * np.sqrt(k * (k + 1) / (6 * n)))
    by_rank = {name: float(value) for value, name in sorted(zip(ranks, means, strict=True))}
    p = 1.0 if np.ptp(ranks) == 0 else float(stats.friedmanchisquare(*table).pvalue)
    return Ranks(by_rank, n, p, difference, _groups(by_rank, difference))


def _groups(mean_ranks: Mapping[str, float], difference: float) -> tuple[tuple[str, ...], ...]:
    names = list(mean_ranks)
    groups: list[tuple[str, ...]] = []
    for start, first in enumerate(names):
        group = tuple(name for name in names[start:] if mean_ranks[name] - mean_ranks[first] < difference)
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return tuple(groups)


def _differences(values: Values, reference: Values) -> tuple[Literal["repeats", "data sets"], list[float]]:
    """Return what was compared, and the candidate minus the reference for each that both have."""
    common = sorted(values.keys() & reference.keys())
    by_instance = {instance: values[instance] - reference[instance] for instance in common}
    means = data_set_means(by_instance)
    if len({data_set for data_set, _ in reference}) > 1:
        return "data sets", list(means.values())
    return "repeats", list(by_instance.values())


def _t_test(differences: Sequence[float]) -> float | None:
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0:  # without a spread t is infinite, or 0 / 0
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _wilcoxon(family: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return signed-rank p-values corrected for the family, of the candidates where the test could reject at all.

    n differences other than 0 have a p of 2^(1 - n) at least, which Holm compares with .05 / (size of the family).
    """
    found: dict[str, float] = {}
    for name, differences in family.items():
        moved = [value for value in differences if value != 0]
        if 2.0 ** (1 - len(moved)) * len(family) > ALPHA:
            continue
        tied = len({round(abs(value), 12) for value in moved}) < len(moved)
        # Rounding must not tell apart what is tied: accuracies are multiples of 1 / images.
        sample = np.round(moved, 12)
        if tied and len(moved) <= MOST_EXACT:
            method = stats.PermutationMethod(n_resamples=2**MOST_EXACT)
            found[name] = float(stats.wilcoxon(sample, method=method).pvalue)
        else:
            found[name] = float(stats.wilcoxon(sample).pvalue)
    others = {name: 1.0 for name in family if name not in found}
    return {name: p for name, p in holm({**found, **others}).items() if name in found}


def _h(base: float, new: float) -> float:
    return float(stats.hmean([base, new])) if base > 0 and new > 0 else 0.0

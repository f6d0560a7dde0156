"""What came out, in tables and sentences: means with intervals, differences to the reference, base and new classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ammpl.report.results import Row, StudyResult, TrialResult
from ammpl.report.search_figures import Point, pareto_front
from ammpl.report.statistics import Comparison, Values, compare, harmonic, summarize
from ammpl.report.tables import Column, Table
from ammpl.study.result.labels import params_text
from ammpl.study.result.statistics import Estimate, Verdict
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.search_space import Objective
from ammpl.study.trial import State

BASE_AND_NEW = (("test/base_accuracy", "test/new_accuracy"), ("validation/accuracy", "validation/new_accuracy"))
"""Metrics that belong together, where both were measured."""

CONDITIONS = (
    "Intervals are 95 % t-intervals over {unit}; they condition on the fixed {images} images, and say how far a mean "
    "would move with other few-shot samples and starts, not with other images."
)


@dataclass(frozen=True)
class Sentence:
    """A line of the answer.

    Attributes:
        text: what was found, with its interval.
        verdict: on the claim, where one was declared.
        claim: what was judged.
    """

    text: str
    verdict: Verdict | None = None
    claim: str = ""


FEWEST_DATA_SETS = 3
"""From which on the answer is over data sets; below, an interval over them says nothing, and each has its own."""


def differences(study: StudyResult, metric: str, shots: int, data_set: str | None = None) -> list[Comparison]:
    """Return each candidate's comparison with the reference, over all data sets or on one; empty without a reference.

    The declared family and smallest effect are of the objective's kind; a metric measured in something else than
    accuracy gets no verdict. Each metric, number of shots and data set is a family of its own.
    """
    measured = {row.candidate: row.values(metric, shots, data_set) for row in study.rows}
    if study.reference is None or not measured.get(study.reference):
        return []
    direction, smallest, family = study.direction, None, None
    if isinstance(study.space, AblationSpace):
        direction, smallest = study.space.judged_by(metric)
        family = study.space.family
    elif metric != study.space.objective.metric:
        direction = "maximize"
    return compare(measured, study.reference, direction=direction, smallest_effect=smallest, family=family)


def means_table(study: StudyResult, metric: str, shots: int) -> Table | None:
    """Return each candidate's mean, sd and interval; None where nothing was measured."""
    rows = [(row, values) for row in study.rows if (values := row.values(metric, shots))]
    if not rows:
        return None
    found = [(row, summarize(values)) for row, values in rows]
    unit = "data sets" if len({d for _, values in rows for d, _ in values}) > 1 else "repeats"
    images = "test" if metric.startswith("test/") else "validation"
    note = CONDITIONS.format(unit=unit, images=images)
    if any(row.tuned is False for row in study.rows):
        note += " No search was spent on an untuned row: it has its method's published settings or the file's."
    if any(row.tuned for row in study.rows) and images == "validation":
        note += " The winner was chosen by these numbers, so that its own is optimistic."
    return Table(
        _name("means", metric, shots),
        f"{metric}, {shots} shots: mean over {unit}",
        (
            Column("candidate"),
            Column("n", "d"),
            Column("mean", ".4f"),
            Column("sd", ".4f"),
            Column("95 % low", ".4f"),
            Column("95 % high", ".4f"),
        ),
        tuple((row.label, e.n, e.mean, e.sd, e.low, e.high) for row, e in found),
        note,
        tuple(row.candidate for row, _ in found),
        tuple(index for index, (row, _) in enumerate(found) if row.candidate == study.reference),
    )


def differences_table(study: StudyResult, metric: str, shots: int) -> Table | None:
    """Return each candidate's difference to the reference with its tests; None where there is none."""
    comparisons = differences(study, metric, shots)
    if not comparisons:
        return None
    labels = {row.candidate: row.label for row in study.rows}
    judged = any(found.verdict for found in comparisons)
    ranked = any(found.wilcoxon is not None for found in comparisons)
    claim = _claim(study) if judged else ""
    columns = (
        Column("candidate"),
        Column("n", "d"),
        Column("difference", "+.4f"),
        Column("95 % low", "+.4f"),
        Column("95 % high", "+.4f"),
        Column("effect size d", "+.2f"),
        Column("p", "p"),
        Column("p, Holm", "p"),
        *((Column("signed rank p, Holm", "p"),) if ranked else ()),
        *((Column(f"{study.reference} better by {claim}"),) if judged else ()),
    )
    rows = tuple(
        (
            labels[c.name],
            c.difference.n,
            c.difference.mean,
            c.difference.low,
            c.difference.high,
            c.effect,
            c.p,
            c.p_holm,
            *((c.wilcoxon,) if ranked else ()),
            *((str(c.verdict) if c.verdict else None,) if judged else ()),
        )
        for c in comparisons
    )
    family = sum(c.p_holm is not None for c in comparisons)
    note = (
        f"Candidate minus {labels[study.reference or '']}, paired by "
        f"{'repeat' if comparisons[0].unit == 'repeats' else 'data set, the repeats averaged first'}. d is the mean "
        f"difference over its sd; p of the paired t-test; Holm's correction for a family of {family}."
    )
    note += (
        "" if ranked else " There are too few pairs for a signed-rank test to reject anything after that correction."
    )
    if not judged:
        note += " No smallest effect of interest was declared, so nothing is judged."
    return Table(
        _name("differences", metric, shots),
        f"{metric}, {shots} shots: paired differences",
        columns,
        rows,
        note,
        tuple(c.name for c in comparisons),
    )


def base_and_new(study: StudyResult, shots: int) -> tuple[str, dict[str, Values], dict[str, Values]] | None:
    """Return which split's accuracies on base and new classes there are, each by candidate."""
    for base, new in BASE_AND_NEW:
        found = [{row.candidate: row.values(metric, shots) for row in study.rows} for metric in (base, new)]
        if any(found[0].values()) and any(found[1].values()):
            return base.partition("/")[0], found[0], found[1]
    return None


def harmonic_table(study: StudyResult, shots: int) -> Table | None:
    """Return base, new and H by both definitions; None where there are no new classes."""
    found = base_and_new(study, shots)
    if found is None:
        return None
    split, base, new = found
    rows: list[tuple[str | float | int | None, ...]] = []
    for row in study.rows:
        h = harmonic(base[row.candidate], new[row.candidate])
        if h is not None:
            b, n = summarize(base[row.candidate]), summarize(new[row.candidate])
            rows.append((row.label, b.n, b.mean, n.mean, b.mean - n.mean, h.of_means, h.mean_of))
    note = (
        "H of the means is the harmonic mean of mean base and mean new accuracy, as published averages are; "
        "the mean of H "
        "is that of each repeat's H on one data set, of each data set's on several. Both are of raw accuracies"
    )
    note += "." if split == "test" else "; validation/harmonic_mean is of accuracies above chance."
    return Table(
        _name("base-new", split, shots),
        f"Base and new classes, {split}, {shots} shots",
        (
            Column("candidate"),
            Column("n", "d"),
            Column("base", ".4f"),
            Column("new", ".4f"),
            Column("base − new", "+.4f"),
            Column("H of the means", ".4f"),
            Column("mean of H", ".4f"),
        ),
        tuple(rows),
        note,
        tuple(row.candidate for row in study.rows if harmonic(base[row.candidate], new[row.candidate]) is not None),
    )


def data_sets_table(study: StudyResult, metric: str, shots: int) -> Table | None:
    """Return candidates by data set, where there are several: means over repeats."""
    measured = {row.label: row.values(metric, shots) for row in study.rows}
    names = sorted({data_set for values in measured.values() for data_set, _ in values})
    if len(names) < 2:
        return None
    rows = []
    for label, values in measured.items():
        means = [summarize(v).mean if (v := _of(values, name)) else None for name in names]
        rows.append((label, *means, summarize(values).mean if values else None))
    columns = (Column("candidate"), *(Column(name, ".4f") for name in names), Column("mean", ".4f"))
    title = f"{metric}, {shots} shots, by data set"
    return Table(_name("data-sets", metric, shots), title, columns, tuple(rows), "Means over repeats.")


def by_data_set_table(study: StudyResult, metric: str, shots: int) -> Table | None:
    """Return each data set's own means and differences, over its repeats; None where there is one data set."""
    names = sorted({data_set for row in study.rows for data_set, _ in row.values(metric, shots)})
    if len(study.data_sets) < 2 or not names:
        return None
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in names:
        found = {c.name: c.difference for c in differences(study, metric, shots, name)}
        for row in study.rows:
            if values := row.values(metric, shots, name):
                own, d = summarize(values), found.get(row.candidate)
                difference = (d.mean, d.low, d.high) if d else (None, None, None)
                rows.append((row.label, name, own.n, own.mean, own.sd, own.low, own.high, *difference))
    ends = (Column("95 % low", ".4f"), Column("95 % high", ".4f"))
    signed = (Column("difference", "+.4f"), Column("95 % low", "+.4f"), Column("95 % high", "+.4f"))
    columns = (Column("candidate"), Column("data set"), Column("n", "d"), Column("mean", ".4f"), Column("sd", ".4f"))
    return Table(
        _name("each-data-set", metric, shots),
        f"{metric}, {shots} shots: each data set by itself",
        (*columns, *ends, *signed),
        tuple(rows),
        f"Over a data set's repeats; differences to {study.reference or 'nothing'}, paired by repeat, uncorrected.",
    )


def answer(study: StudyResult) -> list[Sentence]:
    """Return what the study found, in sentences with their intervals: of its main metric, at each number of shots.

    Over data sets from three on; below, on each by itself.
    """
    several = 1 < len(study.data_sets) < FEWEST_DATA_SETS
    sentences = []
    for shots, data_set in itertools.product(study.shots, study.data_sets if several else [None]):
        at = (f" on {data_set}" if data_set else "") + (f" at {shots} shots" if len(study.shots) > 1 else "")
        rows = [row for row in study.rows if row.values(study.main_metric, shots, data_set)]
        first = next((row for row in rows if row.candidate == study.reference), None)
        if first is not None:
            found = summarize(first.values(study.main_metric, shots, data_set))
            params = f" ({params_text(first.params)})" if first.params and first.tuned else ""
            text = f"{first.label}{params} reaches {study.main_metric} {_estimate(found)}{at}."
            sentences.append(Sentence(text))
        sentences += [_sentence(study, c, at) for c in differences(study, study.main_metric, shots, data_set)]
    if len(study.objectives) == 2 and not sentences:
        return _front_sentences(study)
    return sentences or [Sentence("Nothing has been compared yet: no candidate has a result on fresh repeats.")]


def _front_sentences(study: StudyResult) -> list[Sentence]:
    first, second = study.objectives
    complete = [trial for trial in study.searched if trial.state is State.COMPLETE]
    front = sorted(pareto_front(first, second, trade_off(study, complete, first, second)), key=lambda p: p.first.mean)
    sentences = [Sentence(f"{len(front)} of {len(complete)} configurations are on the Pareto front.")]
    for end in dict.fromkeys([0, len(front) - 1] if front else []):
        point = front[end]
        text = f"{params_text(point.trial.params)}: {first.metric} {_estimate(point.first)}, "
        sentences.append(Sentence(f"{text}{second.metric} {_estimate(point.second)}."))
    return sentences


def remarks(study: StudyResult) -> list[str]:
    """Return what must be known before a number is believed."""
    found = []
    if not study.has_ended:
        found.append("The study has not come to its end: this is what was known when the report was made.")
    if study.test_openings > 1:
        times = {2: "twice", 3: "three times"}.get(study.test_openings, f"{study.test_openings} times")
        found.append(
            f"The test split was opened {times}. What was chosen after the first look may have been chosen by "
            "it: read the "
            "later numbers as validation, and confirm them on data that nobody has looked at."
        )
    elif not study.test_openings:
        found.append("The test split was not opened: all numbers are of validation images.")
    if isinstance(study.space, AblationSpace):
        several = 1 < len(study.data_sets) < FEWEST_DATA_SETS
        uncorrected = [
            c.name
            for shots, data_set in itertools.product(study.shots, study.data_sets if several else [None])
            for c in differences(study, study.main_metric, shots, data_set)
            if c.verdict is Verdict.HOLDS and c.p_holm is not None and c.p_holm >= 0.05
        ]
        if uncorrected:
            names = ", ".join(dict.fromkeys(uncorrected))
            found.append(
                f"By itself the interval decides on {names}; after Holm's correction for the family it does not."
            )
        if len(study.space.repeats) < 10 and len(study.data_sets) < FEWEST_DATA_SETS:
            n = len(study.space.repeats)
            found.append(f"{n} repeats on one data set; ten or more are what a claim on one data set should rest on.")
    told = [str(text) for found in study.environments for text in found.get("data", {}).get("warnings", ())]
    found += [f"Data: {text}" for text in dict.fromkeys(told)]
    found += [str(note) for note in study.summary.get("notes", ())]
    found += [f"{word}: {why}" for word in ("ended", "stopped") if (why := study.summary.get(word))]
    return found


def trade_off(study: StudyResult, trials: Sequence[TrialResult], first: Objective, second: Objective) -> list[Point]:
    """Return two metrics of each configuration that has both."""
    found = []
    for trial in trials:
        x, y = (study.over_repeats(trial.number, objective.metric) for objective in (first, second))
        if x is not None and y is not None:
            found.append(Point(trial, x, y))
    return found


def front_table(first: Objective, second: Objective, front: Sequence[Point]) -> Table:
    """Return the configurations of a Pareto front, by the first objective."""
    columns = [Column("configuration"), Column("n", "d")]
    for objective in (first, second):
        columns += [Column(objective.metric, ".4f"), Column("95 % low", ".4f"), Column("95 % high", ".4f")]
    rows, keys = [], []
    for point in sorted(front, key=lambda point: point.first.mean):
        x, y = point.first, point.second
        texts = (x.mean, x.low, x.high, y.mean, y.low, y.high, params_text(point.trial.params))
        rows.append((str(point.trial.number), x.n, *texts))
        keys.append(point.trial.key)
    return Table(
        "pareto-front",
        f"Pareto front of {first.metric} and {second.metric}",
        (*columns, Column("parameters")),
        tuple(rows),
        "Means over repeats of the search. The front was chosen by these numbers: they are optimistic.",
        tuple(keys),
    )


def rank_rows(study: StudyResult, metric: str, shots: int) -> Mapping[str, Values]:
    """Return what is ranked over data sets."""
    return {row.label: row.values(metric, shots) for row in study.rows}


def _sentence(study: StudyResult, found: Comparison, at: str) -> Sentence:
    labels = {row.candidate: row.label for row in study.rows}
    difference = found.difference
    side = "above" if difference.mean > 0 else "below"
    reference = "the winner" if not isinstance(study.space, AblationSpace) else str(study.reference)
    where = f"{abs(difference.mean):.4f} {side}" if difference.mean else "level with"
    text = f"{labels[found.name]} lies {where} {reference}{at} ({_interval(difference, found.unit)}"
    if found.p_holm is not None:
        p = Column("", "p").show(found.p_holm)
        text += f", p {p if p.startswith('<') else '= ' + p} after Holm"
    text += ")."
    if found.verdict is None:
        return Sentence(text)
    return Sentence(text, found.verdict, f"{study.reference} is better than {found.name} by {_claim(study)}{at}")


def _claim(study: StudyResult) -> str:
    smallest = study.space.smallest_effect if isinstance(study.space, AblationSpace) else None
    return f"{smallest:g} or more"


def _estimate(found: Estimate) -> str:
    return f"{found.mean:.4f} ({_interval(found, '')})"


def _interval(found: Estimate, unit: str) -> str:
    n = f"n = {found.n} {unit}".rstrip()
    if found.low is None or found.high is None:
        return f"no interval, {n}"
    sign = "+" if unit else ""
    return f"95 % interval {found.low:{sign}.4f} to {found.high:{sign}.4f}, {n}".replace("-", "−")


def _of(values: Values, data_set: str) -> Values:
    return {instance: value for instance, value in values.items() if instance[0] == data_set}


def _name(kind: str, metric: str, shots: int) -> str:
    return f"{kind}-{metric.replace('/', '-')}-{shots}shots"


def joint_rows(studies: Sequence[StudyResult]) -> tuple[Row, ...]:
    """Return the rows of several studies, each called by its study too."""
    return tuple(
        replace(row, candidate=f"{study.name}: {row.candidate}", label=f"{study.name}: {row.label}")
        for study in studies
        for row in study.rows
    )

"""``tune.py compare``: two studies side by side: what was changed between them, then what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ammpl.report.results import Row, StudyResult, flat, read_study
from ammpl.report.statistics import compare as paired
from ammpl.report.statistics import summarize
from ammpl.report.tables import Column, Table, Value

ABSENT = "–"
NOTE = (
    "n counts pairs: the repeats of a data set that both have, or the data sets; without one there is no difference. "
    "Intervals are 95 % t-intervals over these; p of the paired t-test, uncorrected. A repeat's number stands for the "
    "same few-shot sample only where data and shots are the same."
)


def compare_studies(first: Path, second: Path) -> list[Table]:
    """Return what differs in settings and surroundings, and the results of what both studies have, a table per metric.

    Raises:
        UserError: a folder is no study's, or a file of it cannot be read.
    """
    a, b = read_study(first), read_study(second)
    return [settings_table(a, b), *results_tables(a, b)]


def settings_table(a: StudyResult, b: StudyResult) -> Table:
    """Return the settings of the space, the versions, the machine and the code that are not the same in both."""
    one, other = _facts(a), _facts(b)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name, ABSENT) != other.get(name, ABSENT)]
    rows = tuple((name, one.get(name, ABSENT), other.get(name, ABSENT)) for name in names)
    same = len({*one, *other}) - len(names)
    columns = (Column("what"), Column(f"A: {a.name}"), Column(f"B: {b.name}"))
    return Table("changed", "What differs", columns, rows, f"{same} other settings and versions are the same.")


def results_tables(a: StudyResult, b: StudyResult) -> list[Table]:
    """Return, for each metric and number of shots, both means of each candidate and B minus A over common repeats.

    Winners are compared with each other, whatever their numbers.
    """
    rows_a, rows_b = _rows(a), _rows(b)
    names = dict.fromkeys([*rows_a, *rows_b])
    columns = (
        Column("candidate"),
        Column("mean A", ".4f"),
        Column("mean B", ".4f"),
        Column("n", "d"),
        Column("B − A", "+.4f"),
        Column("95 % low", "+.4f"),
        Column("95 % high", "+.4f"),
        Column("p", "p"),
    )
    tables = []
    for metric in dict.fromkeys([*a.metrics, *b.metrics]):
        for shots in sorted({*a.shots, *b.shots}):
            lines = {name: _line(rows_a.get(name), rows_b.get(name), metric, shots) for name in names}
            if rows := tuple((name, *line) for name, line in lines.items() if line is not None):
                slug = f"results-{metric.replace('/', '-')}-{shots}shots"
                tables.append(Table(slug, f"{metric}, {shots} shots: B minus A", columns, rows))
    return [*tables[:-1], *(replace(last, note=NOTE) for last in tables[-1:])]


def _line(one: Row | None, other: Row | None, metric: str, shots: int) -> tuple[Value, ...] | None:
    before, after = (row.values(metric, shots) if row else {} for row in (one, other))
    if not before and not after:
        return None
    means = [summarize(values).mean if values else None for values in (before, after)]
    found = paired({"a": before, "b": after}, "a") if before and after else []
    if not found:
        return (*means, 0, None, None, None, None)
    difference = found[0].difference
    return (*means, difference.n, difference.mean, difference.low, difference.high, found[0].p)


def _rows(study: StudyResult) -> dict[str, Row]:
    rows = {}
    for row in study.rows:
        is_winner = bool(row.tuned) and row.candidate == study.reference
        if is_winner or not row.tuned:  # other finalists have numbers that mean nothing elsewhere
            rows["winner" if is_winner else row.candidate] = row
    return rows


def _facts(study: StudyResult) -> dict[str, str]:
    """Return everything that could explain a difference, by name."""
    space = {name: _text(value) for name, value in flat(study.space.resolved()).items() if value is not None}
    found: Mapping[str, Any] = study.environments[0] if study.environments else {}
    known = {
        "commit": (found.get("code", {}).get("commit") or "")[:12] or None,
        "uncommitted changes": found.get("code", {}).get("modified"),
        "Python": found.get("python"),
        "machine": found.get("processor"),
        "CPUs": found.get("cpus"),
        "GPUs": ", ".join(found.get("gpus", [])) or "none",
        **{f"version of {name}": version for name, version in found.get("packages", {}).items()},
    }
    return {**space, **{name: _text(value) for name, value in known.items() if value is not None}}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)

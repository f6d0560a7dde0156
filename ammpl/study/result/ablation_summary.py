"""What came out of an ablation: each variant's mean, and its paired difference to the reference.

In each setting, a data set at a number of shots, over the repeats. Over several data sets each one's repeats are
averaged first, and the data sets are the sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ammpl.config import Scalar
from ammpl.escaping import markdown, markdown_code, rich_text
from ammpl.study.plan.ablation_plan import AblationPlan, StudyPlan
from ammpl.study.result.statistics import Estimate, Verdict, estimate, paired, verdict
from ammpl.study.result.summary import StudySummary, markdown_table, summarize, tally
from ammpl.study.space.ablation_space import AblationSpace, Setting

Values = Mapping[int, float] | Mapping[str, float]
"""By repeat, or by data set."""


@dataclass(frozen=True)
class VariantCell:
    """A metric of a variant in a setting.

    Attributes:
        values: by repeat; over data sets their means, by data set.
        own: mean, sd and interval of the values.
        difference: of the values minus the reference's, over the repeats that both completed, or over the data sets'
            means of these; None for the reference itself, or without such a repeat.
        verdict: whether the reference is better by the smallest effect that the space declares; None without one.
    """

    values: Values
    own: Estimate
    difference: Estimate | None
    verdict: Verdict | None = None

    def texts(self, is_reference: bool) -> tuple[str, ...]:
        """Return what the table shows: n, mean, sd, difference with its interval, verdict."""
        difference = "reference" if is_reference else "–"
        if (pairs := self.difference) is not None:
            difference = f"{pairs.mean:+.4f}"
            if pairs.low is not None:
                difference += f" [{pairs.low:+.4f}, {pairs.high:+.4f}]"
            if pairs.n != self.own.n:
                difference += f" (n = {pairs.n})"
        sd = "–" if self.own.sd is None else f"{self.own.sd:.4f}"
        return str(self.own.n), f"{self.own.mean:.4f}", sd, difference, str(self.verdict or "–")


COLUMNS = ("variant", "n", "mean", "sd", "difference [95 % interval]")


@dataclass(frozen=True)
class VariantRow:
    """A variant in a setting: what it sets, and what was measured, by metric.

    Attributes:
        name: of variant and setting, as trials have it.
        dataset: None for what is over all data sets.
    """

    variant: str
    name: str
    dataset: str | None
    shots: int
    params: Mapping[str, Scalar]
    cells: Mapping[str, VariantCell]


@dataclass(frozen=True, kw_only=True)
class AblationSummary(StudySummary):
    """The end of an ablation.

    Attributes:
        reference: the variant that the others are compared with.
        smallest_effect: what verdicts are by; None without them.
        rows: the variants with a complete trial, in the order of the file, setting by setting; then over data sets.
    """

    reference: str
    smallest_effect: float | None
    rows: tuple[VariantRow, ...]

    @property
    def has_result(self) -> bool:
        """Whether a trial completed."""
        return bool(self.rows)

    @property
    def unshown(self) -> str | None:
        """That there is no table."""
        return None if self.rows else "no trial of the ablation completed"

    @property
    def metrics(self) -> list[str]:
        """The metrics that have a table each: the objective, then those of the test phase but its losses."""
        found = {metric for row in self.rows for metric in row.cells if not metric.endswith("/loss")}
        return [m for m in (self.objective,) if self.rows] + sorted(found - {self.objective})

    def flat_metrics(self) -> dict[str, float]:
        """Return every figure of the rows under one name: ``random/validation/accuracy/difference/mean``.

        MLflow allows no ``+`` in a metric's name, so a variant's becomes ``_``.
        """
        flat: dict[str, float] = {}
        for row in self.rows:
            for metric, cell in row.cells.items():
                name = f"{row.name.replace('+', '_').replace('@', '/')}/{metric}"
                flat.update({f"{name}/{figure}": value for figure, value in cell.own.figures().items()})
                if cell.difference is not None:
                    figures = cell.difference.figures()
                    flat.update({f"{name}/difference/{figure}": value for figure, value in figures.items()})
        return flat

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON data."""
        return {**super().as_dict(), "kind": "ablation"}

    def _markdown_tables(self) -> str:
        return "\n".join(
            f"**{markdown(metric)}**{markdown(_at(setting))}, "
            f"differences to {markdown_code(self.reference)} paired by {self._unit(setting)}\n\n"
            + markdown_table(self._columns(metric), self._texts(metric, setting))
            for metric, setting in self._tables(self._settings)
        )

    def tables(self) -> list[Table]:
        """Return the tables for the terminal, one a metric and setting; of data sets only what is over them all."""
        overall = [setting for setting in self._settings if setting.dataset is None]
        tables = []
        for metric, setting in self._tables(overall or self._settings):
            title = f"{self.study}: {metric}{_at(setting)}, paired with {self.reference}"
            table = Table(title=rich_text(title, "table.title"), title_justify="left", box=SIMPLE_HEAD)
            name, *numbers, difference = COLUMNS
            table.add_column(name, overflow="fold")
            for column in numbers:
                table.add_column(column, justify="right", no_wrap=True)
            table.add_column(difference, no_wrap=True)
            for column in self._columns(metric)[len(COLUMNS) :]:
                table.add_column(column, width=len("reference"))
            for texts in self._texts(metric, setting):
                table.add_row(*map(rich_text, texts))
            tables.append(table)
        return tables

    @property
    def _settings(self) -> list[Setting]:
        return list(dict.fromkeys(Setting(row.dataset, row.shots) for row in self.rows))

    def _tables(self, settings: list[Setting]) -> Iterator[tuple[str, Setting | None]]:
        """Yield each table's metric, and its setting where there are several."""
        for metric in self.metrics:
            for setting in settings:
                if list(self._texts(metric, setting)):
                    yield metric, setting if len(self._settings) > 1 else None

    def _columns(self, metric: str) -> tuple[str, ...]:
        """Return the columns of a metric's tables, the verdicts' among them where it is judged."""
        judged = any(metric in row.cells and row.cells[metric].verdict for row in self.rows)
        return (*COLUMNS, f"reference better by {self.smallest_effect:g}") if judged else COLUMNS

    def _texts(self, metric: str, setting: Setting | None) -> list[tuple[str, ...]]:
        shown = len(self._columns(metric))
        return [
            (row.variant, *row.cells[metric].texts(row.variant == self.reference))[:shown]
            for row in self.rows
            if metric in row.cells and setting in (None, Setting(row.dataset, row.shots))
        ]

    def _unit(self, setting: Setting | None) -> str:
        return "repeat" if setting is None or setting.dataset else "data set"


def _at(setting: Setting | None) -> str:
    if setting is None:
        return ""
    return f", {setting.dataset or 'over data sets'}, {setting.shots} shots"


def summarize_ablation(plan: AblationPlan, folder: Path, *, interrupted: bool, seconds: float) -> AblationSummary:
    """Return what a plan's ended trials amount to."""
    space = plan.space
    counts, reasons = tally(plan.finished)
    return AblationSummary(
        study=space.name,
        folder=folder,
        interrupted=interrupted,
        objective=space.objective.metric,
        reference=space.reference,
        smallest_effect=space.smallest_effect,
        counts=counts,
        rows=tuple(_rows(plan)),
        test_openings=plan.test_openings,
        seconds=seconds,
        reasons=reasons,
        notes=_notes(plan),
        ended=plan.ended,
        stopped=plan.stopped,
    )


def summarize_study(plan: StudyPlan, folder: Path, *, interrupted: bool, seconds: float) -> StudySummary:
    """Return what the ended trials of a plan of any kind amount to."""
    if isinstance(plan, AblationPlan):
        return summarize_ablation(plan, folder, interrupted=interrupted, seconds=seconds)
    return summarize(plan, folder, interrupted=interrupted, seconds=seconds)


def _notes(plan: AblationPlan) -> tuple[str, ...]:
    """Say which cells are missing in the table, other than by failing, and further looks at the test split."""
    missing = [f"{name} r{', r'.join(map(str, repeats))}" for name, repeats in plan.missing.items()]
    notes = [f"note: not run: {'; '.join(missing)}"] if missing else []
    if plan.test_openings > 1:
        again = "again for what the study was extended by, after it had been seen"
        notes.append(f"note: the test split was opened {plan.test_openings} times, {again}")
    return tuple(notes)


def _rows(plan: AblationPlan) -> Iterator[VariantRow]:
    space = plan.space
    found: dict[Setting, list[VariantRow]] = {}
    for setting in space.settings:
        measured = {variant: plan.values(variant, setting) for variant in space.variants}
        for variant, by_metric in measured.items():
            cells = {}
            for metric, values in by_metric.items():
                of_reference = measured[space.reference].get(metric, {})
                difference = None if variant == space.reference else paired(values, of_reference)
                cells[metric] = _cell(space, metric, values, difference)
            if cells:
                found.setdefault(setting, []).append(_row(plan, variant, setting, cells))
    for rows in found.values():
        yield from rows
    if len(space.datasets or ()) > 1:
        for shots in dict.fromkeys(setting.shots for setting in space.settings):
            at_shots = [row for setting, rows in found.items() if setting.shots == shots for row in rows]
            for variant in space.variants:
                if cells := _over_data_sets(space, [row for row in at_shots if row.variant == variant]):
                    yield _row(plan, variant, Setting(None, shots), cells)


def _row(plan: AblationPlan, variant: str, setting: Setting, cells: Mapping[str, VariantCell]) -> VariantRow:
    name = plan.space.cell_name(variant, setting)
    return VariantRow(variant, name, setting.dataset, setting.shots, plan.space.variants[variant], cells)


def _cell(space: AblationSpace, metric: str, values: Values, difference: Estimate | None) -> VariantCell:
    judged = None if difference is None else verdict(difference, *space.judged_by(metric))
    return VariantCell(values, estimate(list(values.values())), difference, judged)


def _over_data_sets(space: AblationSpace, rows: list[VariantRow]) -> dict[str, VariantCell]:
    """Return a variant's cells over its rows, one a data set: first the mean of the repeats, then over data sets."""
    cells = {}
    for metric in dict.fromkeys(metric for row in rows for metric in row.cells):
        by_data_set = {str(row.dataset): row.cells[metric] for row in rows if metric in row.cells}
        means = {dataset: statistics.fmean(cell.values.values()) for dataset, cell in by_data_set.items()}
        differences = [cell.difference.mean for cell in by_data_set.values() if cell.difference is not None]
        cells[metric] = _cell(space, metric, means, estimate(differences) if differences else None)
    return cells

"""What came out of an ablation: each variant's mean, and its paired difference to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ammpl.config import Scalar
from ammpl.study.ablation import AblationPlan, StudyPlan
from ammpl.study.statistics import Estimate, estimate, paired
from ammpl.study.summary import StudySummary, complete, markdown_table, summarize, tally


@dataclass(frozen=True)
class VariantCell:
    """A metric of a variant over its repeats.

    Attributes:
        values: by repeat.
        own: mean, sd and interval of the values.
        difference: of the values minus the reference's, over the repeats that both completed; None for the reference
            itself, or without such a repeat.
    """

    values: Mapping[int, float]
    own: Estimate
    difference: Estimate | None

    def texts(self) -> tuple[str, ...]:
        """Return what the table shows: n, mean, sd, difference with its interval."""
        difference = "–"
        if (pairs := self.difference) is not None:
            difference = f"{pairs.mean:+.4f}"
            if pairs.low is not None:
                difference += f" [{pairs.low:+.4f}, {pairs.high:+.4f}]"
            if pairs.n != self.own.n:
                difference += f" (n = {pairs.n})"
        sd = "–" if self.own.sd is None else f"{self.own.sd:.4f}"
        return str(self.own.n), f"{self.own.mean:.4f}", sd, difference


COLUMNS = ("variant", "n", "mean", "sd", "difference [95 % interval]")


@dataclass(frozen=True)
class VariantRow:
    """A variant: what it sets, and what was measured, by metric."""

    variant: str
    params: Mapping[str, Scalar]
    cells: Mapping[str, VariantCell]


@dataclass(frozen=True, kw_only=True)
class AblationSummary(StudySummary):
    """The end of an ablation.

    Attributes:
        reference: the variant that the others are compared with.
        rows: the variants with a complete trial, in the order of the file.
    """

    reference: str
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
                name = f"{row.variant.replace('+', '_')}/{metric}"
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
            f"**{metric}**, differences to `{self.reference}` paired by repeat\n\n"
            + markdown_table(COLUMNS, self._texts(metric))
            for metric in self.metrics
        )

    def tables(self) -> list[Table]:
        """Return the tables for the terminal, one a metric."""
        tables = []
        for metric in self.metrics:
            title = f"{self.study}: {metric}, paired with {self.reference}"
            table = Table(title=title, title_justify="left")
            table.add_column(COLUMNS[0], overflow="fold")
            for column in COLUMNS[1:-1]:
                table.add_column(column, justify="right", no_wrap=True)
            table.add_column(COLUMNS[-1], no_wrap=True)
            for texts in self._texts(metric):
                table.add_row(*map(Text, texts))  # brackets would be rich's markup
            tables.append(table)
        return tables

    def _texts(self, metric: str) -> list[tuple[str, ...]]:
        return [
            (row.variant + (" (ref.)" if row.variant == self.reference else ""), *row.cells[metric].texts())
            for row in self.rows
            if metric in row.cells
        ]


def summarize_ablation(plan: AblationPlan, folder: Path, *, interrupted: bool, seconds: float) -> AblationSummary:
    """Return what a plan's ended trials amount to."""
    space = plan.space
    counts, reasons = tally(plan.finished)
    measured = {variant: _values(plan, variant) for variant in space.variants}
    of_reference = measured[space.reference]
    rows = []
    for variant, by_metric in measured.items():
        cells = {}
        for metric, values in by_metric.items():
            pairs = None if variant == space.reference else paired(values, of_reference.get(metric, {}))
            cells[metric] = VariantCell(values, estimate(list(values.values())), pairs)
        if cells:
            rows.append(VariantRow(variant, space.variants[variant], cells))
    return AblationSummary(
        study=space.name,
        folder=folder,
        interrupted=interrupted,
        objective=space.objective.metric,
        reference=space.reference,
        counts=counts,
        rows=tuple(rows),
        test_openings=int("test" in counts),
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
    """Say which cells are missing in the table, other than by failing."""
    missing = [f"{variant} r{', r'.join(map(str, repeats))}" for variant, repeats in plan.missing.items()]
    return (f"note: not run: {'; '.join(missing)}",) if missing else ()


def _values(plan: AblationPlan, variant: str) -> dict[str, dict[int, float]]:
    """Return a variant's values by metric and repeat: the objective's, and what its tests measured."""
    objective = plan.space.objective.metric
    trained = complete(plan.outcomes("ablation", variant))
    found = {objective: {trial.repeat: outcome.metrics[objective] for trial, outcome in trained}}
    for trial, outcome in complete(plan.outcomes("test", variant)):
        for metric, value in sorted(outcome.metrics.items()):
            if metric.startswith("test/") and math.isfinite(value):
                found.setdefault(metric, {})[trial.repeat] = value
    return {metric: values for metric, values in found.items() if values}

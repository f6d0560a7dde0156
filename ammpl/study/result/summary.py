"""What came out of a study, in numbers and as tables; of a search, winner and baselines on the same repeats."""

from __future__ import annotations

import dataclasses
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ammpl.config import Scalar
from ammpl.escaping import markdown, markdown_code, rich_text
from ammpl.study.plan.search_plan import Plan
from ammpl.study.result.labels import params_text
from ammpl.study.trial import Outcome, State, Trial

MOST_COLUMNS = 3
"""Metrics beside the method that fit 80 columns."""
IDLE_KEEP_RATE = 0.99


@dataclass(frozen=True)
class Cell:
    """A metric over repeats.

    Attributes:
        values: one a repeat, in the order of the repeats.
        sd: standard deviation of a sample (ddof 1); None below two values.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """Summarise at least one value."""
        return cls(tuple(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    @property
    def n(self) -> int:
        """How many repeats."""
        return len(self.values)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.sd:.4f}" if self.sd is not None else "")


@dataclass(frozen=True)
class Row:
    """A candidate: a configuration of the search, confirmed on fresh repeats, or a baseline.

    Attributes:
        candidate: the search trial's number as text, or the baseline's name.
        tuned: whether its hyperparameters were searched in this study.
        cells: by metric: the objective on the fresh repeats' validation data, and what the test phase measured.
    """

    candidate: str
    method: str
    tuned: bool
    params: Mapping[str, Scalar]
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        """How the table calls it."""
        if self.tuned:
            return f"{self.method}, trial {self.candidate} (winner)"
        return self.method if self.method == "zero_shot" else f"{self.method} (untuned)"


@dataclass(frozen=True, kw_only=True)
class StudySummary(ABC):
    """The end of a study of any kind.

    Attributes:
        study: its name.
        folder: where everything is.
        interrupted: whether it was ended before its time; it can go on.
        on_request: whether that was by ``tune.py stop``, which lets running trials end.
        objective: the metric that is optimised or compared.
        counts: trials by phase and state.
        test_openings: how often the study looked at the test split: 1, or 0 if it did not or ended before; one more
            for each time that it was extended and looked again.
        seconds: wall time of the trials' phase.
        reasons: why trials FAILED or were LOST, with how many each.
        notes: what a reader of the tables must know.
        ended: which budget was used up before all trials of the search or ablation had begun, None if none was.
        stopped: why the study ended itself before its time, None if it did not.
        mlflow: what opens the study in MLflow, a command or an address; None without tracking.
        problems: what views of the study could not do.
        errors: what of the study itself could not be kept, with the fix.
    """

    study: str
    folder: Path
    interrupted: bool
    objective: str
    counts: Mapping[str, Mapping[str, int]]
    test_openings: int
    seconds: float
    reasons: Mapping[str, int]
    notes: tuple[str, ...] = ()
    ended: str | None = None
    stopped: str | None = None
    on_request: bool = False
    mlflow: str | None = None
    problems: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    @abstractmethod
    def has_result(self) -> bool:
        """Whether anything completed that the study asked for."""

    @property
    @abstractmethod
    def unshown(self) -> str | None:
        """The result in a line where it is not in the tables."""

    @abstractmethod
    def flat_metrics(self) -> dict[str, float]:
        """Return every figure of the tables under a name of its own."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """Return the tables for the terminal."""

    @abstractmethod
    def _markdown_tables(self) -> str:
        """Return the tables in Markdown, nothing where there is none."""

    def markdown(self) -> str:
        """Return the tables and what must be known with them, in Markdown."""
        return (self._markdown_tables() + "".join(f"\n{markdown(remark)}\n" for remark in self.remarks)).lstrip("\n")

    @property
    def remarks(self) -> list[str]:
        """What a reader of the tables must know, and why the search, or the study, ended before its time."""
        reasons = [f"{word}: {why}" for word, why in (("ended", self.ended), ("stopped", self.stopped)) if why]
        return [*self.notes, *reasons]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON data."""
        data = dataclasses.asdict(self)
        del data["mlflow"], data["problems"], data["errors"]
        return {**data, "folder": self.folder.name}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, names: bool = False) -> str:
    """Return a table of plain texts in Markdown; with ``names`` its first column is set as code."""
    first = markdown_code if names else markdown
    shown = [[first(name), *map(markdown, texts)] for name, *texts in rows]
    lines = [[*map(markdown, header)], ["---"] * len(header), *shown]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Summary(StudySummary):
    """The end of a search.

    Attributes:
        best: the search's best trial (number, value, params): a lucky draw until confirmed; None if none completed.
        winner: the candidate with the best mean on fresh repeats, None if there is none.
        rows: the winner and the baselines.
        finalists: all confirmed configurations of the search, the winner among them.
        front: with two objectives, the configurations that none beats in both, by the first; else empty.
        objectives: both of them, else empty.
    """

    best: Mapping[str, Any] | None
    winner: str | None
    rows: tuple[Row, ...]
    finalists: tuple[Row, ...]
    front: tuple[Row, ...] = ()
    objectives: tuple[str, ...] = ()

    @property
    def has_result(self) -> bool:
        """Whether a trial of the search completed."""
        return self.best is not None

    @property
    def unshown(self) -> str | None:
        """The best trial where no winner is in the table."""
        if self.best is None:
            return "no trial of the search completed"
        if self.winner is not None or self.front:
            return None
        params = ", ".join(f"{name}={value!r}" for name, value in self.best["params"].items())
        value = f"{self.objective} {self.best['value']:.4f}"
        return f"best, unconfirmed: trial {self.best['number']}, {value}: {params}"

    @property
    def metrics(self) -> list[str]:
        """The metrics that the table shows: the objective, then those of the test phase but its losses."""
        found = {metric for row in self.rows for metric in row.cells if not metric.endswith("loss")}
        found |= {self.objective} & {metric for row in self.rows for metric in row.cells}
        return [m for m in (self.objective,) if m in found] + sorted(found - {self.objective})

    def flat_metrics(self) -> dict[str, float]:
        """Return every figure of the rows under one name: ``winner/test/accuracy/mean``."""
        flat: dict[str, float] = {}
        for row in self.rows:
            name = "winner" if row.tuned else row.candidate
            for metric, cell in row.cells.items():
                flat[f"{name}/{metric}/mean"] = cell.mean
                flat[f"{name}/{metric}/n"] = float(cell.n)
                if cell.sd is not None:
                    flat[f"{name}/{metric}/sd"] = cell.sd
        for row in self.front:
            flat.update({f"front/{row.candidate}/{metric}/mean": cell.mean for metric, cell in row.cells.items()})
        return flat

    def _markdown_tables(self) -> str:
        if self.front:
            return markdown_table(["trial", "n", *self.objectives, "parameters"], self._front_texts())
        return markdown_table(["method", "n", *self.metrics], self._texts()) if self.rows else ""

    def tables(self) -> list[Table]:
        """Return the table for the terminal, where it has rows: a row a method, or a column with many metrics."""
        if self.front:
            title = rich_text(f"{self.study}: the Pareto front, mean ± sd over n repeats", "table.title")
            table = Table(title=title, title_justify="left")
            for name in ("trial", "n", *self.objectives, "parameters"):
                table.add_column(rich_text(name))
            for line in self._front_texts():
                table.add_row(*map(rich_text, line))
            return [table]
        if not self.rows:
            return []
        lines = [["method", "n", *self.metrics], *self._texts()]
        title = rich_text(f"{self.study}: mean ± sd over n fresh repeats", "table.title")
        table = Table(title=title, title_justify="left")
        if len(self.metrics) > MOST_COLUMNS:
            lines = [list(line) for line in zip(*lines, strict=True)]
            table.box = SIMPLE_HEAD
        for column, name in enumerate(lines[0]):
            header = name.replace(" (", "\n(") if table.box is SIMPLE_HEAD else name
            table.add_column(rich_text(header), justify="right" if column else "left", no_wrap=True)
        for line in lines[1:]:
            table.add_row(*map(rich_text, line))
        return [table]

    def _texts(self) -> Iterable[list[str]]:
        for row in self.rows:
            n = row.cells[self.objective].n
            yield [row.label, str(n), *(self._text(row.cells.get(metric), n) for metric in self.metrics)]

    def _front_texts(self) -> Iterable[list[str]]:
        for row in self.front:
            cells = [row.cells[metric] for metric in self.objectives]
            yield [row.candidate, str(cells[0].n), *map(str, cells), params_text(row.params)]

    def _text(self, cell: Cell | None, n: int) -> str:
        if cell is None:
            return "–"
        return str(cell) if cell.n == n else f"{cell} (n = {cell.n})"


def summarize(plan: Plan, folder: Path, *, interrupted: bool, seconds: float) -> Summary:
    """Return what a plan's ended trials amount to."""
    space = plan.space
    counts, reasons = tally(plan.finished)
    finalists = dict.fromkeys(t.candidate for t, _ in plan.finished if t.phase == "confirm" and t.params)
    baselines = space.confirm.baselines if space.confirm else ()
    shown = [c for c in ((plan.winner, *baselines) if plan.winner else baselines) if _confirmed(plan, c)]
    return Summary(
        study=space.name,
        folder=folder,
        interrupted=interrupted,
        objective=space.objective.metric,
        counts=counts,
        best=_best(plan),
        winner=plan.winner,
        rows=tuple(_row(plan, candidate) for candidate in shown),
        finalists=tuple(_row(plan, candidate) for candidate in finalists if _confirmed(plan, candidate)),
        test_openings=plan.test_openings,
        seconds=seconds,
        reasons=reasons,
        ended=plan.ended,
        stopped=plan.stopped,
        notes=_notes(plan),
        front=_front(plan),
        objectives=() if space.second_objective is None else (space.objective.metric, space.second_objective.metric),
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    """Say what the rows do not show: trials of another space, further looks at the test split, idle image prompts."""
    notes = [
        f"note: version {version}'s space can give {known} of the {of} configurations before it: its sampler "
        f"({plan.space.sampler.name}) begins with these, and the others are no candidates any more"
        for version, known, of in plan.knowledge
    ]
    if plan.test_openings > 1:
        tested = dict.fromkeys(trial.candidate for trial, _ in plan.finished if trial.phase == "test" and trial.params)
        listed = ", ".join(f"trial {candidate}" for candidate in tested)
        notes.append(
            f"note: the test split was opened {plan.test_openings} times ({listed}): the study was extended after it "
            "had been seen, so the last result is no untouched test"
        )
    if plan.winner is None:
        return tuple(notes)
    rates = [o.metrics.get("mask/keep_rate", 0.0) for _, o in complete(plan.outcomes("confirm", plan.winner))]
    idle = sum(rate > IDLE_KEEP_RATE for rate in rates)
    if idle:
        kept = f"keep over {IDLE_KEEP_RATE:.0%} of the patches"
        notes.append(
            f"note: in {idle} of {len(rates)} repeats the winner's masks {kept} at evaluation: its image prompt is "
            "idle there"
        )
    return tuple(notes)


def tally(finished: Iterable[tuple[Trial, Outcome]]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Count ended trials by phase and state, and the reasons of those that FAILED or were LOST."""
    counts: dict[str, dict[str, int]] = {}
    reasons: dict[str, int] = {}
    for trial, outcome in finished:
        states = counts.setdefault(trial.phase, {})
        states[str(outcome.state)] = states.get(str(outcome.state), 0) + 1
        if outcome.reason:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    return counts, reasons


def _confirmed(plan: Plan, candidate: str) -> bool:
    return any(outcome.state is State.COMPLETE for _, outcome in plan.outcomes("confirm", candidate))


def _row(plan: Plan, candidate: str) -> Row:
    objective = plan.space.objective.metric
    confirmed = complete(plan.outcomes("confirm", candidate))
    tested = complete(plan.outcomes("test", candidate))
    cells = {objective: Cell.of([outcome.metrics[objective] for _, outcome in confirmed])}
    for metric in sorted(
        {metric for _, outcome in tested for metric in outcome.metrics if metric.startswith("test/")}
    ):
        cells[metric] = Cell.of([o.metrics[metric] for _, o in tested if metric in o.metrics])
    trial = confirmed[0][0]
    return Row(candidate, trial.config.method, bool(trial.params), trial.params, cells)


def complete(outcomes: Iterable[tuple[Trial, Outcome]]) -> list[tuple[Trial, Outcome]]:
    """Return those that completed."""
    return [(trial, outcome) for trial, outcome in outcomes if outcome.state is State.COMPLETE]


def _front(plan: Plan) -> tuple[Row, ...]:
    """Return the configurations with all repeats complete that no other one beats; those with equal means stay."""
    second = plan.space.second_objective
    if second is None:
        return ()
    objectives = (plan.space.objective, second)
    rows: dict[str, Row] = {}
    for trial, _ in plan.best(len(plan.finished)):
        ended = complete(plan.outcomes("search", trial.candidate))
        cells = {o.metric: Cell.of([outcome.metrics[o.metric] for _, outcome in ended]) for o in objectives}
        rows[trial.candidate] = Row(trial.candidate, trial.config.method, True, trial.params, cells)
    signs = [1 if o.direction == "maximize" else -1 for o in objectives]
    points = {
        candidate: tuple(sign * row.cells[o.metric].mean for sign, o in zip(signs, objectives, strict=True))
        for candidate, row in rows.items()
    }

    def is_beaten(point: tuple[float, ...]) -> bool:
        return any(p != point and all(x >= y for x, y in zip(p, point, strict=True)) for p in points.values())

    return tuple(row for candidate, row in rows.items() if not is_beaten(points[candidate]))


def _best(plan: Plan) -> dict[str, Any] | None:
    best = plan.best(1)
    if not best:
        return None
    [(trial, value)] = best
    return {"number": trial.number, "value": value, "params": dict(trial.params)}

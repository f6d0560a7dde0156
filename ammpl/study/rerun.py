"""A finished study run again: which space it had, and whether the numbers came out the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from ammpl.errors import UserError, did_you_mean, reason_of
from ammpl.escaping import rich_text
from ammpl.study.plan.replay import check_study
from ammpl.study.record.event_log import FILE, read_history, space_file
from ammpl.study.result.statistics import estimate
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import StudySpace, read_space
from ammpl.study.trial import State

Agreement = Literal["identical", "within noise", "different"]

Cell = tuple[str, int | None]  # a metric and its step, or a fact such as the trial's state and no step


@dataclass(frozen=True)
class Difference:
    """A trial of both studies.

    Attributes:
        key: of the trial.
        cells: how many values were compared: final value, state, configuration, each reported metric at each step.
        texts: one for each fact or metric that differs, and by how much at most; empty when all are identical.
    """

    key: str
    cells: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Reproduced:
    """A cell of both studies: the trials that differ by their repeat alone.

    Attributes:
        name: of the trials, without the repeat.
        n: how many trials.
        old: mean of the final values; None where a trial has none.
        new: likewise.
        agreement: identical to the last bit in all that is compared; within noise where every trial ended as then and
            the new mean lies in the old one's 95 % t-interval over the repeats; different otherwise, and always where
            a single trial leaves no interval.
    """

    name: str
    n: int
    old: float | None
    new: float | None
    agreement: Agreement


@dataclass(frozen=True)
class Comparison:
    """Two studies, trial by trial and cell by cell."""

    rows: tuple[Difference, ...]
    cells: tuple[Reproduced, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether every value of every trial is the same, to the last bit."""
        return not any(row.texts for row in self.rows)

    @property
    def verdict(self) -> str:
        """The result in a line."""
        cells, different = sum(row.cells for row in self.rows), [row.key for row in self.rows if row.texts]
        if not different:
            return f"identical: all {len(self.rows)} trials, {cells} values"
        kinds = [cell.agreement for cell in self.cells]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        first = f"different: {len(different)} of {len(self.rows)} trials, the first is {different[0]}"
        return first + (f"; cells: {counts}" if counts else "")

    def cell_table(self) -> Table:
        """Return the cells for the terminal."""
        table = Table(title="cells: mean of the final values", title_justify="left")
        table.add_column("cell", overflow="fold")
        for name in ("trials", "old", "new"):
            table.add_column(name, justify="right")
        table.add_column("reproduced")
        for cell in self.cells:
            means = ["–" if value is None else f"{value:.4f}" for value in (cell.old, cell.new)]
            table.add_row(rich_text(cell.name), str(cell.n), *means, cell.agreement)
        return table

    def table(self) -> Table:
        """Return the trials for the terminal."""
        table = Table(title="old against new", title_justify="left")
        table.add_column("trial", overflow="fold")
        table.add_column("values", justify="right")
        table.add_column("new - old", overflow="fold")
        for row in self.rows:
            table.add_row(rich_text(row.key), str(row.cells), rich_text("\n".join(row.texts) or "identical"))
        return table


def finished_versions(folder: Path) -> list[StudySpace]:
    """Return the spaces that repeat a finished study, one after the other: of its begin, and of each extension.

    A budget of time or GPU-hours, used up sooner or later each time, becomes the number of trials that had begun.

    Raises:
        UserError: the folder is not a study's, the study was interrupted, or its space cannot be read; or it was
            extended before it had ended, at a point where no other study can be stopped.
    """
    check_study(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    if not isinstance(summary, dict) or summary.get("interrupted") is not False:
        raise UserError(
            str(folder),
            "did not end: nothing to compare a rerun with",
            fix=f"go on with it: python tune.py resume {folder}",
        )
    _read(folder)
    spaces: list[StudySpace] = []
    begun: set[Any] = set()
    lines = [line for line in read_history(folder / FILE).lines if line.event["event"] != "session"]
    for last, line in zip([None, *lines], [*lines, None], strict=True):
        event = line.event if line else {"event": "extended"}  # and at the end of the last version
        if event["event"] == "started" and event["phase"] in ("search", "ablation"):
            begun.add(event["key"] if event["number"] is None else event["number"])  # a number has several repeats
        if event["event"] != "extended":
            continue
        if line and (last is None or last.event["event"] != "ended"):
            fix = "repeat its trials one by one: python tune.py rerun-trial"
            raise UserError(str(folder), "was extended before it had ended, which a rerun cannot repeat", fix=fix)
        space = read_space(space_file(folder, len(spaces) + 1))
        if space.budget.time is not None or space.budget.gpu_hours is not None:
            limits = {"trials": len(begun), "time": None, "gpu_hours": None}
            space = space.model_copy(update={"budget": space.budget.model_copy(update=limits)})
        spaces.append(space)
    return spaces


def chosen(texts: Sequence[str], folder: Path) -> list[str]:
    """Return what ``variant=NAME,NAME`` and ``state=failed,lost`` ask for: variants, and trials of an ablation.

    Args:
        texts: each adds to what the others name.
        folder: of the study whose trials' states count.

    Raises:
        UserError: another text, no such state, or no trial in it.
    """
    names: list[str] = []
    for text in texts:
        kind, _, listed = (part.strip() for part in text.partition("="))
        if kind not in ("variant", "state") or not listed:
            raise UserError("--only", "must be variant=NAME or state=failed", got=text, fix="--only variant=learned")
        values = [value.strip() for value in listed.split(",")]
        names += values if kind == "variant" else _in_state(values, folder)
    return names


def _in_state(values: Sequence[str], folder: Path) -> list[str]:
    known = {state.lower(): state for state in (State.COMPLETE, State.FAILED, State.LOST)}
    for value in values:
        if value.lower() not in known:
            raise UserError(
                "--only", "no such state of an ablation's trials", got=value, fix=did_you_mean(value, known)
            )
    wanted = {known[value.lower()] for value in values}
    ended = {key: facts["state", None] for key, facts in _read(folder).items()}
    names = [key.removeprefix("ablation-") for key in ended if key.startswith("ablation-") and ended[key] in wanted]
    if not names:
        raise UserError("--only", f"no trial of an ablation in {folder} ended so", got=f"state={','.join(values)}")
    return names


def only(space: StudySpace, names: Sequence[str]) -> StudySpace:
    """Return an ablation of some variants, or single trials such as ``learned-r3``, only; of all if none is named.

    Raises:
        UserError: another kind of study, or no such variant or trial.
    """
    if not names:
        return space
    if not isinstance(space, AblationSpace):
        raise UserError(
            "--only", "chooses variants, which a search has not", fix="rerun-trial runs one trial of it again"
        )
    trials = {space.trial_name(cell) for cell in space.cells()}
    for name in names:
        if name not in space.variants and name not in trials:
            raise UserError("--only", "no such variant", got=name, fix=did_you_mean(name, space.variants))
    return space.model_copy(update={"only": tuple(dict.fromkeys(names))})


def compare(old: Path, new: Path, *, part: bool = False) -> Comparison:
    """Compare two study folders by the keys of their trials, in the order of the old one's ends.

    Args:
        part: whether the new study ran a part of the old one: only that is compared.

    What is compared: state, configuration, the final value, and each validation or test metric at each step. Time,
    and training's own figures, are not results. NaN equals NaN.

    Raises:
        UserError: a folder lacks its tables.
    """
    old_cells, new_cells = _read(old), _read(new)
    rows = []
    for key in dict.fromkeys(key for key in [*old_cells, *new_cells] if key in new_cells or not part):
        if key not in new_cells or key not in old_cells:
            missing = "only in the old study" if key in old_cells else "only in the new study"
            rows.append(Difference(key, len(old_cells.get(key) or new_cells[key]), (missing,)))
        else:
            rows.append(_difference(key, old_cells[key], new_cells[key]))
    return Comparison(tuple(rows), tuple(_reproduced(rows, old_cells, new_cells)))


def _reproduced(
    rows: Sequence[Difference], old: Mapping[str, Mapping[Cell, Any]], new: Mapping[str, Mapping[Cell, Any]]
) -> list[Reproduced]:
    cells: dict[str, list[Difference]] = {}
    for row in rows:
        cells.setdefault(re.sub(r"-r[0-9]+$", "", row.key), []).append(row)
    found = []
    for name, trials in cells.items():
        before, after = ([_fact(study, trial.key, "value") for trial in trials] for study in (old, new))
        as_then = all(_fact(old, trial.key, "state") == _fact(new, trial.key, "state") for trial in trials)
        agreement: Agreement = "different"
        if not any(trial.texts for trial in trials):
            agreement = "identical"
        elif as_then and _are_finite(*before, *after) and len(before) > 1:
            then, now = estimate(before), estimate(after)
            if then.low is not None and then.high is not None and then.low <= now.mean <= then.high:
                agreement = "within noise"
        found.append(Reproduced(name, len(trials), _mean(before), _mean(after), agreement))
    return found


def _fact(study: Mapping[str, Mapping[Cell, Any]], key: str, name: str) -> Any:
    return study.get(key, {}).get((name, None))


def _mean(values: Sequence[Any]) -> float | None:
    return estimate(values).mean if _are_finite(*values) else None


def _difference(key: str, old: Mapping[Cell, Any], new: Mapping[Cell, Any]) -> Difference:
    by_name: dict[str, list[tuple[int | None, Any, Any]]] = {}
    cells = dict.fromkeys([*old, *new])
    for name, step in cells:
        before, after = old.get((name, step)), new.get((name, step))
        if not _same(before, after):
            by_name.setdefault(name, []).append((step, before, after))
    return Difference(key, len(cells), tuple(_text(name, found) for name, found in by_name.items()))


def _text(name: str, found: list[tuple[int | None, Any, Any]]) -> str:
    """Describe where a metric differs: by how much at most, and at which step."""
    numbers = [(after - before, step) for step, before, after in found if _are_finite(before, after)]
    if not numbers:
        step, before, after = found[0]
        at = "" if step is None else f" at step {step}"
        return f"{name}{at}: {_shown(before)}, now {_shown(after)}"
    most, step = max(numbers, key=lambda pair: abs(pair[0]))
    at = "" if step is None else f" at step {step}"
    return f"{name}: {most:+.3g}{at}" + (f", {len(found)} steps differ" if len(found) > 1 else "")


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float) and math.isnan(before):
        return math.isnan(after)
    return bool(before == after)


def _are_finite(*values: Any) -> bool:
    return all(isinstance(value, float) and math.isfinite(value) for value in values)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value)[:12] if isinstance(value, str) else f"{value:.4g}"


def _read(folder: Path) -> dict[str, dict[Cell, Any]]:
    """Return what is compared of each trial, by key."""
    trials = _table(_trials_file(folder), ["key", "state", "config_sha256", "value"])
    curves = _table(folder / "curves" / "curves.parquet", ["key", "metric", "step", "value"])
    cells: dict[str, dict[Cell, Any]] = {
        row["key"]: {
            ("state", None): row["state"],
            ("config", None): row["config_sha256"],
            ("value", None): row["value"],
        }
        for row in trials
    }
    for row in curves:
        if row["metric"].startswith(("validation/", "test/")) and row["key"] in cells:
            cells[row["key"]][row["metric"], row["step"]] = row["value"]
    return cells


def _trials_file(folder: Path) -> Path:
    return folder / "trials" / "trials.parquet"


def _table(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        fix = "name the folder of a finished study"
        raise UserError(str(path), f"cannot be read ({reason_of(error)})", fix=fix) from None
    return rows

"""Numbers that others have published, beside ours: read from the literature, not run here."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from ammpl.report.results import StudyResult
from ammpl.report.statistics import summarize
from ammpl.report.tables import Column, Table, Value

_TASKS = {"pseudo_new": "base_to_new"}  # tuned on pseudo-new classes, tested on the new ones


def published_tables(study: StudyResult) -> list[Table]:
    """Return, for each data set and number of shots of the study that has published numbers, those beside ours."""
    task = str(next((trial.config["data.task"] for trial in study.trials), "all"))
    task = _TASKS.get(task, task)
    return [
        table
        for data_set in study.data_sets
        for shots in study.shots or sorted({trial.setting[1] for trial in study.trials})
        if (table := _table(study, task, data_set, shots)) is not None
    ]


def about() -> str:
    """Return what all of the published numbers have in common."""
    return str(_published()["about"])


def _published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (resources.files("ammpl.report") / "published.json").read_text(encoding="utf-8")
    )
    return found


def _table(study: StudyResult, task: str, data_set: str, shots: int) -> Table | None:
    theirs = [
        (method, values, f"{table['note']}. {table['source']}")
        for table in _published()["tables"]
        if table["task"] == task and table["shots"] in (shots, None)
        for method, values in table["values"].get(data_set, {}).items()
    ]
    if not theirs:
        return None
    metrics = list(dict.fromkeys(metric for _, values, _ in theirs for metric in values))
    backbone = str(next((trial.config["backbone.name"] for trial in study.trials), ""))
    ours: list[tuple[Value, ...]] = []
    for row in study.rows:
        measured = [row.values(metric, shots) for metric in metrics]
        means = [
            100 * summarize({instance: v for instance, v in values.items() if instance[0] == data_set}).mean
            if any(instance[0] == data_set for instance in values)
            else None
            for values in measured
        ]
        if any(mean is not None for mean in means):
            ours.append((f"{row.label}, here", *means, f"this study, {backbone}"))
    rows = [
        (f"{method}, published", *(values.get(metric) for metric in metrics), source)
        for method, values, source in theirs
    ]
    return Table(
        f"published-{task}-{data_set}-{shots}shots",
        f"{data_set}, {task}, {shots} shots: published numbers, not run here, in per cent",
        (Column("method"), *(Column(metric, ".2f") for metric in metrics), Column("source")),
        (*ours, *rows),
        "Published rows are ViT-B/16; compare only where backbone, split files and seeds agree. Published H "
        "is that of the "
        "mean accuracies.",
        strong=tuple(range(len(ours))),
    )

"""What the page of a study's run in MLflow says, in Markdown, and by which tags and figures runs are found."""

from __future__ import annotations

import math
import re
from typing import Any

from ammpl.escaping import markdown, markdown_code
from ammpl.study.result.ablation_summary import AblationSummary
from ammpl.study.result.labels import symbol, symbols_text, value_text
from ammpl.study.result.summary import StudySummary, Summary, markdown_table
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import duration_text
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import State


def question(space: StudySpace) -> str:
    """Return the question, and what it is asked of."""
    paragraphs = re.split(r"\n\s*\n", space.description or "")
    return "\n\n".join(markdown(text) for text in (*paragraphs, _setting(space)) if text.strip())


def details(space: StudySpace) -> str:
    """Return what is searched or compared to answer it."""
    if isinstance(space, AblationSpace):
        title = f"Compared with the reference, {markdown_code(space.reference)}:"
        rows = [[name, symbols_text(values) or "as the reference"] for name, values in space.variants.items()]
        table = markdown_table(["variant", "differs by"], rows, names=True)
    else:
        title = "Searched:"
        lines = {name: _drawn(parameter.written()) for name, parameter in space.parameters.items()}
        rows = [[name, symbol(name), values] for name, values in lines.items()]
        table = markdown_table(["parameter", "in names", "values"], rows, names=True)
    return f"{title}\n\n{table}"


def result(summary: StudySummary) -> str:
    """Return the result in a line, which begins with what is looked for; nothing where there is none.

    Of an ablation, the verdicts on its objective, over data sets where there are several; none at several shots, which
    have each their own.
    """
    if isinstance(summary, AblationSummary):
        rows = [row for row in summary.rows if row.dataset is None] or summary.rows
        judged: dict[str, list[str]] = {}
        for row in rows:
            if (cell := row.cells.get(summary.objective)) and cell.verdict:
                judged.setdefault(str(cell.verdict), []).append(row.variant)
        if not judged or len({(row.dataset, row.shots) for row in rows}) > 1:
            return ""
        verdicts = "; ".join(f"{verdict}: {', '.join(judged[verdict])}" for verdict in sorted(judged))
        claim = f"{summary.reference} is better by {summary.smallest_effect:g} in {summary.objective}"
        return f"{verdicts} (whether {claim})"
    if not isinstance(summary, Summary) or summary.winner is None:
        return ""
    tested = [metric for metric in summary.metrics if metric in ("test/accuracy", "test/harmonic_mean")]
    metric = tested[0] if tested else summary.objective
    first, *others = [f"{row.cells[metric]} of {row.label}" for row in summary.rows if metric in row.cells]
    return f"{metric} {'; '.join([first, *others])}; n = {summary.rows[0].cells[metric].n}"


def closing(summary: StudySummary) -> str:
    """Return what came out, and how the trials ended."""
    lines = []
    if isinstance(summary, Summary) and summary.winner is not None:
        params = markdown(symbols_text(summary.rows[0].params))
        lines.append(f"Winner: **trial {markdown(summary.winner)}**, {params}.")
    if summary.unshown:
        lines.append(f"{markdown(summary.unshown)}.")
    states = [state for state in State if any(str(state) in counts for counts in summary.counts.values())]
    rows = [[phase, *(str(counts.get(str(state), 0)) for state in states)] for phase, counts in summary.counts.items()]
    ended = markdown_table(["trials", *map(str, states)], rows) if rows else ""
    opened = {0: "not opened", 1: "opened once"}.get(summary.test_openings, f"opened {summary.test_openings} times")
    time = f"{duration_text(summary.seconds) or '0 s'}; the test split was {opened}."
    return "\n\n".join(part.strip() for part in (*lines, summary.markdown(), ended, time) if part.strip())


def tags(space: StudySpace) -> dict[str, str]:
    """Return what studies are filtered by."""
    data, backbone = space.base.data, space.base.backbone
    found = {
        "method": space.method,
        "kind": space.kind,
        "dataset": data.name,
        "shots": str(data.shots),
        "backbone": backbone.name,
        "seed": str(space.seed),
    }
    if isinstance(space, AblationSpace):
        return {**found, "reference": space.reference}
    return {**found, "sampler": space.sampler.name, "pruner": space.pruner.name}


def figures(summary: StudySummary) -> dict[str, float]:
    """Return what studies are compared by: results, trials by state, the best value of the search, time."""
    found = {name: value for name, value in summary.flat_metrics().items() if math.isfinite(value)}
    for counts in summary.counts.values():
        for state, count in counts.items():
            name = f"trials/{state.lower()}"
            found[name] = found.get(name, 0.0) + count
    if isinstance(summary, Summary) and summary.best is not None:
        found[f"search/best/{summary.objective}"] = float(summary.best["value"])
    return {**found, "seconds": summary.seconds, "test_openings": float(summary.test_openings)}


def _setting(space: StudySpace) -> str:
    data, backbone = space.base.data, space.base.backbone
    parts = [f"{space.method} on {data.name}", f"{data.shots} shots", backbone.name]
    if isinstance(space, AblationSpace):
        parts.append(f"repeats {', '.join(map(str, space.repeats))}")
    else:
        parts.append(f"sampler {space.sampler.name}, pruner {space.pruner.name}")
        parts.append(f"{space.objective.direction} {space.objective.metric}")
    if space.budget.trials is not None:
        parts.append(f"{space.budget.trials} trials")
    if space.budget.time is not None:
        parts.append(f"at most {space.budget.time}")
    return " · ".join(parts)


def _drawn(written: dict[str, Any]) -> str:
    """Describe a parameter's values: ``0.1 … 2, log``."""
    if "choices" in written:
        text = ", ".join(value_text(choice) for choice in written["choices"])
    else:
        step = f", step {value_text(written['step'])}" if written.get("step") not in (None, 1) else ""
        text = f"{value_text(written['low'])} … {value_text(written['high'])}{step}" + ", log" * bool(
            written.get("log")
        )
    when = [f"{name} is {value}" for name, value in written.get("when", {}).items()]
    return text + (f", where {' and '.join(when)}" if when else "")

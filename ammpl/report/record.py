"""What a study cost, what it ran on, and how to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ammpl.report.results import StudyResult, TrialResult
from ammpl.report.tables import Column, Table, Value
from ammpl.study.space.budget import duration_text
from ammpl.study.trial import State


def cost_table(study: StudyResult) -> Table:
    """Return trials, steps and time by phase, and what pruning saved."""
    rows: list[tuple[Value, ...]] = []
    phases = dict.fromkeys(trial.phase for trial in study.trials)
    for phase in phases:
        trials = study.of_phase(phase)
        states = Counter(str(trial.state or "not ended") for trial in trials)
        done, saved = _steps(trials)
        answered = sum(trial.duplicate_of is not None for trial in trials)
        listed = ", ".join(f"{count} {state}" for state, count in states.items())
        seconds = sum(trial.seconds for trial in trials)
        rows.append((phase, len(trials), listed, answered, done, saved, seconds / 60))
    return Table(
        "cost",
        f"Cost: {duration_text(study.seconds) or '0 s'} of wall time" + _devices(study),
        (
            Column("phase"),
            Column("trials", "d"),
            Column("states"),
            Column("from records", "d"),
            Column("steps done", "d"),
            Column("steps saved by pruning", "d"),
            Column("worker minutes", ".1f"),
        ),
        tuple(rows),
        "Steps are the optimiser's. Saved: what pruned trials had left, by the length of the longest trial "
        "of the phase. "
        "Worker minutes add up trials that ran side by side; a worker has its share of the GPUs named above.",
    )


def environment_table(study: StudyResult) -> Table:
    """Return versions, machine, code and command of the study's first session."""
    found: Mapping[str, Any] = study.environments[0] if study.environments else {}
    code = found.get("code", {})
    commit = str(code.get("commit", "unknown")) + (", changed since" if code.get("modified") else "")
    ray = ", ".join(f"{name} {amount:g}" for name, amount in found.get("ray", {}).items() if name != "memory")
    rows: list[tuple[Value, ...]] = [
        ("command", " ".join(map(str, found.get("command", ["unknown"])))),
        ("code", commit),
        (
            "machine",
            f"{found.get('processor', 'unknown')}, {found.get('cpus', '?')} CPUs, {found.get('platform', '')}",
        ),
        ("GPUs", ", ".join(found.get("gpus", [])) or "none"),
        ("Ray had", ray),
        ("Python", str(found.get("python", "unknown"))),
        ("packages", ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items())),
    ]
    if len(study.environments) > 1:
        rows.append(("sessions", f"{len(study.environments)}; this is the first, environment-N.json has the others"))
    return Table("environment", "Environment", (Column("what"), Column("it was")), tuple(rows))


def settings_table(study: StudyResult) -> Table:
    """Return the resolved settings that all trials share, as the study's file has them."""
    rows = [(name, _shown(value)) for name, value in study.space.resolved()["fixed"].items()]
    return Table("settings", "Settings that all trials share", (Column("name"), Column("value")), tuple(rows))


def _steps(trials: list[TrialResult]) -> tuple[int, int]:
    ran = [trial for trial in trials if trial.duplicate_of is None]
    longest = max((trial.step or 0 for trial in ran), default=0)
    saved = sum(longest - (trial.step or 0) for trial in trials if trial.state is State.PRUNED)
    return sum(trial.step or 0 for trial in ran), saved


def _devices(study: StudyResult) -> str:
    gpus = study.environments[0].get("gpus", []) if study.environments else []
    if not gpus:
        return ", no GPU"
    return f", {len(gpus)} GPU(s): at most {len(gpus) * study.seconds / 3600:.2f} GPU-hours"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

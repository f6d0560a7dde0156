"""How far a study is, from its folder alone."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ammpl.errors import UserError
from ammpl.study.plan.replay import beyond_log, check_study
from ammpl.study.record.event_log import FILE, Event, History, read_history, space_file
from ammpl.study.record.folder import is_asked_to_stop, is_locked
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import duration_text
from ammpl.study.space.space_file import read_space
from ammpl.study.trial import State
from ammpl.study.views.remote import brought_here, own_address, run_by

WATCH_SECONDS = 2.0


def status(folder: Path) -> list[str]:
    """Return lines for people: whether the study runs, its trials by phase and state, the best one, its time.

    Raises:
        UserError: the folder is no study's, or its log cannot be read.
    """
    check_study(folder)
    history = read_history(folder / FILE)
    begun = {line.event["key"]: line.event for line in history.told if line.event["event"] == "started"}
    states_of, counts = history.states, dict[str, Counter[str]]()
    for key, event in begun.items():
        state = states_of.get(key)
        counts.setdefault(event["phase"], Counter())[str(state) if state else "begun, not ended"] += 1
    lines = [f"{folder}: {_condition(folder, history)}"]
    for phase, states in counts.items():
        listed = ", ".join(f"{count} {state}" for state, count in states.items())
        lines.append(f"{phase}: {states.total()} trials: {listed}")
    for line in history.extensions:
        event = line.event
        at = datetime.fromisoformat(event["time"])
        file = space_file(folder, event["version"])
        lines.append(f"version {event['version']}: extended {at:%Y-%m-%d %H:%M} UTC, {_budget(file)} ({file.name})")
    if best := _best(folder, history, begun):
        lines.append(best)
    if history.has_ended and (winner := _winner(folder)):
        lines.append(winner)
    lines.append(f"time: {duration_text(history.seconds) or '0 s'}")
    if lacking := beyond_log(folder, states_of):
        lines.append(f"warning: {lacking}")
    return lines


def watch(folder: Path, seconds: float = WATCH_SECONDS) -> Iterator[list[str]]:
    """Yield the lines of :func:`status` again and again, the last time once the study does not run any more.

    Of a study that another machine runs, the copy is fetched again for each look.

    Args:
        seconds: between two looks.

    Raises:
        UserError: as :func:`status`.
    """
    while True:
        runs = is_locked(folder) or _runs_elsewhere(folder)  # asked first: what comes last has the end in it
        yield status(folder)
        if not runs:
            return
        time.sleep(seconds)


def _runs_elsewhere(folder: Path) -> bool:
    """Return whether another machine runs the study, having fetched how far it is."""
    address = own_address(folder)
    runs = address is not None and run_by(address) is not None
    if address is not None:
        with contextlib.suppress(UserError):  # it cannot be reached now, or the folder here is as it is
            brought_here(address)
    return runs


def _condition(folder: Path, history: History) -> str:
    session = history.session
    if is_locked(folder):
        asked = ", and is asked to stop" if is_asked_to_stop(folder) else ""
        return "is running" + (f" (process {session['pid']} on {session['host']})" if session else "") + asked
    if history.has_ended:
        return "has ended"
    if (address := own_address(folder)) and (owner := run_by(address)):
        return f"is being run by {owner}; this is how far its copy was at {address}"
    return f"is not running and has not ended; it goes on with: python tune.py resume {folder}"


def _budget(file: Path) -> str:
    """Describe how much a version of a study runs in all."""
    space = read_space(file)
    limits = [] if space.budget.trials is None else [f"{space.budget.trials} trials"]
    if space.budget.seconds is not None:
        limits.append(duration_text(space.budget.seconds))
    if isinstance(space, AblationSpace):
        limits.append(f"{len(space.repeats)} repeats")
    return f"{' or '.join(limits)} in all"


def _best(folder: Path, history: History, begun: dict[str, Event]) -> str | None:
    """Describe the search's best configuration: the mean of its repeats, once all of them are complete."""
    space = read_space(folder / "study.yaml")
    objective, repeats = space.objective, 1 if isinstance(space, AblationSpace) else len(space.repeats)
    values: dict[str, list[float]] = {}
    for line in history.told:
        event = line.event
        if event["event"] == "finished" and event["state"] == State.COMPLETE:
            began = begun.get(event["key"])  # a log that was tampered with may lack it
            if began and began["phase"] == "search":
                key = event["key"].removesuffix(f"-r{began['repeat']}") if repeats > 1 else event["key"]
                values.setdefault(key, []).append(float(event["value"]))
    means = {key: sum(of_one) / repeats for key, of_one in values.items() if len(of_one) == repeats}
    if not means:
        return None
    key = (max if objective.direction == "maximize" else min)(means, key=means.__getitem__)
    shown = key if repeats == 1 else f"{key} (mean of {repeats})"
    return f"best of the search: {shown}, {objective.metric} {means[key]:.4f}"


def _winner(folder: Path) -> str | None:
    """Describe the confirmed winner of a search that has ended, None where it has none."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for row in summary["rows"]:
        if summary.get("winner") is not None and row["candidate"] == summary["winner"]:
            cells = {metric: cell for metric, cell in row["cells"].items() if not metric.endswith("loss")}
            means = ", ".join(f"{metric} {cell['mean']:.4f}" for metric, cell in cells.items())
            return f"winner: trial {summary['winner']}, mean of {len(cells[summary['objective']]['values'])}: {means}"
    return None

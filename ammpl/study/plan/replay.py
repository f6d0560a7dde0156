"""A study goes on: its folder is checked, and its plan told again what the event log has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ammpl.errors import UserError
from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.record.event_log import FILE, EventLog, History, read_history, space_file, study_sha256
from ammpl.study.record.folder import check_links, write_text
from ammpl.study.space.budget import trials_text
from ammpl.study.space.space_file import StudySpace, read_space
from ammpl.study.trial import State

_TOLD: dict[str, Literal[State.FAILED, State.LOST]] = {"FAILED": State.FAILED, "LOST": State.LOST}  # others it decides


def check_study(folder: Path) -> None:
    """Raise UserError unless a folder is a study's, and nothing in it leads out of it."""
    if not folder.is_dir():
        raise UserError(str(folder), "is not a folder", fix="name the folder of a study")
    check_links(folder)
    path = space_file(folder)
    if path.is_file() and path.stat().st_size:
        return
    history = read_history(folder / FILE)
    if history.lines:
        rule = "is not there" if not path.is_file() else "is empty, as after a loss of power"
        fix = f"put back a copy; {FILE} has {trials_text(len(history.states))} that ended"
        if _space_of(history) is not None:
            fix = f"python tune.py resume {folder} writes it again from {FILE}"
        raise UserError(str(path), rule, fix=fix)
    if not path.is_file():
        raise UserError(
            str(folder), "is not the folder of a study: it has no study.yaml", fix="name one below studies/"
        )
    fix = f"remove the folder and run the space file again with --output {folder}"
    raise UserError(str(folder), "has a study that died before its begin", fix=fix)


def restore_space(folder: Path) -> None:
    """Write study.yaml again from the log where a loss of power took it."""
    path = space_file(folder)
    if not folder.is_dir() or (path.is_file() and path.stat().st_size):
        return
    check_links(folder, writes=True)
    if (text := _space_of(read_history(folder / FILE))) is not None:
        write_text(path, text)


def _space_of(history: History) -> str | None:
    """Return the text of study.yaml as the study began with it; None where the log does not have it."""
    event = history.lines[0].event if history.lines else {}
    text = event.get("space")
    whole = isinstance(text, str) and hashlib.sha256(text.encode()).hexdigest() == event.get("study_sha256")
    return text if whole else None


def beyond_log(folder: Path, states: Mapping[str, State]) -> str | None:
    """Return a sentence on trials that ended by the tables and not by the log, whose states are given; else None."""
    if (folder / "remote.json").exists():
        return None  # of a copy in an object store, to which tables may have gone after the log
    try:
        table = pq.read_table(folder / "trials" / "trials.parquet", columns=["key", "state"])
        rows = [(str(row["key"]), str(row["state"])) for row in table.to_pylist()]
    except (OSError, ValueError, pa.ArrowException):  # not there, or damaged: they are made again from the log
        return None
    keys = [key for key, state in rows if state != State.LOST and key not in states]
    if not keys:
        return None
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{FILE} lacks {trials_text(len(keys))} that trials.parquet has ({shown}): it was cut or changed"


def read_present_space(folder: Path, history: History) -> StudySpace:
    """Read the space of a study's present version. Raises UserError if it cannot be read."""
    return read_space(space_file(folder, 1 + len(history.extensions)))


def read_versions(folder: Path, history: History) -> list[StudySpace]:
    """Return the spaces of a study that goes on: what it began with, and one for each time that it was extended.

    Raises:
        UserError: one cannot be read, is not what the version began with, or the log is not there.
    """
    if not history.session and (folder / "trials" / "trials.parquet").exists():
        rule = "does not say how the study began, though there are results: they would be overwritten"
        raise UserError(str(folder / FILE), rule, fix="put back the file of old, or run study.yaml as a new study")
    if lacking := beyond_log(folder, history.states):
        fix = "put back the whole file; to go on without them, move the folder trials away"
        raise UserError(str(folder), lacking, fix=fix)
    begun = [history.session["study_sha256"]] if history.session else [study_sha256(folder)]
    spaces = []
    for version, sha256 in enumerate([*begun, *(line.event["study_sha256"] for line in history.extensions)], 1):
        path = space_file(folder, version)
        spaces.append(read_space(path))
        if sha256 != study_sha256(folder, version):
            fix = "put back the file of old, or run the new one as a study of its own"
            raise UserError(str(path), "is not the file that the study began with", fix=fix)
    return spaces


def begin_version(plan: StudyPlan, log: EventLog, folder: Path, space: StudySpace) -> None:
    """Let a plan begin its next version, whose space file is in the folder, and log that."""
    log.tell("extended", version=plan.version + 1, study_sha256=study_sha256(folder, plan.version + 1))
    plan.extend(space)


def replay(plan: StudyPlan, log: EventLog, folder: Path, versions: Sequence[StudySpace]) -> None:
    """Ask a new plan for its trials and tell it what they reported, in the order of the log.

    Sampler, pruner and the order of the phases are then what they were when the driver died. What had begun and not
    ended runs again, under the same key: :attr:`BasePlan.running` has it, in the order in which it had begun. The plan
    says everything again to its observers, of which ``log`` has to be one.

    Args:
        versions: the study's spaces; the plan has the first of them.

    Raises:
        UserError: something else comes out than the log has: the first event that differs.
    """
    while (line := log.owed) is not None:
        event = line.event
        running = {trial.key: trial for trial in plan.running}
        if event["event"] == "started":
            plan.next()
        elif event["event"] == "extended":
            begin_version(plan, log, folder, versions[plan.version])
        elif event["key"] in running:
            trial = running[event["key"]]
            if event["event"] == "reported":
                plan.report(trial, event["step"], {name: float(value) for name, value in event["metrics"].items()})
            else:
                told = {"state": _TOLD.get(event["state"]), "reason": event["reason"], "gpus": event.get("gpus", 0.0)}
                plan.finish(trial, event["seconds"], **told)
        if log.owed is line:
            raise log.differs()
    plan.finish_stopped()

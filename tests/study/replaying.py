"""Studies without Ray that are cut off after events and brought back by their log alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ammpl.study.plan.ablation_plan import AblationPlan, StudyPlan
from ammpl.study.plan.replay import begin_version, replay
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.event_log import FILE
from ammpl.study.record.records import Records
from ammpl.study.result.ablation_summary import summarize_study
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Trial
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import (
    DEPTH,
    PRUNERS,
    SAMPLERS,
    TEMPERATURE,
    WIDTH,
    execute,
    run_inline,
    small_space,
    told,
)

TIMES = {"time", "seconds", "started", "ended", "pid", "host"}
FEW = {DEPTH: {"type": "int", "low": 1, "high": 4}, WIDTH: {"type": "categorical", "choices": [8, 16]}}
STEPPED = {**FEW, TEMPERATURE: {"type": "float", "low": 0.1, "high": 1.9, "step": 0.3}}
CONFIRM = {"top": 2, "repeats": 1, "baselines": ["zero_shot"]}
ABLATION = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "fixed": {"model.mask.scope": "task", "training.steps": 30},
    "reference": "learned",
    "variants": {"none": {"model.mask.kind": "none"}, "learned": {}},
    "repeats": [1, 2],
    "test": True,
}

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Runs:
    """Pretends to train; remembers which trials it was given."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        self.keys.append(trial.key)
        if trial.phase == "ablation":
            if (trial.candidate, trial.repeat) == ("none", 2):
                raise RuntimeError("loss is nan")
            for step in (10, 20):
                yield step, {"validation/accuracy": 0.5 + 0.1 * trial.repeat + step / 1000}
            (folder / "learnables.safetensors").write_bytes(b"")
        else:
            yield from execute(trial, folder)


@dataclass
class Session:
    """A plan with its records, brought to where its log ends."""

    plan: StudyPlan
    records: Records
    runs: Runs


def open_session(space: StudySpace, folder: Path, *later: StudySpace) -> Session:
    """Open a study; ``later`` are the spaces of the versions that it may have."""
    folder.mkdir(exist_ok=True)
    records = Records(folder, space, *later)
    plan: StudyPlan
    if isinstance(space, AblationSpace):
        plan = AblationPlan(space, folder, records, records.log.clock)
    else:
        plan = Plan(space, space.name, folder, records, records.log.clock)
    replay(plan, records.log, folder, [space, *later])
    records.begin()
    return Session(plan, records, Runs())


def run_session(space: StudySpace, folder: Path, *later: StudySpace) -> Session:
    """Run a study to its end, then each version that has not begun."""
    session = open_session(space, folder, *later)
    run_inline(session.plan, folder, session.runs)
    for version in later[session.plan.version - 1 :]:
        session.plan.check_extension(version)
        (folder / f"study-{session.plan.version + 1}.yaml").write_text(dump_yaml(version.resolved()))
        begin_version(session.plan, session.records.log, folder, version)
        run_inline(session.plan, folder, session.runs)
    session.records.close()
    return session


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a log, without what tells whether they were changed: tests change them."""
    events = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    return [{name: value for name, value in event.items() if name != "chain"} for event in events]


def result_of(session: Session, folder: Path) -> dict[str, Any]:
    """All that must be the same, time aside."""
    summary = summarize_study(session.plan, Path("study"), interrupted=False, seconds=0.0)
    return {
        "log": [event for event in untimed(events_of(folder)) if event["event"] != "session"],
        "optuna": repr(told(session.plan.search.study)) if isinstance(session.plan, Plan) else None,
        "outcomes": [(replace(t, learnables=None), replace(o, seconds=0.0)) for t, o in session.plan.finished],
        "summary": summary.as_dict(),
        **{
            table: untimed(pq.read_table(folder / table / f"{table}.parquet").to_pylist())
            for table in ("trials", "curves")
        },
    }


def check_every_cut(
    space: StudySpace, folder: Path, stride: int = 1, later: Sequence[StudySpace] = ()
) -> dict[str, Any]:
    """Cut a study's log after every event (or every few), resume it, and compare all that came out."""
    whole = run_session(space, folder / "whole", *later)
    expected = result_of(whole, folder / "whole")
    assert len(whole.runs.keys) == len(set(whole.runs.keys))
    lines = (folder / "whole" / FILE).read_text().splitlines(keepends=True)
    for cut in range(0, len(lines) + 1, stride):
        here = folder / f"cut-{cut}"
        here.mkdir()
        (here / "checkpoints").symlink_to(folder / "whole" / "checkpoints")
        for file in (folder / "whole").glob("study-*.yaml"):
            shutil.copy(file, here)
        torn = lines[cut][: len(lines[cut]) // 2] if cut < len(lines) else ""
        (here / FILE).write_text("".join(lines[:cut]) + torn)
        ended = {e["key"] for e in map(json.loads, lines[:cut]) if e["event"] == "finished"}
        resumed = run_session(space, here, *later)
        assert result_of(resumed, here) == expected, f"cut after event {cut}"
        owed = [key for key in whole.runs.keys if key not in ended]
        # One whose last report stopped it only has to be ended.
        assert resumed.runs.keys in (owed, owed[1:]), f"cut after event {cut}"
    return expected


def space_of(sampler: str, pruner: str, **changes: Any) -> StudySpace:
    searched = {"parameters": STEPPED} if sampler == "grid" else {}
    sampled = dict(SAMPLERS[sampler][0])
    if sampler == "gp":
        sampled["startup_trials"] = 4
    defaults = {"seed": 3, "budget": {"trials": 8}, "confirm": CONFIRM, **searched}
    return small_space(sampler=sampled, pruner=PRUNERS[pruner][0], **{**defaults, **changes})


class CutError(Exception):
    """The driver dies."""


def run_for(session: Session, folder: Path, evaluations: int) -> bool:
    """Run until so many evaluations have come in; return whether that was the end of the study."""
    left = iter(range(evaluations))

    def limited(trial: Trial, own: Path) -> Iterator[tuple[int, dict[str, float]]]:
        for news in execute(trial, own):
            if next(left, None) is None:
                raise CutError
            yield news

    honest = session.plan.finish

    def finish(trial: Trial, *rest: Any, **more: Any) -> Any:
        if str(more.get("reason")).startswith("CutError"):
            raise CutError
        return honest(trial, *rest, **more)

    session.plan.finish = finish  # type: ignore[method-assign]
    try:
        run_inline(session.plan, folder, limited)
    except CutError:
        return False
    return True

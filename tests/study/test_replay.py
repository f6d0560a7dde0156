"""A study cut off after any event and resumed is the study that was not: the log alone brings a plan back."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ammpl.errors import UserError
from ammpl.study import event_log, records
from ammpl.study.ablation import AblationPlan, StudyPlan
from ammpl.study.ablation_space import AblationSpace, parse_ablation
from ammpl.study.ablation_summary import summarize_study
from ammpl.study.base_plan import FINISHED
from ammpl.study.event_log import FILE, read_history
from ammpl.study.plan import Plan
from ammpl.study.records import Records
from ammpl.study.replay import begin_version, replay
from ammpl.study.space_file import StudySpace
from ammpl.study.trial import INTERRUPTED, State, Trial
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import (
    DEPTH,
    PRUNERS,
    SAMPLERS,
    TEMPERATURE,
    WIDTH,
    accuracy,
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


class _Runs:
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
class _Session:
    """A plan with its records, brought to where its log ends."""

    plan: StudyPlan
    records: Records
    runs: _Runs


def _open(space: StudySpace, folder: Path, *later: StudySpace) -> _Session:
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
    return _Session(plan, records, _Runs())


def _run(space: StudySpace, folder: Path, *later: StudySpace) -> _Session:
    """Run a study to its end, then each version that has not begun."""
    session = _open(space, folder, *later)
    run_inline(session.plan, folder, session.runs)
    for version in later[session.plan.version - 1 :]:
        session.plan.check_extension(version)
        (folder / f"study-{session.plan.version + 1}.yaml").write_text(dump_yaml(version.resolved()))
        begin_version(session.plan, session.records.log, folder, version)
        run_inline(session.plan, folder, session.runs)
    session.records.close()
    return session


def _untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def _result(session: _Session, folder: Path) -> dict[str, Any]:
    """All that must be the same, time aside."""
    summary = summarize_study(session.plan, Path("study"), interrupted=False, seconds=0.0)
    return {
        "log": [event for event in _untimed(_events(folder)) if event["event"] != "session"],
        "optuna": repr(told(session.plan.search.study)) if isinstance(session.plan, Plan) else None,
        "outcomes": [(replace(t, learnables=None), replace(o, seconds=0.0)) for t, o in session.plan.finished],
        "summary": summary.as_dict(),
        **{
            table: _untimed(pq.read_table(folder / table / f"{table}.parquet").to_pylist())
            for table in ("trials", "curves")
        },
    }


def _check_every_cut(
    space: StudySpace, folder: Path, stride: int = 1, later: Sequence[StudySpace] = ()
) -> dict[str, Any]:
    """Cut a study's log after every event (or every few), resume it, and compare all that came out."""
    whole = _run(space, folder / "whole", *later)
    expected = _result(whole, folder / "whole")
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
        resumed = _run(space, here, *later)
        assert _result(resumed, here) == expected, f"cut after event {cut}"
        owed = [key for key in whole.runs.keys if key not in ended]
        # One whose last report stopped it only has to be ended.
        assert resumed.runs.keys in (owed, owed[1:]), f"cut after event {cut}"
    return expected


def _space(sampler: str, pruner: str, **changes: Any) -> StudySpace:
    searched = {"parameters": STEPPED} if sampler == "grid" else {}
    sampled = dict(SAMPLERS[sampler][0])
    if sampler == "gp":
        sampled["startup_trials"] = 4
    defaults = {"seed": 3, "budget": {"trials": 8}, "confirm": CONFIRM, **searched}
    return small_space(sampler=sampled, pruner=PRUNERS[pruner][0], **{**defaults, **changes})


PAIRS = [(sampler, "median") for sampler in SAMPLERS] + [("tpe", pruner) for pruner in PRUNERS if pruner != "median"]


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_a_search_cut_anywhere_is_the_same(tmp_path: Path, sampler: str, pruner: str) -> None:
    result = _check_every_cut(
        _space(sampler, pruner), tmp_path, stride=7 if sampler == "gp" else 1 if pruner == "median" else 3
    )
    states = {row["state"] for row in result["trials"]}
    assert states >= {"COMPLETE"} | ({"PRUNED"} if pruner not in ("none", "hyperband", "wilcoxon") else set())
    assert {row["phase"] for row in result["trials"]} == {"search", "confirm", "test"}


def test_repeats_cut_anywhere_are_the_same(tmp_path: Path) -> None:
    space = _space("tpe", "wilcoxon", repeats=[1, 2, 3], budget={"trials": 5})
    result = _check_every_cut(space, tmp_path, stride=5)
    assert len([row for row in result["trials"] if row["phase"] == "search"]) > 5


def test_duplicates_cut_anywhere_are_the_same(tmp_path: Path) -> None:
    space = _space("random", "median", parameters=FEW, budget={"trials": 20}, seed=4)
    result = _check_every_cut(space, tmp_path, stride=3)
    assert sum(row["duplicate_of"] is not None for row in result["trials"]) >= 5


def test_an_ablation_cut_anywhere_is_the_same(tmp_path: Path) -> None:
    result = _check_every_cut(parse_ablation(ABLATION, "masks.yaml"), tmp_path)
    assert {(row["phase"], row["state"]) for row in result["trials"]} == {
        ("ablation", "COMPLETE"),
        ("ablation", "FAILED"),
        ("test", "COMPLETE"),
    }


# -- extended studies --

NARROW = {**FEW, TEMPERATURE: {"type": "float", "low": 0.7, "high": 1.3, "step": 0.3}}


def _larger(trials: int, **changes: Any) -> StudySpace:
    return _space("tpe", "median", **{"budget": {"trials": trials}, "parameters": STEPPED, **changes})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_trials_are_those_of_a_study_that_had_them_from_the_start(tmp_path: Path, sampler: str) -> None:
    whole = _run(_space(sampler, "median", budget={"trials": 14}), tmp_path / "whole")
    extended = _run(
        _space(sampler, "median", budget={"trials": 6}),
        tmp_path / "extended",
        *(_space(sampler, "median", budget={"trials": trials}) for trials in (9, 14)),
    )
    assert isinstance(whole.plan, Plan) and isinstance(extended.plan, Plan)
    assert repr(told(extended.plan.search.study)) == repr(told(whole.plan.search.study))
    assert len(extended.plan.searches) == 1

    def searched(session: _Session) -> list[Any]:
        return [
            (trial, replace(outcome, seconds=0.0))
            for trial, outcome in session.plan.finished
            if trial.phase == "search"
        ]

    assert searched(extended) == searched(whole)
    keys = [trial.key for trial, _ in extended.plan.finished]
    assert (
        len(keys)
        == len(set(keys))
        == len(extended.runs.keys) + sum(outcome.duplicate_of is not None for _, outcome in extended.plan.finished)
    )
    assert {trial.key for trial, _ in whole.plan.finished if trial.phase == "confirm"} <= set(keys)
    tested = {trial.candidate for trial, _ in extended.plan.finished if trial.phase == "test"}
    assert extended.plan.test_openings == len(tested - {"zero_shot"})  # one for each winner


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_an_extended_search_cut_anywhere_is_the_same(tmp_path: Path, sampler: str) -> None:
    first = _space(sampler, "median", budget={"trials": 5}, parameters=STEPPED)
    second = _space(sampler, "median", budget={"trials": 8}, parameters=STEPPED)
    third = _space(sampler, "median", budget={"trials": 12}, parameters=NARROW)
    result = _check_every_cut(first, tmp_path, stride=3 if sampler == "tpe" else 11, later=[second, third])
    assert [event["version"] for event in result["log"] if event["event"] == "extended"] == [2, 3]
    searched = [row for row in result["trials"] if row["phase"] == "search"]
    assert len(searched) == 12
    for row in searched[8:]:
        assert 0.7 <= row[f"params.{TEMPERATURE}"] <= 1.3
    inside = sum(0.7 <= row[f"params.{TEMPERATURE}"] <= 1.3 for row in searched[:8])
    assert 0 < inside < 8
    assert f"can give {inside} of the 8 configurations before it" in result["summary"]["notes"][0]


def test_repeats_of_an_ablation_cut_anywhere_are_the_same(tmp_path: Path) -> None:
    more = parse_ablation({**ABLATION, "repeats": [1, 2, 3, 4]}, "masks.yaml")
    result = _check_every_cut(parse_ablation(ABLATION, "masks.yaml"), tmp_path, later=[more])
    assert len([row for row in result["trials"] if row["phase"] == "ablation"]) == 8
    assert result["summary"]["test_openings"] == 2
    assert len([row for row in result["trials"] if row["phase"] == "test"]) == 7  # one failed


def test_a_study_that_is_extended_before_its_end_leaves_nothing_out(tmp_path: Path) -> None:
    whole = _run(_larger(12), tmp_path / "whole")
    _run(_larger(8), tmp_path / "first")
    reports = sum(event["event"] == "reported" for event in _events(tmp_path / "first"))
    for evaluations in (1, 13, reports - 12, reports - 1):  # in the search, the confirmation, the test
        folder = tmp_path / str(evaluations)
        session = _open(_larger(8), folder)
        assert not _run_for(session, folder, evaluations)
        session.records.log.close()
        session = _open(_larger(8), folder, _larger(12))
        begin_version(session.plan, session.records.log, folder, _larger(12))
        run_inline(session.plan, folder, session.runs)
        session.records.close()
        assert isinstance(whole.plan, Plan) and isinstance(session.plan, Plan)
        assert repr(told(session.plan.search.study)) == repr(told(whole.plan.search.study))
        again = _open(_larger(8), folder, _larger(12))
        assert again.plan.finished == session.plan.finished
        assert again.plan.next() is FINISHED


def test_a_study_that_stops_itself_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: _Runs, trial: Trial, folder: Path) -> Iterator[Any]:
        self.keys.append(trial.key)
        raise RuntimeError(f"no step {trial.number}")
        yield

    monkeypatch.setattr(_Runs, "__call__", broken)
    result = _check_every_cut(_space("tpe", "none", budget={"trials": 8, "failures": 5}), tmp_path)
    assert result["summary"]["stopped"] == "the first 5 trials all failed the same way: RuntimeError: no step 4"


@pytest.mark.parametrize(
    ("budget", "why"),
    [({"target": 0.85}, "target of 0.85 reached by"), ({"patience": 6}, "no improvement in 6 trials since trial 9")],
)
def test_a_search_that_ends_by_a_rule_is_the_same(tmp_path: Path, budget: dict[str, Any], why: str) -> None:
    result = _check_every_cut(_space("tpe", "median", budget={"trials": 30, **budget}, seed=4), tmp_path, stride=7)
    assert why in result["summary"]["ended"]
    assert 4 < len([row for row in result["trials"] if row["phase"] == "search"]) < 30


def test_gpu_hours_of_earlier_sessions_count(tmp_path: Path) -> None:
    space = small_space(budget={"gpu_hours": 2.0}, confirm=None, seed=3)
    for begun in range(1, 5):
        session = _open(space, tmp_path / "study")
        trial = session.plan.next()
        assert isinstance(trial, Trial)
        session.plan.finish(trial, 3600.0, state=State.FAILED, reason=f"no luck, {begun}", gpus=0.5)
        session.records.close()
    resumed = _open(space, tmp_path / "study").plan
    assert resumed.next() is FINISHED
    assert resumed.ended == "budget of 2 GPU-hours used up after 4 trials"
    assert pq.read_table(tmp_path / "study" / "trials").column("gpus").to_pylist() == [0.5] * 4


def test_cut_again_and_again(tmp_path: Path) -> None:
    space = _space("tpe", "median", budget={"trials": 12})
    expected = _result(_run(space, tmp_path / "whole"), tmp_path / "whole")
    chance = random.Random(5)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        sessions = 0
        while True:
            session = _open(space, folder)
            sessions += 1
            if _run_for(session, folder, chance.randint(1, 25)):
                break
            session.records.log.close()  # the tables are left as they were
        session.records.close()
        assert sessions > 3
        assert _result(session, folder) == expected


class _CutError(Exception):
    """The driver dies."""


def _run_for(session: _Session, folder: Path, evaluations: int) -> bool:
    """Run until so many evaluations have come in; return whether that was the end of the study."""
    left = iter(range(evaluations))

    def limited(trial: Trial, own: Path) -> Iterator[tuple[int, dict[str, float]]]:
        for news in execute(trial, own):
            if next(left, None) is None:
                raise _CutError
            yield news

    honest = session.plan.finish

    def finish(trial: Trial, *rest: Any, **more: Any) -> Any:
        if str(more.get("reason")).startswith("_CutError"):
            raise _CutError
        return honest(trial, *rest, **more)

    session.plan.finish = finish  # type: ignore[method-assign]
    try:
        run_inline(session.plan, folder, limited)
    except _CutError:
        return False
    return True


# -- several trials at a time --


def _run_at_random(session: _Session, chance: random.Random, events: int) -> bool:
    """Run up to three trials at a time in a random order; return whether that was the end of the study."""
    open_trials = {trial.key: trial for trial in session.plan.running}
    for _ in range(events):
        if len(open_trials) < 3 and chance.random() < 0.7:
            trial = session.plan.next()
            if isinstance(trial, Trial):
                open_trials[trial.key] = trial
            elif trial is not None:
                return True
        if open_trials:
            trial = open_trials[chance.choice(list(open_trials))]
            fate = chance.random()
            if fate < 0.1:
                session.plan.finish(trial, 1.0, state=State.LOST, reason="its worker process died 3 times")
            elif fate < 0.2:
                session.plan.finish(trial, 1.0, state=State.FAILED, reason=f"loss is nan in {trial.key}")
            elif trial.phase == "test":
                session.plan.report(trial, 0, {"test/accuracy": 0.5})
                session.plan.finish(trial, 1.0)
            else:
                step = 10 + 10 * chance.randrange(8)  # also earlier ones, as of a trial that runs again
                stop = session.plan.report(
                    trial, step, {"validation/accuracy": accuracy(trial.params, step, trial.repeat)}
                )
                if not stop and step < 80:
                    continue
                session.plan.finish(trial, 1.0)
            del open_trials[trial.key]
    return False


@pytest.mark.parametrize("changes", [{}, {"repeats": [1, 2]}, {"parameters": FEW, "sampler": {"name": "random"}}])
@pytest.mark.parametrize("seed", range(5))
def test_with_several_trials_at_a_time_a_plan_is_brought_to_the_same_point(
    tmp_path: Path, seed: int, changes: dict[str, Any]
) -> None:
    space = small_space(**{"budget": {"trials": 15}, "confirm": {"top": 2, "repeats": 2}, "seed": seed, **changes})
    chance = random.Random(seed)
    folder, ended, sessions = tmp_path / "study", False, 0
    before: dict[str, Any] | None = None
    while not ended:
        session = _open(space, folder)
        sessions += 1
        assert before is None or _state(session.plan) == before
        ended = _run_at_random(session, chance, chance.randint(3, 15))
        before = _state(session.plan)
        session.records.log.close()
    events = [event for event in _events(folder) if event["event"] != "session"]
    assert sessions > 4
    for name in ("started", "finished"):
        keys = [event["key"] for event in events if event["event"] == name]
        assert len(keys) == len(set(keys)) > 15
    steps = [(event["key"], event["step"]) for event in events if event["event"] == "reported"]
    assert len(steps) == len(set(steps))


def _state(plan: StudyPlan) -> dict[str, Any]:
    assert isinstance(plan, Plan)
    return {
        "running": plan.running,
        "finished": plan.finished,
        "optuna": repr(told(plan.search.study)),
        "winner": plan.winner,
    }


# -- interruptions --


def test_what_was_interrupted_goes_on_under_the_same_key(tmp_path: Path) -> None:
    space = _space("tpe", "median", repeats=[1, 2])
    expected = _result(_run(space, tmp_path / "whole"), tmp_path / "whole")
    folder, interrupted = tmp_path / "study", []
    for evaluations in (3, 20, 11):
        session = _open(space, folder)
        assert not _run_for(session, folder, evaluations)
        session.plan.finish = type(session.plan).finish.__get__(session.plan)  # type: ignore[method-assign]
        interrupted += [trial.key for trial in session.plan.running]
        session.plan.interrupt(INTERRUPTED)
        session.records.close()
        assert pq.read_table(folder / "trials").to_pylist()[-1]["state"] == "LOST"
    resumed = _run(space, folder)
    assert len(interrupted) == 3
    assert resumed.runs.keys[0] == interrupted[-1]
    result = _result(resumed, folder)
    lost = [event for event in result["log"] if event.get("reason") == INTERRUPTED]
    assert [event["key"] for event in lost] == interrupted
    result["log"] = [event for event in result["log"] if event not in lost]
    assert result == expected
    assert {row["state"] for row in result["trials"]} <= {"COMPLETE", "PRUNED", "FAILED"}


# -- time --


@pytest.mark.parametrize(("seconds", "begun"), [(100.0, 8), (2.5, 3)])
def test_a_time_budget_counts_the_time_of_earlier_sessions(tmp_path: Path, seconds: float, begun: int) -> None:
    space = small_space(budget={"trials": 8, "time": f"{int(seconds)}s"}, confirm=None, seed=3)
    lines = _study_of_one_second_a_trial(space, tmp_path / "study", trials=3)
    (tmp_path / "study" / FILE).write_text("".join(lines))
    session = _open(space, tmp_path / "study")
    assert session.records.log.clock() == pytest.approx(2.7, abs=0.3)
    run_inline(session.plan, tmp_path / "study", session.runs)
    keys = {trial.key for trial, _ in session.plan.finished}
    assert len(keys) == begun
    assert (session.plan.ended is None) == (begun == 8)


def _study_of_one_second_a_trial(space: StudySpace, folder: Path, trials: int) -> list[str]:
    """Return a log whose events are as far apart as if each trial took a second, with a night in between."""
    session = _open(space, folder)
    for _ in range(trials):
        trial = session.plan.next()
        assert isinstance(trial, Trial)
        session.plan.report(trial, 80, {"validation/accuracy": accuracy(trial.params, 80)})
        session.plan.finish(trial, 1.0)
    session.records.close()
    lines, times = [], iter(range(100))
    for event in _events(folder):
        at = 0.3 * next(times)
        hour = 10 if at < 1.2 else 22
        if at >= 1.2 and not any('"session"' in line for line in lines[1:]):  # the driver died; the next day
            lines.append(json.dumps({**json.loads(lines[0]), "time": f"2026-01-01T{hour}:00:{at:09.6f}+00:00"}) + "\n")
        lines.append(json.dumps({**event, "time": f"2026-01-01T{hour}:00:{at:09.6f}+00:00"}) + "\n")
    return lines


def test_a_clock_that_is_set_while_a_study_runs_changes_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter([timedelta(0), timedelta(hours=-5), timedelta(days=3)] * 100)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + next(jumps)

    monkeypatch.setattr(event_log, "datetime", Jumping)
    monkeypatch.setattr(records, "datetime", Jumping)
    space, began = _space("tpe", "none", budget={"trials": 4, "time": "1h"}), time.monotonic()
    for evaluations in (20, 1000):
        session = _open(space, tmp_path)
        if not _run_for(session, tmp_path, evaluations):
            session.records.log.close()
    session.records.close()
    event_log.end_log(tmp_path / FILE)
    assert session.plan.ended is None
    assert 0 < read_history(tmp_path / FILE).seconds <= time.monotonic() - began
    rows = pq.read_table(tmp_path / "trials").to_pylist()
    assert {row["started"] <= row["ended"] for row in rows if row["key"] != "search-0002"} == {True}
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_study_whose_time_was_used_up_does_not_begin_more_trials(tmp_path: Path) -> None:
    space = small_space(budget={"time": "1h"}, confirm=CONFIRM, seed=3)
    folder = tmp_path / "study"
    session = _open(space, folder)
    for _ in range(6):
        _finish_one(session)
    session.records.log._earlier = 3600.0
    _finish_one(session)  # the first of the baselines
    assert session.plan.ended is not None
    session.records.close()
    resumed = _open(space, folder)  # by its wall time no second has passed
    assert resumed.plan.running == []
    run_inline(resumed.plan, folder, resumed.runs)
    assert not [key for key in resumed.runs.keys if key.startswith("search")]
    assert resumed.plan.ended == session.plan.ended == "time budget of 1 h used up after 6 trials"


def _finish_one(session: _Session) -> None:
    trial = session.plan.next()
    assert isinstance(trial, Trial)
    session.plan.report(trial, 80, {"validation/accuracy": accuracy(trial.params, 80)})
    trial.folder(session.records._trials_file.parents[1]).mkdir(parents=True)
    (trial.folder(session.records._trials_file.parents[1]) / "learnables.safetensors").touch()
    session.plan.finish(trial, 1.0)


# -- logs that do not fit --


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("started", lambda e: e["params"].update({TEMPERATURE: 0.5}), rf"params\.{TEMPERATURE} does not come out"),
        ("started", lambda e: e["config"]["training"].update(steps=61), r"config\.training\.steps .* 61 then, 60 now"),
        ("started", lambda e: e.update(key="search-0009"), "started search-0009 then, started search-0000 now"),
        ("reported", lambda e: e.update(key="search-0009"), "reported search-0009 then, nothing now"),
        ("finished", lambda e: e.update(state="PRUNED"), "state does not .*: 'PRUNED' then, 'COMPLETE' now"),
        ("finished", lambda e: e.update(value=0.123), "value does not come out as it did: 0.123 then"),
    ],
)  # fmt: skip
def test_the_first_event_that_comes_out_otherwise_is_named(
    tmp_path: Path, name: str, change: Change, text: str
) -> None:
    space = _space("tpe", "none")
    _run(space, tmp_path)
    events = _events(tmp_path)
    number, event = next((n, e) for n, e in enumerate(events, 1) if e["event"] == name)
    change(event)
    log = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / FILE).write_text(log)
    with pytest.raises(UserError, match=rf"events\.jsonl: line {number} \({name} {event['key']}\): .*{text}"):
        _open(space, tmp_path)
    assert (tmp_path / FILE).read_text() == log


def test_another_space_comes_out_otherwise(tmp_path: Path) -> None:
    _run(_space("tpe", "none"), tmp_path)
    with pytest.raises(UserError, match=r"line 2 \(started search-0000\): .*then, .*now"):
        _open(_space("tpe", "none", seed=4), tmp_path)
    (tmp_path / "environment.json").write_text('{"packages": {"optuna": "1.2.3"}}')
    with pytest.raises(
        UserError, match=r"package versions that the study began with \(optuna 1\.2\.3 then, \S+ now\)"
    ):
        _open(_space("tpe", "none", seed=4), tmp_path)


def test_a_damaged_log_and_one_of_a_later_version_are_said(tmp_path: Path) -> None:
    path = tmp_path / FILE
    _run(_space("tpe", "none"), tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "\0\0\0\n", *lines[4:]]))
    with pytest.raises(UserError, match=r"events\.jsonl: line 5 is damaged\. Fix: put back a copy"):
        read_history(path)
    path.write_text(lines[0].replace('"format":1', '"format":2').replace('"version":"', '"version":"9.') + lines[1])
    with pytest.raises(UserError, match=r"line 1 was written by a later version, 9\.\S+ Fix: use that version"):
        read_history(path)
    path.write_text(lines[0] + '{"event": "moved", "time": "2026-01-01T00:00:00+00:00"}\n' + lines[1])
    with pytest.raises(UserError, match="line 2 was written by a later version"):
        read_history(path)


@pytest.mark.parametrize(
    "tail", ['{"event":"repor', '{"event":"reported"}\n', "\0\0\0\0\n", "\n", '{"event":"reported",']
)
def test_a_last_line_that_was_not_written_to_its_end_is_cut_off(tmp_path: Path, tail: str) -> None:
    space = _space("tpe", "none")
    expected = _result(_run(space, tmp_path), tmp_path)
    path = tmp_path / FILE
    whole = path.read_text()
    path.write_text(whole + tail)
    session = _open(space, tmp_path)
    session.records.close()
    assert _result(session, tmp_path) == expected
    assert path.read_text().startswith(whole)
    assert len(read_history(path).lines) == len(whole.splitlines()) + 1  # a session more

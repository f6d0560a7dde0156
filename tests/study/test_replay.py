"""A study cut off after any event and resumed is the study that was not: the log alone brings a plan back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.plan.base_plan import FINISHED
from ammpl.study.plan.search_plan import Plan
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.trial import INTERRUPTED, State, Trial
from tests.study.fakes import (
    PRUNERS,
    SAMPLERS,
    accuracy,
    small_space,
    told,
)
from tests.study.replaying import (
    ABLATION,
    FEW,
    Runs,
    Session,
    check_every_cut,
    events_of,
    open_session,
    result_of,
    run_for,
    run_session,
    space_of,
)

PAIRS = [(sampler, "median") for sampler in SAMPLERS] + [("tpe", pruner) for pruner in PRUNERS if pruner != "median"]


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_a_search_cut_anywhere_is_the_same(tmp_path: Path, sampler: str, pruner: str) -> None:
    result = check_every_cut(
        space_of(sampler, pruner), tmp_path, stride=7 if sampler == "gp" else 1 if pruner == "median" else 3
    )
    states = {row["state"] for row in result["trials"]}
    assert states >= {"COMPLETE"} | ({"PRUNED"} if pruner not in ("none", "hyperband", "wilcoxon") else set())
    assert {row["phase"] for row in result["trials"]} == {"search", "confirm", "test"}


def test_repeats_cut_anywhere_are_the_same(tmp_path: Path) -> None:
    space = space_of("tpe", "wilcoxon", repeats=[1, 2, 3], budget={"trials": 5})
    result = check_every_cut(space, tmp_path, stride=5)
    assert len([row for row in result["trials"] if row["phase"] == "search"]) > 5


def test_duplicates_cut_anywhere_are_the_same(tmp_path: Path) -> None:
    space = space_of("random", "median", parameters=FEW, budget={"trials": 20}, seed=4)
    result = check_every_cut(space, tmp_path, stride=3)
    assert sum(row["duplicate_of"] is not None for row in result["trials"]) >= 5


def test_an_ablation_cut_anywhere_is_the_same(tmp_path: Path) -> None:
    result = check_every_cut(parse_ablation(ABLATION, "masks.yaml"), tmp_path)
    assert {(row["phase"], row["state"]) for row in result["trials"]} == {
        ("ablation", "COMPLETE"),
        ("ablation", "FAILED"),
        ("test", "COMPLETE"),
    }


def test_a_study_that_stops_itself_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Runs, trial: Trial, folder: Path) -> Iterator[Any]:
        self.keys.append(trial.key)
        raise RuntimeError(f"no step {trial.number}")
        yield

    monkeypatch.setattr(Runs, "__call__", broken)
    result = check_every_cut(space_of("tpe", "none", budget={"trials": 8, "failures": 5}), tmp_path)
    assert result["summary"]["stopped"] == "the first 5 trials all failed the same way: RuntimeError: no step 4"


@pytest.mark.parametrize(
    ("budget", "why"),
    [({"target": 0.85}, "target of 0.85 reached by"), ({"patience": 6}, "no improvement in 6 trials since trial 9")],
)
def test_a_search_that_ends_by_a_rule_is_the_same(tmp_path: Path, budget: dict[str, Any], why: str) -> None:
    result = check_every_cut(space_of("tpe", "median", budget={"trials": 30, **budget}, seed=4), tmp_path, stride=7)
    assert why in result["summary"]["ended"]
    assert 4 < len([row for row in result["trials"] if row["phase"] == "search"]) < 30


def test_gpu_hours_of_earlier_sessions_count(tmp_path: Path) -> None:
    space = small_space(budget={"gpu_hours": 2.0}, confirm=None, seed=3)
    for begun in range(1, 5):
        session = open_session(space, tmp_path / "study")
        trial = session.plan.next()
        assert isinstance(trial, Trial)
        session.plan.finish(trial, 3600.0, state=State.FAILED, reason=f"no luck, {begun}", gpus=0.5)
        session.records.close()
    resumed = open_session(space, tmp_path / "study").plan
    assert resumed.next() is FINISHED
    assert resumed.ended == "budget of 2 GPU-hours used up after 4 trials"
    assert pq.read_table(tmp_path / "study" / "trials").column("gpus").to_pylist() == [0.5] * 4


def test_cut_again_and_again(tmp_path: Path) -> None:
    space = space_of("tpe", "median", budget={"trials": 12})
    expected = result_of(run_session(space, tmp_path / "whole"), tmp_path / "whole")
    chance = random.Random(5)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        sessions = 0
        while True:
            session = open_session(space, folder)
            sessions += 1
            if run_for(session, folder, chance.randint(1, 25)):
                break
            session.records.log.close()  # the tables are left as they were
        session.records.close()
        assert sessions > 3
        assert result_of(session, folder) == expected


# -- several trials at a time --


def _run_at_random(session: Session, chance: random.Random, events: int) -> bool:
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
        session = open_session(space, folder)
        sessions += 1
        assert before is None or _state(session.plan) == before
        ended = _run_at_random(session, chance, chance.randint(3, 15))
        before = _state(session.plan)
        session.records.log.close()
    events = [event for event in events_of(folder) if event["event"] != "session"]
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
    space = space_of("tpe", "median", repeats=[1, 2])
    expected = result_of(run_session(space, tmp_path / "whole"), tmp_path / "whole")
    folder, interrupted = tmp_path / "study", []
    for evaluations in (3, 20, 11):
        session = open_session(space, folder)
        assert not run_for(session, folder, evaluations)
        session.plan.finish = type(session.plan).finish.__get__(session.plan)  # type: ignore[method-assign]
        interrupted += [trial.key for trial in session.plan.running]
        session.plan.interrupt(INTERRUPTED)
        session.records.close()
        assert pq.read_table(folder / "trials").to_pylist()[-1]["state"] == "LOST"
    resumed = run_session(space, folder)
    assert len(interrupted) == 3
    assert resumed.runs.keys[0] == interrupted[-1]
    result = result_of(resumed, folder)
    lost = [event for event in result["log"] if event.get("reason") == INTERRUPTED]
    assert [event["key"] for event in lost] == interrupted
    result["log"] = [event for event in result["log"] if event not in lost]
    assert result == expected
    assert {row["state"] for row in result["trials"]} <= {"COMPLETE", "PRUNED", "FAILED"}

"""A configuration drawn again is answered from its record, and Optuna cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ammpl.errors import UserError
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.trial import State, Trial
from tests.study.fakes import (
    DEPTH,
    PRUNERS,
    SAMPLERS,
    WIDTH,
    Recorder,
    execute,
    optimized,
    run_inline,
    small_space,
    told,
)

DEPTHS = {DEPTH: {"type": "int", "low": 1, "high": 4}}
FEW = {**DEPTHS, WIDTH: {"type": "categorical", "choices": [8, 16]}}  # eight configurations, one of which fails


def _space(**changes: Any) -> SearchSpace:
    return small_space(**{"parameters": FEW, "budget": {"trials": 40}, "confirm": None, "seed": 4, **changes})


class _Runs:
    """What was really run: the configurations' hashes, and how far."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def __call__(self, trial: Trial, folder: Path) -> Any:
        steps = self.steps.setdefault(trial.key, [])
        for step, metrics in execute(trial, folder):
            steps.append(step)
            yield step, metrics


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_optuna_cannot_tell_that_nothing_ran(tmp_path: Path, sampler: str, pruner: str) -> None:
    space = _space(sampler=SAMPLERS[sampler][0], pruner=PRUNERS[pruner][0])
    recorder, runs = Recorder(), _Runs()
    plan = Plan(space, "small", tmp_path, recorder)
    run_inline(plan, tmp_path, runs)
    assert told(plan.search.study) == told(optimized(space, pruner, SAMPLERS[sampler][1](4)))
    by_key = {trial.key: trial for trial in recorder.started}
    repeated = {key: o.duplicate_of for key, o in recorder.outcomes.items() if o.duplicate_of is not None}
    assert runs.steps.keys() == by_key.keys() - repeated.keys()
    assert len(repeated) >= 20
    for key, original in repeated.items():
        assert by_key[key].config == by_key[original].config
        curve = recorder.curves[original]
        assert recorder.curves[key] == curve[: len(recorder.curves[key])]
        assert recorder.outcomes[key].seconds == 0.0
    stored = {f"search-{t.number:04d}": t.user_attrs.get("duplicate_of") for t in plan.search.study.trials}
    assert {key: of for key, of in stored.items() if of is not None} == repeated
    if pruner == "none":
        assert len(runs.steps) == len({trial.config.sha256 for trial in recorder.started}) <= 8
        states = {recorder.outcomes[key].state for key in repeated}
        assert states == {State.COMPLETE, State.FAILED} or sampler != "random"


def test_a_record_cut_short_is_run_again_when_the_pruner_lets_it_pass(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = Plan(_space(), "small", tmp_path, recorder)
    verdicts = iter([False, True, False, False, False])
    plan.search.report = lambda number, step, value: next(verdicts)  # type: ignore[method-assign]
    plan.search.ask = lambda suggest: (next(numbers), {DEPTH: 2, WIDTH: 8})  # type: ignore[method-assign]
    plan.search.tell = lambda *told, **more: None  # type: ignore[method-assign]
    numbers = iter(range(9))
    first = plan.next()
    assert not plan.report(first, 10, {"validation/accuracy": 0.1})
    assert plan.report(first, 20, {"validation/accuracy": 0.2})
    assert plan.finish(first).state is State.PRUNED
    second = plan.next()
    for step in (10, 20, 30):  # it starts from the beginning; what was told is not told again
        assert not plan.report(second, step, {"validation/accuracy": step / 100})
    outcome = plan.finish(second)
    assert (outcome.state, outcome.value, outcome.duplicate_of) == (State.COMPLETE, 0.3, None)
    assert [step for step, _ in recorder.curves[second.key]] == [10, 20, 30]
    assert [trial.key for trial in recorder.started] == ["search-0000", "search-0001"]
    assert plan.running == []


def test_a_lost_trial_is_no_record(tmp_path: Path) -> None:
    plan = Plan(_space(parameters=DEPTHS, sampler={"name": "grid"}), "small", tmp_path, Recorder())
    plan.search.ask = lambda suggest: (next(numbers), {DEPTH: 2})  # type: ignore[method-assign]
    plan.search.tell = lambda *told, **more: None  # type: ignore[method-assign]
    numbers = iter(range(9))
    plan.finish(plan.next(), state=State.LOST, reason="its worker process died 3 times")
    assert plan.next().key == "search-0001"
    assert [trial.key for trial in plan.running] == ["search-0001"]


def test_what_still_runs_is_no_record(tmp_path: Path) -> None:
    space = _space(sampler={"name": "random"}, budget={"trials": 12})
    plan = Plan(space, "small", tmp_path, Recorder())
    trials = [plan.next() for _ in range(12)]
    assert len({trial.config.sha256 for trial in trials}) < 12
    assert plan.finished == []


def test_a_combination_that_cannot_be_built_is_no_record_of_another(tmp_path: Path, monkeypatch: Any) -> None:
    honest = SearchSpace.config

    def picky(self: SearchSpace, params: Any, repeat: int) -> Any:
        if params.get(DEPTH) == 3:
            raise UserError("parameters", "do not go together")
        return honest(self, {} if params.get(DEPTH) == 1 else params, repeat)

    monkeypatch.setattr(SearchSpace, "config", picky)
    recorder = Recorder()
    run_inline(Plan(_space(pruner={"name": "none"}), "small", tmp_path, recorder), tmp_path)
    for trial in recorder.started:
        if trial.params[DEPTH] == 1:
            assert recorder.outcomes[trial.key].state is State.COMPLETE


def test_the_tables_say_which_trial_is_repeated(tmp_path: Path) -> None:
    space = _space(pruner={"name": "none"}, budget={"trials": 12})
    plan = Plan(space, "small", tmp_path, observers := Observers([], Records(tmp_path, space)))
    run_inline(plan, tmp_path)
    observers.close()
    rows = pq.read_table(tmp_path / "trials" / "trials.parquet").to_pylist()
    originals = {row["key"]: row for row in rows if row["duplicate_of"] is None}
    repeats = [row for row in rows if row["duplicate_of"] is not None]
    assert len(rows) == 12
    assert repeats
    for row in repeats:
        same = ("config_sha256", "state", "value", "step", "reason", "metrics.train/loss")
        assert {name: row[name] for name in same} == {name: originals[row["duplicate_of"]][name] for name in same}

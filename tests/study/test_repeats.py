"""Several repeats a configuration: the mean is the objective, the pruner looks after each repeat."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest

from ammpl.study.plan.base_plan import FINISHED
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.result.summary import summarize
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.trial import State, Trial
from tests.study.fakes import DEPTH, PRUNERS, SAMPLERS, Clock, Recorder, accuracy, fails, run_inline, small_space, told

REPEATS = [1, 2, 3, 4, 5, 6]


def _space(**changes: Any) -> SearchSpace:
    return small_space(**{"repeats": REPEATS, "seed": 3, "confirm": None, "pruner": {"name": "none"}, **changes})


def _execute(trial: Trial, folder: Path) -> Any:
    """Two evaluations; some configurations fail in their third repeat of the search."""
    if trial.phase == "search" and trial.repeat == 3 and fails(trial.params):
        raise RuntimeError("loss is nan")
    name = "test/accuracy" if trial.phase == "test" else "validation/accuracy"
    for step in (10, 80):
        yield step, {name: accuracy(trial.params, step, trial.repeat)}
    (folder / "learnables.safetensors").write_bytes(b"")


def _run(folder: Path, **changes: Any) -> tuple[Plan, Recorder]:
    recorder = Recorder()
    plan = Plan(_space(**changes), "small", folder, recorder)
    run_inline(plan, folder, _execute)
    return plan, recorder


def _plain(space: SearchSpace, pruner: str, sampler: str) -> optuna.Study:
    """The loop over problem instances of Optuna's documentation of WilcoxonPruner."""

    def objective(trial: optuna.Trial) -> float:
        params = space.suggest(trial)
        values: list[float] = []
        for index, repeat in enumerate(space.repeats):
            if repeat == 3 and fails(params):
                raise RuntimeError("loss is nan")
            values.append(accuracy(params, 80, repeat))
            trial.report(values[-1], index)
            if trial.should_prune():
                break
        return statistics.fmean(values)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            study_name="small",
            direction="maximize",
            sampler=SAMPLERS[sampler][1](space.seed),
            pruner=PRUNERS[pruner][1](),
        )
        study.optimize(objective, n_trials=space.budget.trials, catch=(RuntimeError,))
    return study


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", ["wilcoxon", "median", "none"])
def test_the_search_is_what_plain_optuna_makes_of_a_loop_over_repeats(
    tmp_path: Path, sampler: str, pruner: str
) -> None:
    changes = {"pruner": PRUNERS[pruner][0], "sampler": SAMPLERS[sampler][0], "budget": {"trials": 40}}
    plan, recorder = _run(tmp_path, **changes)
    assert told(plan.search.study) == told(_plain(plan.space, pruner, sampler))
    words = [trial.user_attrs["state"] for trial in plan.search.study.trials]
    assert set(words) >= {"COMPLETE", "FAILED" if pruner == "none" else "PRUNED"}
    for trial, word in zip(plan.search.study.trials, words, strict=True):
        outcomes = [recorder.outcomes[t.key] for t in recorder.started if t.number == trial.number]
        assert [outcome.state for outcome in outcomes] == ["COMPLETE"] * (len(outcomes) - 1) + [word]
        assert len(outcomes) == {"COMPLETE": 6, "FAILED": 3}.get(word, len(outcomes))
        if word == "PRUNED":  # told with its mean, so that the sampler learns from it
            assert len(outcomes) < 6
            assert trial.state.name == "COMPLETE"
        if word != "FAILED":
            assert trial.intermediate_values == {index: o.value for index, o in enumerate(outcomes)}
            assert trial.value == statistics.fmean(outcome.value for outcome in outcomes)
        else:
            assert trial.user_attrs["reason"] == "RuntimeError: loss is nan"


def test_the_best_is_the_one_with_the_best_mean_over_all_repeats(tmp_path: Path) -> None:
    plan, recorder = _run(
        tmp_path, pruner=PRUNERS["wilcoxon"][0], budget={"trials": 20}, confirm={"top": 2, "repeats": 2}
    )
    whole = [t for t in plan.search.study.trials if t.user_attrs["state"] == "COMPLETE"]
    ranked = sorted(whole, key=lambda trial: -trial.value)
    assert [(t.number, value) for t, value in plan.best(3)] == [(t.number, t.value) for t in ranked[:3]]
    confirmed = [(t.candidate, t.repeat) for t in recorder.started if t.phase == "confirm" and t.params]
    assert confirmed == [(str(trial.number), repeat) for trial in ranked[:2] for repeat in (7, 8)]
    assert plan.winner in {candidate for candidate, _ in confirmed}
    summary = summarize(plan, tmp_path, interrupted=False, seconds=1.0)
    assert summary.best == {"number": ranked[0].number, "value": ranked[0].value, "params": ranked[0].params}


def test_each_repeat_is_a_trial_of_its_own(tmp_path: Path) -> None:
    space = _space(repeats=[2, 5], budget={"trials": 2})
    plan = Plan(space, "small", tmp_path, observers := Observers([], Records(tmp_path, space)))
    run_inline(plan, tmp_path, _execute)
    observers.close()
    rows = pq.read_table(tmp_path / "trials" / "trials.parquet").to_pylist()
    assert [(row["key"], row["number"], row["candidate"], row["repeat"]) for row in rows] == [
        ("search-0000-r2", 0, "0", 2),
        ("search-0000-r5", 0, "0", 5),
        ("search-0001-r2", 1, "1", 2),
        ("search-0001-r5", 1, "1", 5),
    ]
    assert len({row["config_sha256"] for row in rows}) == 4
    assert plan.totals["search"] == 4
    assert {t.config.seeds.data for t, _ in plan.finished} == {2, 5}


def test_a_repeat_that_ran_before_is_answered_from_its_record(tmp_path: Path) -> None:
    searched = {DEPTH: {"type": "int", "low": 1, "high": 3}}
    wilcoxon = PRUNERS["wilcoxon"][0]
    plan, recorder = _run(tmp_path, parameters=searched, budget={"trials": 20}, pruner=wilcoxon)
    assert told(plan.search.study) == told(_plain(plan.space, "wilcoxon", "tpe"))
    ran = [trial.config.sha256 for trial in recorder.started if recorder.outcomes[trial.key].duplicate_of is None]
    assert len(ran) == len(set(ran)) <= 18
    assert len(recorder.started) > 40
    for trial in plan.search.study.trials:
        of = [recorder.outcomes[t.key].duplicate_of for t in recorder.started if t.number == trial.number]
        assert trial.user_attrs.get("duplicate_of") == (None if None in of else of[-1])
    assert len([trial for trial in plan.search.study.trials if "duplicate_of" in trial.user_attrs]) >= 10


def test_several_at_a_time_a_due_repeat_comes_before_the_next_configuration(tmp_path: Path) -> None:
    space = _space(repeats=[1, 2], budget={"trials": 3}, confirm={"top": 1, "repeats": 1, "baselines": ["coop"]})
    plan = Plan(space, "small", tmp_path, Recorder())

    def end(trial: Trial) -> None:
        plan.report(trial, 10, {"validation/accuracy": 0.5})
        plan.finish(trial)

    first, second = plan.next(), plan.next()
    end(second)
    assert [trial.key for trial in (first, second)] == ["search-0000-r1", "search-0001-r1"]
    third = plan.next()
    assert third.key == "search-0001-r2"
    end(first)
    end(third)
    fourth, fifth = plan.next(), plan.next()
    assert [fourth.key, fifth.key] == ["search-0000-r2", "search-0002-r1"]
    end(fourth)
    baseline = plan.next()
    assert baseline.key == "confirm-coop-r3"  # fills the slot while the last configuration goes on
    assert plan.next() is None
    end(fifth)
    last = plan.next()
    assert last.key == "search-0002-r2"
    assert plan.next() is None
    end(last)
    assert plan.next().key == "confirm-0000-r3"
    assert [trial.state.name for trial in plan.search.study.trials] == ["COMPLETE"] * 3


def test_a_configuration_begun_in_time_gets_all_its_repeats(tmp_path: Path) -> None:
    clock = Clock()
    plan = Plan(_space(repeats=[1, 2, 3], budget={"time": "1m"}), "small", tmp_path, Recorder(), clock)
    keys = []
    while isinstance(trial := plan.next(), Trial):
        keys.append(trial.key)
        clock.now += 50.0
        plan.report(trial, 10, {"validation/accuracy": 0.5})
        plan.finish(trial)
    assert keys == [f"search-0000-r{repeat}" for repeat in (1, 2, 3)]
    assert plan.ended == "time budget of 1 min used up after 1 trial"
    assert [trial.state.name for trial in plan.search.study.trials] == ["COMPLETE"]


def test_an_interrupt_between_two_repeats_loses_the_configuration(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = Plan(_space(repeats=[1, 2]), "small", tmp_path, recorder)
    first, second = plan.next(), plan.next()
    plan.report(first, 10, {"validation/accuracy": 0.5})
    plan.finish(first)
    plan.interrupt("interrupted")
    assert plan.next() is FINISHED
    assert [o.state for o in recorder.outcomes.values()] == [State.COMPLETE, State.LOST]
    assert [t.user_attrs["state"] for t in plan.search.study.trials] == ["LOST", "LOST"]
    assert {t.state for t in plan.search.study.trials} == {optuna.trial.TrialState.FAIL}
    assert second.key == "search-0001-r1"


def test_a_study_that_stops_itself_leaves_no_configuration_open(tmp_path: Path) -> None:
    plan = Plan(_space(repeats=[1, 2], budget={"trials": 8, "failures": 5}), "small", tmp_path, Recorder())
    trials = [plan.next() for _ in range(7)]
    plan.report(trials[5], 10, {"validation/accuracy": 0.5})
    plan.finish(trials[5])
    for trial in trials[:5]:
        plan.finish(trial, state=State.FAILED, reason="broken")
    assert plan.stopped is not None
    plan.report(trials[6], 10, {"validation/accuracy": 0.5})
    plan.finish(trials[6])
    assert plan.next() is FINISHED
    states = [trial.user_attrs["state"] for trial in plan.search.study.trials]
    assert states == ["FAILED"] * 5 + ["LOST"] * 2
    assert plan.running == []

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import optuna
import pytest

from ammpl.errors import UserError
from ammpl.study.plan.base_plan import FINISHED
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.observers import Observers
from ammpl.study.result.summary import summarize
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.trial import State, Trial
from tests.study.fakes import (
    DEPTH,
    TEMPERATURE,
    Clock,
    Recorder,
    accuracy,
    execute,
    run_inline,
    small_space,
)


def _run(tmp_path: Path, execute: Any = execute, **changes: Any) -> tuple[Plan, Recorder]:
    recorder = Recorder()
    plan = Plan(small_space(**changes), "small", tmp_path, recorder)
    run_inline(plan, tmp_path, execute)
    return plan, recorder


def test_the_best_are_confirmed_on_fresh_repeats_and_the_winner_is_tested_beside_the_baselines(tmp_path: Path) -> None:
    plan, recorder = _run(tmp_path, confirm={"top": 2, "repeats": 3, "baselines": ["zero_shot", "coop"]})
    phases = [trial.phase for trial in recorder.started]
    assert phases == ["search"] * 12 + ["confirm"] * 12 + ["test"] * 9
    assert {phase: phases.count(phase) for phase in plan.totals} == plan.totals
    searched = [(o.value, t.number) for t, o in plan.finished if t.phase == "search" and o.state is State.COMPLETE]
    best = [str(number) for _, number in sorted(searched, reverse=True)[:2]]
    confirmed = {t.candidate for t in recorder.started if t.phase == "confirm"}
    assert confirmed == {*best, "zero_shot", "coop"}
    means = {c: sum(o.value for _, o in plan.outcomes("confirm", c)) / 3 for c in best}
    assert plan.winner == max(best, key=means.__getitem__)
    assert {t.candidate for t in recorder.started if t.phase == "test"} == {plan.winner, "zero_shot", "coop"}
    for trial in recorder.started:
        assert trial.config.seeds.data == trial.repeat
        assert trial.repeat == 1 if trial.phase == "search" else trial.repeat in (2, 3, 4)


def test_a_test_trial_has_the_config_and_the_learnables_of_its_confirmation(tmp_path: Path) -> None:
    _, recorder = _run(tmp_path)
    by_key = {trial.key: trial for trial in recorder.started}
    tests = [trial for trial in recorder.started if trial.phase == "test"]
    for trial in tests:
        confirmed = by_key[trial.key.replace("test", "confirm")]
        assert trial.config == confirmed.config
        expected = None if trial.candidate == "zero_shot" else confirmed.folder(tmp_path) / "learnables.safetensors"
        assert trial.learnables == expected
        assert recorder.outcomes[trial.key].value == recorder.outcomes[trial.key].metrics["test/accuracy"]


def test_a_configuration_drawn_twice_is_confirmed_once(tmp_path: Path) -> None:
    plan, _ = _run(
        tmp_path,
        parameters={DEPTH: {"type": "int", "low": 1, "high": 3}},
        pruner={"name": "none"},
        confirm={"top": 5, "repeats": 1},
    )
    depths = [t.params[DEPTH] for t, _ in plan.finished if t.phase == "confirm" and t.params]
    assert sorted(depths) == [1, 2, 3]
    numbers = [t.number for t, _ in plan.best(3)]
    assert numbers == sorted(numbers, key=lambda n: -plan.search.study.trials[n].value)


def test_with_minimize_the_lowest_is_best(tmp_path: Path) -> None:
    plan, _ = _run(tmp_path, objective={"metric": "train/loss", "direction": "minimize"})
    values = [o.value for t, o in plan.finished if t.phase == "search" and o.state is State.COMPLETE]
    assert plan.best(1)[0][1] == min(values)


def test_a_candidate_whose_repeats_failed_wins_only_over_such(tmp_path: Path) -> None:
    def unlucky(trial: Trial, folder: Path) -> Any:
        best = trial.phase == "confirm" and trial.candidate == first
        if best and trial.repeat == 3:
            raise RuntimeError("no luck")
        return execute(trial, folder)

    first = _run(tmp_path / "a", confirm=None)[0].best(1)[0][0].candidate
    plan, _ = _run(tmp_path / "b", unlucky, confirm={"top": 2, "repeats": 2})
    assert plan.winner is not None
    assert plan.winner != first
    alone, recorder = _run(tmp_path / "c", unlucky, confirm={"top": 1, "repeats": 2})
    assert alone.winner == first
    assert [t.repeat for t in recorder.started if t.phase == "test" and t.candidate == first] == [2]


def _broken(trial: Trial, folder: Path) -> Any:
    raise RuntimeError(f"step {trial.number} at 0x7f{trial.number}: loss is nan")
    yield


def test_a_study_whose_first_five_trials_fail_the_same_way_stops(tmp_path: Path) -> None:
    plan, recorder = _run(tmp_path, _broken, confirm={"top": 1, "repeats": 1})
    assert plan.stopped == "the first 5 trials all failed the same way: RuntimeError: step 4 at 0x7f4: loss is nan"
    assert [trial.key for trial in recorder.started] == [f"search-{number:04d}" for number in range(5)]
    assert (plan.next(), plan.winner, plan.best(1)) == (FINISHED, None, [])


def test_a_study_stops_when_ten_trials_in_a_row_fail_for_whatever_reasons(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        if trial.number == 1:
            yield 10, {"validation/accuracy": 0.5}
            return
        if trial.number == 3:
            raise ValueError("something else")
        yield from _broken(trial, folder)

    plan, recorder = _run(tmp_path, run, pruner={"name": "none"})
    expected = "9 × RuntimeError: step 11 at 0x7f11: loss is nan; 1 × ValueError: something else"
    assert plan.stopped == f"10 trials in a row failed: {expected}"
    assert len(recorder.started) == 12


def test_the_reasons_of_failures_in_a_row_are_told_apart_but_for_their_numbers(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        if trial.number in (1, 2):
            raise ValueError(f"bad value {trial.number}")
        yield from _broken(trial, folder)

    plan, _ = _run(tmp_path, run, budget={"trials": 12, "failures": 5}, confirm=None)
    expected = "3 × RuntimeError: step 4 at 0x7f4: loss is nan; 2 × ValueError: bad value 2"
    assert plan.stopped == f"5 trials in a row failed: {expected}"


@pytest.mark.parametrize("number", [0, 4])
def test_one_trial_that_completes_lets_a_study_go_on(tmp_path: Path, number: int) -> None:
    def odd_one(trial: Trial, folder: Path) -> Any:
        if trial.phase == "search" and trial.number % 5 == number:
            yield 10, {"validation/accuracy": 0.5}
        else:
            yield from _broken(trial, folder)

    changes = {"budget": {"trials": 12, "failures": 5}, "confirm": {"top": 1, "repeats": 1}}
    plan, recorder = _run(tmp_path, odd_one, pruner={"name": "none"}, **changes)
    assert plan.stopped is None
    assert {t.phase for t in recorder.started} == {"search", "confirm"}
    assert sum(t.phase == "search" for t in recorder.started) == 12


def test_a_failure_that_is_answered_from_its_record_is_no_further_one(tmp_path: Path) -> None:
    changes = {"parameters": {DEPTH: {"type": "int", "low": 1, "high": 2}}, "sampler": {"name": "random"}}
    plan, recorder = _run(tmp_path, _broken, budget={"trials": 12, "failures": 3}, confirm=None, **changes)
    assert plan.stopped is None
    assert sum(outcome.duplicate_of is None for outcome in recorder.outcomes.values()) == 2


def test_a_study_of_fewer_trials_than_may_fail_ends_as_it_would(tmp_path: Path) -> None:
    plan, recorder = _run(tmp_path, _broken, budget={"trials": 4}, confirm={"top": 1, "repeats": 1})
    assert plan.stopped is None
    assert plan.winner is None
    assert {t.phase for t in recorder.started} == {"search", "confirm"}


def test_several_at_a_time_what_runs_goes_on_when_a_study_stops(tmp_path: Path) -> None:
    plan = Plan(small_space(budget={"trials": 12, "failures": 5}), "small", tmp_path, Recorder())
    trials = [plan.next() for _ in range(6)]
    for trial in trials[4::-1]:  # the last to end is not the last that began
        assert plan.stopped is None
        plan.finish(trial, 1.0, state=State.LOST, reason="its worker process died 3 times")
    assert plan.stopped == "the first 5 trials all failed the same way: its worker process died 3 times"
    assert plan.next() is FINISHED
    plan.report(trials[5], 10, {"validation/accuracy": 0.5})
    assert plan.finish(trials[5]).state is State.COMPLETE
    assert plan.best(1) == [(trials[5], 0.5)]


@pytest.mark.parametrize(
    ("evaluations", "state", "reason"),
    [
        ([], State.FAILED, "the trial ended without an evaluation"),
        ([(10, {"validation/accuracy": math.nan})], State.FAILED, "the objective is NaN at step 10"),
        (
            [(10, {"train/loss": 1.0, "mask/keep_rate": 0.5})],
            State.FAILED,
            "the evaluation at step 10 has no 'validation/accuracy'; it has: mask/keep_rate, train/loss",
        ),
        ([(10, {"validation/accuracy": 0.5})], State.COMPLETE, None),
    ],
)
def test_a_trial_without_a_value_is_failed(tmp_path: Path, evaluations: Any, state: State, reason: str | None) -> None:
    plan, recorder = _run(
        tmp_path, lambda trial, folder: iter(evaluations), budget={"trials": 2}, confirm=None, pruner={"name": "none"}
    )
    assert [(o.state, o.reason) for o in recorder.outcomes.values()] == [(state, reason)] * 2
    attribute = [t.user_attrs["state"] for t in plan.search.study.trials]
    assert attribute == [str(state)] * 2


def test_a_step_that_comes_again_is_not_taken_again(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = Plan(small_space(pruner={"name": "none"}), "small", tmp_path, recorder)
    trial = plan.next()
    assert isinstance(trial, Trial)
    for step in (10, 20, 10, 20, 30):
        assert not plan.report(trial, step, {"validation/accuracy": step / 100})
    assert [step for step, _ in recorder.curves[trial.key]] == [10, 20, 30]
    assert plan.search.study.trials[0].intermediate_values == {10: 0.1, 20: 0.2, 30: 0.3}


def test_several_at_a_time_wait_for_what_they_depend_on(tmp_path: Path) -> None:
    plan = Plan(small_space(budget={"trials": 2}, confirm={"top": 1, "repeats": 1}), "small", tmp_path, Recorder())
    first, second, zero_shot, coop = (plan.next() for _ in range(4))
    # The baselines fill the slots while the search's last trials run; the winner cannot be confirmed yet.
    assert [t.key for t in (first, second, zero_shot, coop)] == [
        "search-0000",
        "search-0001",
        "confirm-zero_shot-r2",
        "confirm-coop-r2",
    ]
    assert plan.next() is None
    for trial in (second, first):
        plan.report(trial, 10, {"validation/accuracy": 0.1 * trial.number + 0.5})
        plan.finish(trial, 1.0)
    best = plan.next()
    assert best.key == "confirm-0001-r2"
    assert plan.next() is None
    for trial in (zero_shot, coop, best):
        plan.report(trial, 10, {"validation/accuracy": 0.5})
        plan.finish(trial, 1.0)
    tests = [plan.next() for _ in range(3)]
    assert [t.key for t in tests] == ["test-0001-r2", "test-zero_shot-r2", "test-coop-r2"]
    assert plan.next() is None
    for trial in tests:
        plan.report(trial, 0, {"test/accuracy": 0.5})
        plan.finish(trial, 1.0)
    assert plan.next() is FINISHED
    assert plan.running == []


def test_the_harmonic_mean_is_the_value_of_a_test_on_new_classes(tmp_path: Path) -> None:
    plan = Plan(small_space(budget={"trials": 1}, confirm={"top": 1, "repeats": 1}), "small", tmp_path, Recorder())

    def run(trial: Trial, folder: Path) -> Any:
        if trial.phase == "test":
            yield 0, {"test/base_accuracy": 0.9, "test/new_accuracy": 0.6, "test/harmonic_mean": 0.72}
        else:
            yield 10, {"validation/accuracy": 0.5}

    run_inline(plan, tmp_path, run)
    assert {o.value for t, o in plan.finished if t.phase == "test"} == {0.72}


def test_an_interrupted_study_loses_what_ran_and_hands_out_nothing_more(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = Plan(small_space(), "small", tmp_path, recorder)
    trials = [plan.next(), plan.next()]
    plan.report(trials[0], 10, {"validation/accuracy": 0.5}, seconds=2.5)
    plan.interrupt("interrupted")
    assert plan.next() is FINISHED
    assert [(o.state, o.reason, o.seconds) for o in recorder.outcomes.values()] == [
        (State.LOST, "interrupted", 2.5),
        (State.LOST, "interrupted", 0.0),
    ]
    assert [t.state for t in plan.search.study.trials] == [optuna.trial.TrialState.FAIL] * 2
    assert [t.user_attrs["state"] for t in plan.search.study.trials] == ["LOST"] * 2


def _timed(tmp_path: Path, clock: Clock, **changes: Any) -> tuple[Plan, Recorder]:
    """A study whose search trials take ten seconds each."""

    def slow(trial: Trial, folder: Path) -> Any:
        clock.now += 10.0 if trial.phase == "search" else 0.0
        return execute(trial, folder)

    recorder = Recorder()
    plan = Plan(small_space(pruner={"name": "none"}, **changes), "small", tmp_path, recorder, clock)
    run_inline(plan, tmp_path, slow)
    return plan, recorder


def test_a_time_budget_ends_the_search_and_confirmation_and_test_follow(tmp_path: Path) -> None:
    plan, recorder = _timed(tmp_path, Clock(), budget={"time": "35s"}, confirm={"top": 1, "repeats": 2})
    assert plan.totals["search"] is None
    phases = [trial.phase for trial in recorder.started]
    assert phases == ["search"] * 4 + ["confirm"] * 6 + ["test"] * 6
    assert plan.ended == "time budget of 35 s used up after 4 trials"
    assert (plan.stopped, plan.winner is None) == (None, False)
    summary = summarize(plan, tmp_path, interrupted=False, seconds=1.0)
    assert summary.as_dict()["ended"] == plan.ended
    assert summary.markdown().endswith(f"\nended: {plan.ended}\n")


@pytest.mark.parametrize(("budget", "trials"), [({"trials": 3, "time": "1h"}, 3), ({"trials": 4, "time": "40s"}, 4)])
def test_a_budget_of_trials_that_is_used_up_first_is_no_news(
    tmp_path: Path, budget: dict[str, Any], trials: int
) -> None:
    plan, recorder = _timed(tmp_path, Clock(), budget=budget, confirm=None)
    assert (len(recorder.started), plan.ended) == (trials, None)


def test_what_runs_when_the_time_is_up_runs_to_its_end(tmp_path: Path) -> None:
    clock = Clock()
    space = small_space(budget={"time": "1m"}, confirm={"top": 1, "repeats": 1, "baselines": ["coop"]})
    plan = Plan(space, "small", tmp_path, Recorder(), clock)
    first, second = plan.next(), plan.next()
    clock.now = 60.0
    baseline = plan.next()
    assert baseline.key == "confirm-coop-r2"
    assert plan.next() is None
    for trial, value in ((first, 0.5), (second, 0.75), (baseline, 0.5)):
        plan.report(trial, 10, {"validation/accuracy": value})
        plan.finish(trial)
    assert plan.next().key == "confirm-0001-r2"
    assert plan.ended == "time budget of 1 min used up after 2 trials"


def _scored(tmp_path: Path, values: list[float], **changes: Any) -> tuple[Plan, Recorder]:
    """A study whose search trials have these values, NaN for one that fails."""

    def run(trial: Trial, folder: Path) -> Any:
        yield 10, {"validation/accuracy": values[trial.number or 0], "train/loss": 1.0}

    return _run(tmp_path, run, pruner={"name": "none"}, confirm=None, **changes)


def test_a_target_ends_the_search_when_it_is_reached(tmp_path: Path) -> None:
    values = [0.1, 0.4, math.nan, 0.5, 0.9]
    plan, recorder = _scored(tmp_path, values, budget={"trials": 5, "target": 0.5})
    assert (len(recorder.started), plan.stopped) == (4, None)
    assert plan.ended == "target of 0.5 reached by trial 3 (0.5000), after 4 trials"
    objective = {"metric": "validation/accuracy", "direction": "minimize"}
    plan, _ = _scored(tmp_path, values, budget={"trials": 5, "target": 0.1}, objective=objective)
    assert plan.ended == "target of 0.1 reached by trial 0 (0.1000), after 1 trial"


def test_patience_ends_the_search_when_nothing_gets_better(tmp_path: Path) -> None:
    values = [math.nan, math.nan, math.nan, 0.1, 0.4, 0.4, 0.3, 0.5, math.nan, 0.5, 0.2, 0.9]
    plan, recorder = _scored(tmp_path, values, budget={"patience": 3})
    assert len(recorder.started) == 11
    assert plan.ended == "no improvement in 3 trials since trial 7 (0.5000), after 11 trials"


def test_repeats_of_a_configuration_count_once_for_target_and_patience(tmp_path: Path) -> None:
    changes = {"repeats": [1, 2], "pruner": {"name": "none"}, "confirm": None}
    plan, recorder = _run(tmp_path, lambda trial, folder: iter([(10, {"validation/accuracy": 0.1 * trial.repeat})]),
                          budget={"patience": 2, "target": 0.2}, **changes)  # fmt: skip
    assert (len(recorder.started), plan.best(1)[0][1]) == (6, pytest.approx(0.15))
    assert plan.ended == "no improvement in 2 trials since trial 0 (0.1500), after 3 trials"


def test_gpu_hours_are_the_time_of_ended_trials_times_their_gpus(tmp_path: Path) -> None:
    plan = Plan(small_space(budget={"gpu_hours": 1.5}, confirm=None), "small", tmp_path, Recorder())
    for gpus in (0.25, 0.5, 1.0):
        trial = plan.next()
        assert isinstance(trial, Trial)
        plan.finish(trial, 3600.0, state=State.FAILED, reason="no luck", gpus=gpus)
    assert plan.next() is FINISHED
    assert plan.ended == "budget of 1.5 GPU-hours used up after 3 trials"


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_time_alone_ends_with_the_last_combination(tmp_path: Path, sampler: str) -> None:
    depths = {DEPTH: {"type": "int", "low": 1, "high": 3}}
    plan, recorder = _timed(
        tmp_path, Clock(), parameters=depths, sampler={"name": sampler}, budget={"time": "5h"}, confirm=None
    )
    assert (plan.totals["search"], len(recorder.started), plan.ended) == (3, 3, None)
    if sampler == "grid":
        assert sorted(trial.params[DEPTH] for trial in recorder.started) == [1, 2, 3]


def test_values_that_contradict_each_other_only_together_fail_their_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of more combinations of extremes than can be tried beforehand, one may turn out not to go together.
    honest = SearchSpace.config

    def picky(self: SearchSpace, params: Any, repeat: int) -> Any:
        if params.get(DEPTH) == 3:
            raise UserError("parameters", "do not go together")
        return honest(self, params, repeat)

    monkeypatch.setattr(SearchSpace, "config", picky)
    plan, recorder = _run(tmp_path, budget={"trials": 30}, confirm=None)
    assert len(plan.search.study.trials) == 30
    for trial in recorder.started:
        failed = recorder.outcomes[trial.key].reason == "parameters: do not go together"
        assert failed == (trial.params[DEPTH] == 3)


def test_the_same_seed_gives_the_same_study_and_another_one_another(tmp_path: Path) -> None:
    def curves(seed: int) -> dict[str, Any]:
        return _run(tmp_path / str(seed), seed=seed)[1].curves

    assert curves(0) == curves(0)
    assert curves(0) != curves(1)


def test_an_observer_that_raises_stops_neither_the_study_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def trial_reported(self, *told: Any) -> None:
            raise OSError("disk full")

    recorder = Recorder()
    observers = Observers([Broken(), recorder])
    plan = Plan(small_space(budget={"trials": 3}, confirm=None), "small", tmp_path, observers)
    run_inline(plan, tmp_path)
    observers.close()
    assert len(recorder.outcomes) == 3
    assert recorder.closed
    assert observers.problems == ("Broken.trial_reported: OSError: disk full",)
    assert [record.message for record in caplog.records] == ["Broken failed in trial_reported; the study goes on"]


def test_records_that_cannot_be_kept_end_the_study_once_the_views_know(tmp_path: Path) -> None:
    class Full(Recorder):
        def trial_reported(self, trial: Trial, *told: Any) -> None:
            if trial.number == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    view, records = Recorder(), Full()
    observers = Observers([view], records)
    plan = Plan(small_space(confirm=None), "small", tmp_path, observers)
    with pytest.raises(OSError, match="No space left") as caught:
        run_inline(plan, tmp_path)
    assert observers.failure is caught.value
    plan.interrupt("interrupted")
    observers.close()
    assert list(view.outcomes) == ["search-0000", "search-0001"]
    assert [step for step, _ in view.curves["search-0001"]] == [10]
    assert list(records.outcomes) == ["search-0000"]  # told nothing more
    assert records.closed
    assert observers.problems == ()


def test_the_fake_has_something_to_find() -> None:
    assert accuracy({TEMPERATURE: 0.5, DEPTH: 2}, 60) > accuracy({TEMPERATURE: 2.0, DEPTH: 4}, 60)

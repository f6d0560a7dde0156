"""Searches with two objectives: the study that plain Optuna gives, and its Pareto front."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from ammpl.config import Scalar
from ammpl.errors import UserError
from ammpl.study.plan.search_plan import Plan
from ammpl.study.result.summary import Summary, summarize
from ammpl.study.space.samplers import TWO_OBJECTIVES
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import parse_study_space
from ammpl.study.trial import State, Trial
from tests.study.fakes import DEPTH, SAMPLERS, WIDTH, Recorder, run_inline, small_space, told

FIRST, SECOND = "validation/accuracy", "validation/new_accuracy"
PARAMETERS = {
    DEPTH: {"type": "int", "low": 1, "high": 4},
    WIDTH: {"type": "categorical", "choices": [4, 8, 16, 32]},
}
TWO: dict[str, Any] = {
    "parameters": PARAMETERS,
    "second_objective": {"metric": SECOND},
    "pruner": {"name": "none"},
    "confirm": None,
    "budget": {"trials": 16},
}


def _space(**changes: Any) -> SearchSpace:
    return small_space(**{**TWO, **changes})


def _values(params: Mapping[str, Scalar], repeat: int) -> tuple[float, float]:
    """Width helps the first and harms the second, depth has an optimum for both."""
    depth, width = int(params[DEPTH] or 0), int(params[WIDTH] or 0)
    shared = 0.5 - 0.05 * (depth - 2) ** 2 + 0.01 * repeat
    return shared + 0.004 * width, shared - 0.006 * width + (0.03 if depth == 3 else 0.0)


def _execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    for step in (30, 60):
        first, second = _values(trial.params, trial.repeat)
        yield step, {FIRST: first * step / 60, SECOND: second * step / 60}


def _run(folder: Path, execute: Any = _execute, **changes: Any) -> tuple[Plan, Recorder, Summary]:
    space, recorder = _space(**changes), Recorder()
    plan = Plan(space, space.name, folder, recorder)
    run_inline(plan, folder, execute)
    return plan, recorder, summarize(plan, folder, interrupted=False, seconds=1.0)


@pytest.mark.parametrize("sampler", TWO_OBJECTIVES)
@pytest.mark.parametrize("repeats", [[1], [1, 2]])
def test_the_study_is_that_of_plain_optuna(tmp_path: Path, sampler: str, repeats: list[int]) -> None:
    section, build = SAMPLERS[sampler]
    plan, _, _ = _run(tmp_path, sampler=section, repeats=repeats, seed=3)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = plan.space.suggest(trial)
        both = [_values(params, repeat) for repeat in repeats]
        return sum(first for first, _ in both) / len(both), sum(second for _, second in both) / len(both)

    plain = optuna.create_study(directions=["maximize", "maximize"], sampler=build(3), study_name="small")
    plain.optimize(objective, n_trials=plan.space.search_size)
    assert [t[1:3] for t in told(plan.search.study)] == [t[1:3] for t in told(plain)]
    for ours, theirs in zip(plan.search.study.trials, plain.trials, strict=True):
        assert ours.values == pytest.approx(theirs.values)


def test_the_front_is_what_none_beats_in_both(tmp_path: Path) -> None:
    plan, _, summary = _run(tmp_path, sampler={"name": "grid"}, repeats=[1, 2])
    assert len(plan.search.study.trials) == 16
    # Depth 2 is best for both but for the 3 that helps the second where width harms it least.
    front = [(row.params[DEPTH], row.params[WIDTH]) for row in summary.front]
    assert front == [(2, 32), (2, 16), (2, 8), (2, 4)]
    assert {row.candidate for row in summary.front} == {str(t.number) for t in plan.search.study.best_trials}
    cells = summary.front[0].cells
    assert cells[FIRST].values == pytest.approx((0.638, 0.648)) and cells[SECOND].mean == pytest.approx(0.323)
    assert summary.unshown is None and summary.has_result
    lines = summary.markdown().splitlines()
    assert lines[0] == f"| trial | n | {FIRST} | {SECOND} | parameters |"
    assert lines[2].endswith("| 2 | 0.6430 ± 0.0071 | 0.3230 ± 0.0071 | depth=2 width=32 |")
    (table,) = summary.tables()
    assert table.row_count == 4
    assert summary.flat_metrics()[f"front/{summary.front[0].candidate}/{SECOND}/mean"] == pytest.approx(0.323)
    assert json.loads(json.dumps(summary.as_dict()))["objectives"] == [FIRST, SECOND]


def test_a_minimized_second_objective(tmp_path: Path) -> None:
    second = {"metric": SECOND, "direction": "minimize"}
    plan, _, summary = _run(tmp_path, sampler={"name": "grid"}, second_objective=second)
    assert {row.candidate for row in summary.front} == {str(t.number) for t in plan.search.study.best_trials}
    assert (2, 32) in {(row.params[DEPTH], row.params[WIDTH]) for row in summary.front}


def test_a_trial_without_the_second_objective_failed(tmp_path: Path) -> None:
    def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        for step, metrics in _execute(trial, folder):
            yield step, {name: value for name, value in metrics.items() if name == FIRST or trial.params[WIDTH] != 4}

    plan, recorder, summary = _run(tmp_path, execute, sampler={"name": "grid"})
    failed = [outcome for outcome in recorder.outcomes.values() if outcome.state is State.FAILED]
    assert {outcome.reason for outcome in failed} == {f"the evaluation at step 60 has no finite '{SECOND}'"}
    assert len(failed) == 4 and {row.params[WIDTH] for row in summary.front} == {8, 16, 32}
    assert sum(trial.state.name == "FAIL" for trial in plan.search.study.trials) == 4


def test_the_resolved_space_keeps_both_objectives() -> None:
    space = _space()
    again = parse_study_space(space.resolved(), "study.yaml")
    assert isinstance(again, SearchSpace)
    assert (again.second_objective, again.directions) == (space.second_objective, ["maximize", "maximize"])


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"second_objective": {"metric": FIRST}}, "second_objective: must be another metric than the objective's"),
    ({"second_objective": {"metric": "test/accuracy"}}, "tuning never sees the test split"),
    ({"second_objective": {"metrik": "x"}}, "second_objective.metrik: unknown key. Fix: did you mean 'second_obj"),
    ({"sampler": {"name": "gp"}}, "sampler.name: 'gp' knows one objective, and there are two"),
    ({"pruner": {"name": "median"}}, "pruner.name: with two objectives nothing can be pruned"),
    ({"confirm": {"top": 1}}, "confirm: with two objectives there is a front, and no best configuration"),
    (
        {"budget": {"trials": 4, "patience": 2}},
        "budget.patience: is a rule for one objective, and there are two, got 2",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_what_two_objectives_do_not_go_with(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _space(**changes)
    assert message in str(caught.value)

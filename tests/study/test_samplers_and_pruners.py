"""The contract of every sampler and pruner: what plain Optuna would do, the same again for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from ammpl.errors import UserError
from ammpl.study.plan.search_plan import Plan
from ammpl.study.space import pruners, samplers
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.study.trial import State, Trial
from tests.study.fakes import (
    DEPTH,
    MULTIPLIER,
    PRUNERS,
    SAMPLERS,
    TEMPERATURE,
    WIDTH,
    Recorder,
    optimized,
    run_inline,
    small_space,
    told,
)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

STEPPED: dict[str, Any] = {
    TEMPERATURE: {"type": "float", "low": 0.1, "high": 1.9, "step": 0.3},
    DEPTH: {"type": "int", "low": 1, "high": 4},
    WIDTH: {"type": "categorical", "choices": [4, 8, 16]},
    MULTIPLIER: {"type": "float", "low": 5, "high": 50, "step": 15, "when": {WIDTH: [8, 16]}},
}
STEPPED_SIZE = 7 * 4 * (1 + 2 * 4)


def _space(sampler: str, pruner: str, **changes: Any) -> SearchSpace:
    searched = {"parameters": STEPPED} if sampler == "grid" else {}
    defaults = {"seed": 3, "budget": {"trials": 16 if sampler == "gp" else 40}, "confirm": None, **searched}
    return small_space(sampler=SAMPLERS[sampler][0], pruner=PRUNERS[pruner][0], **{**defaults, **changes})


def _run(space: SearchSpace, folder: Path) -> tuple[Plan, Recorder]:
    recorder = Recorder()
    plan = Plan(space, space.name, folder, recorder)
    run_inline(plan, folder)
    return plan, recorder


PAIRS = [(sampler, "median") for sampler in SAMPLERS] + [
    (sampler, pruner) for pruner in PRUNERS for sampler in ("tpe", "random") if pruner != "median"
]


def test_the_contract_covers_all() -> None:
    assert SAMPLERS.keys() == samplers.SAMPLERS.keys()
    assert PRUNERS.keys() == pruners.PRUNERS.keys()


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_one_at_a_time_the_search_is_what_plain_optuna_makes(tmp_path: Path, sampler: str, pruner: str) -> None:
    space = _space(sampler, pruner)
    plan, recorder = _run(space, tmp_path)
    expected = told(optimized(space, pruner, SAMPLERS[sampler][1](3)))
    assert told(plan.search.study) == expected
    assert len(expected) == space.budget.trials
    names = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED", "FAILED": "FAIL"}
    states = [outcome.state for outcome in recorder.outcomes.values()]
    assert [names[state] for state in states] == [state.name for _, state, *_ in expected]
    assert set(states) >= {State.COMPLETE} | ({State.PRUNED} if pruner != "none" else set())
    assert [trial.user_attrs["state"] for trial in plan.search.study.trials] == states
    for _, _, params, *_ in expected:  # the conditional parameter is there where its condition holds
        assert (MULTIPLIER in params) == (params[WIDTH] in (8, 16))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_study_and_another_one_another(tmp_path: Path, sampler: str) -> None:
    def study(seed: int) -> Any:
        return told(_run(_space(sampler, "hyperband", seed=seed, budget={"trials": 12}), tmp_path)[0].search.study)

    assert study(0) == study(0)
    assert study(0) != study(1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_several_open_trials_are_no_trouble(tmp_path: Path, sampler: str) -> None:
    space = _space(sampler, "none", budget={"trials": 20})
    plan = Plan(space, space.name, tmp_path, Recorder())
    while trials := [trial for _ in range(4) if isinstance(trial := plan.next(), Trial)]:
        for trial in reversed(trials):
            plan.report(trial, 10, {"validation/accuracy": 0.5 + 0.01 * trial.number})
            plan.finish(trial, 1.0)
    assert {t.state for t in plan.search.study.trials} == {optuna.trial.TrialState.COMPLETE}
    assert len(plan.search.study.trials) == 20


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_grid_is_searched_once_and_caps_the_budget(tmp_path: Path, at_once: int) -> None:
    space = _space("grid", "none", budget={"trials": 1000})
    assert space.search_size == STEPPED_SIZE
    plan = Plan(space, space.name, tmp_path, Recorder())
    assert plan.totals["search"] == STEPPED_SIZE
    for _ in range(STEPPED_SIZE // at_once):
        for trial in [plan.next() for _ in range(at_once)]:
            plan.report(trial, 10, {"validation/accuracy": 0.5})
            plan.finish(trial, 1.0)
    assert plan.next().name == "FINISHED"
    tried = [tuple(sorted(trial.params.items())) for trial, _ in plan.finished]
    assert len(tried) == len(set(tried)) == STEPPED_SIZE
    assert {trial.params[TEMPERATURE] for trial, _ in plan.finished} == {0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 1.9}


def test_a_smaller_budget_ends_a_grid_early() -> None:
    assert _space("grid", "none", budget={"trials": 7}).search_size == 7


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"sampler": {"name": "grid"}},
        f"s.yaml: parameters.{TEMPERATURE}: has no end of values, and the sampler 'grid' tries them all. "
        "Fix: give it a 'step', or list its values as 'choices' of a categorical",
    ),
    (
        {"sampler": {"name": "cmaes"}, "parameters": {DEPTH: STEPPED[DEPTH], WIDTH: STEPPED[WIDTH]}},
        f"s.yaml: sampler.name: 'cmaes' needs at least two float or int parameters without 'when', got ['{DEPTH}']"
        ". Fix: choose 'tpe', which models parameters of every kind",
    ),
    ({"sampler": {"name": "cma"}}, "s.yaml: sampler.name: is unknown, got 'cma'. Fix: did you mean 'cmaes'?"),
    ({"sampler": {"name": "nsga2", "population_size": 1}}, "s.yaml: sampler nsga2: population_size: must be "),
    ({"sampler": {"name": "qmc", "sequence": "sobel"}}, "s.yaml: sampler qmc: sequence: must be 'sobol' or"),
    ({"sampler": {"name": "gp", "startup": 3}}, "unknown key. Fix: did you mean 'startup_trials'?"),
    ({"pruner": {"name": "percentile", "percentile": 101}}, "must be less than or equal to 100, got 101"),
    ({"pruner": {"name": "threshold"}}, "s.yaml: pruner threshold: needs 'lower', 'upper' or both"),
    (
        {"pruner": {"name": "threshold", "lower": 2, "upper": 1}},
        "s.yaml: pruner threshold: 'lower' must not be above 'upper', got 2.0 > 1.0",
    ),
    (
        {"pruner": {"name": "successive_halving", "bootstrap_count": 1}},
        "s.yaml: pruner successive_halving: 'bootstrap_count' needs a number as 'min_resource'",
    ),
    (
        {"pruner": {"name": "successive_halving", "min_resource": 0}},
        "s.yaml: pruner successive_halving: 'min_resource' must be at least 1, got 0",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_options_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    raw = small_space().model_dump(mode="json", exclude={"parameters"})
    raw["parameters"] = {name: parameter.written() for name, parameter in small_space().parameters.items()}
    with pytest.raises(UserError) as caught:
        parse_space({**raw, **changes}, "s.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("pruner", pruners.PRUNERS)
def test_a_resolved_space_reads_back(sampler: str, pruner: str) -> None:
    space = _space(sampler, pruner)
    assert parse_space(space.resolved(), "study.yaml").sampler == space.sampler
    assert parse_space(space.resolved(), "study.yaml").pruner == space.pruner

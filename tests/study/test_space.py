from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ammpl.config import METHODS
from ammpl.errors import UserError
from ammpl.study.space.pruners import MedianPruner, PatientPruner
from ammpl.study.space.samplers import TpeSampler
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.study.space.space_file import parse_study_space, read_space
from ammpl.yaml_file import dump_yaml, parse_yaml
from tests.study.fakes import DEPTH, MULTIPLIER, TEMPERATURE, WIDTH, small_space

ROOT = Path(__file__).resolve().parents[2]

RAW: dict[str, Any] = {
    "version": 1,
    "name": "s",
    "fixed": {"data.shots": 4, "model.mask.scope": "task"},
    "parameters": {
        DEPTH: {"type": "int", "low": 1, "high": 4},
        TEMPERATURE: {"type": "float", "low": 0.1, "high": 2.0, "log": True},
    },
}


def _with(path: str, value: Any) -> dict[str, Any]:
    """Return RAW with one place changed; a path part may contain dots, so parts are joined by a slash."""
    raw = copy.deepcopy(RAW)
    place = raw
    *parents, leaf = path.split("/")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[leaf] = value
    return raw


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.name)
def test_every_saved_space_is_valid_and_reads_back_equal_when_resolved(path: Path) -> None:
    space = read_space(path)
    again = parse_study_space(parse_yaml(dump_yaml(space.resolved()), "study.yaml"), "study.yaml")
    assert again.resolved() == space.resolved()
    assert again.base == space.base


def test_resolved_has_every_default_and_gives_the_same_configurations() -> None:
    space = parse_space(RAW, "s.yaml")
    resolved = space.resolved()
    assert resolved["fixed"]["training.learning_rate"] == 0.01
    assert resolved["sampler"]["startup_trials"] == 10
    assert resolved["confirm"] == {"top": 3, "repeats": 3, "baselines": ["zero_shot", "coop"]}
    assert DEPTH not in resolved["fixed"]
    again = parse_space(resolved, "study.yaml")
    params = {DEPTH: 3, TEMPERATURE: 0.5}
    assert again.config(params, 7) == space.config(params, 7)
    assert again.baseline("coop", 7) == space.baseline("coop", 7)


def test_what_follows_from_a_searched_value_is_not_pinned() -> None:
    # CoOp's epochs depend on the shots: 50 at 1, 100 up to 4, 200 above.
    raw = _with("parameters", {"data.shots": {"type": "categorical", "choices": [1, 4, 16]}})
    raw.update(method="coop", fixed={})
    space = parse_space(raw, "s.yaml")
    assert "training.epochs" not in space.resolved()["fixed"]
    again = parse_space(space.resolved(), "study.yaml")
    for shots, epochs in ((1, 50), (4, 100), (16, 200)):
        assert again.config({"data.shots": shots}, 1).training.epochs == epochs
        assert again.config({"data.shots": shots}, 1) == space.config({"data.shots": shots}, 1)


def test_seeds_come_from_the_study_and_the_repeat_and_zero_is_a_seed() -> None:
    zero, one = small_space(seed=0), small_space(seed=1)
    assert zero.config({}, 2).seeds.data == one.config({}, 2).seeds.data == 2
    assert zero.config({}, 2).seeds.init != one.config({}, 2).seeds.init
    assert zero.config({}, 2).seeds != zero.config({}, 3).seeds
    assert zero.baseline("coop", 2).seeds == zero.config({}, 2).seeds


def test_fresh_repeats_are_the_next_ones_that_the_search_does_not_use() -> None:
    assert small_space(repeats=[1], confirm={"repeats": 3}).fresh_repeats() == [2, 3, 4]
    assert small_space(repeats=[2], confirm={"repeats": 3}).fresh_repeats() == [1, 3, 4]
    assert small_space(confirm=None).fresh_repeats() == []


def test_baselines_share_data_and_backbone_only() -> None:
    space = parse_space(_with("fixed/training.steps", 7), "s.yaml")
    coop = space.baseline("coop", 1)
    assert coop.data.shots == 4
    assert coop.training.epochs == 100
    assert space.baseline("zero_shot", 1).training.steps == 0


def test_every_method_can_be_a_baseline() -> None:
    space = parse_space(_with("confirm/baselines", list(METHODS)), "s.yaml")
    assert [space.baseline(method, 2).method for method in METHODS] == list(METHODS)


def test_suggest_is_define_by_run_in_the_order_of_the_file() -> None:
    space = small_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        params = space.suggest(trial)
        assert list(params) == [n for n in space.parameters if n in params]
        assert (MULTIPLIER in params) == (params[WIDTH] != 4)
        assert space.config(params, 1).flat().items() >= params.items()
    fixed = optuna.trial.FixedTrial({TEMPERATURE: 0.3, DEPTH: 2, WIDTH: 4})
    assert space.suggest(fixed) == {TEMPERATURE: 0.3, DEPTH: 2, WIDTH: 4}


def test_conditions_may_be_on_fixed_and_default_values_and_be_nested() -> None:
    raw = _with(
        "parameters",
        {
            "model.mask.kind": {"type": "categorical", "choices": ["learned", "none"]},
            TEMPERATURE: {"type": "float", "low": 0.1, "high": 2, "when": {"model.mask.kind": "learned"}},
            MULTIPLIER: {"type": "int", "low": 5, "high": 9, "when": {"model.mask.scope": "task", TEMPERATURE: 2.0}},
            DEPTH: {"type": "int", "low": 1, "high": 2, "when": {"data.task": "base_to_new"}},
        },
    )
    space = parse_space(raw, "s.yaml")
    suggest = lambda **values: space.suggest(optuna.trial.FixedTrial(values))  # noqa: E731
    assert suggest(**{"model.mask.kind": "none"}) == {"model.mask.kind": "none"}
    params = {"model.mask.kind": "learned", TEMPERATURE: 2.0, MULTIPLIER: 6}
    assert suggest(**params) == params


def test_step_and_log_reach_optuna() -> None:
    space = small_space(
        parameters={
            TEMPERATURE: {"type": "float", "low": 0.5, "high": 2.0, "step": 0.5},
            "training.batch_size": {"type": "int", "low": 8, "high": 32, "step": 8},
            WIDTH: {"type": "int", "low": 4, "high": 64, "log": True},
        }
    )
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    space.suggest(trial)
    assert trial.distributions == {
        TEMPERATURE: optuna.distributions.FloatDistribution(0.5, 2.0, step=0.5),
        "training.batch_size": optuna.distributions.IntDistribution(8, 32, step=8),
        WIDTH: optuna.distributions.IntDistribution(4, 64, log=True),
    }


def test_samplers_and_pruners_by_name_with_their_options() -> None:
    space = small_space(
        sampler={"name": "tpe", "startup_trials": 3, "multivariate": False},
        pruner={"name": "patient", "patience": 2, "inner": {"name": "median", "warmup_steps": 20}},
    )
    assert space.sampler == TpeSampler(startup_trials=3, multivariate=False)
    assert space.pruner == PatientPruner(patience=2, inner=MedianPruner(warmup_steps=20))


MISTAKES: list[tuple[str, Any, str | None]] = [
    ("parametres", {}, "s.yaml: parametres: unknown key. Fix: did you mean 'parameters'?"),
    ("version", 2, "s.yaml: version: must be 1, got 2"),
    ("name", "a/b", "s.yaml: name: String should match pattern"),
    ("method", "cop", "s.yaml: method: is unknown, got 'cop'. Fix: did you mean 'coop'?"),
    ("seed", -1, "s.yaml: seed: "),
    ("repeats", [], "s.yaml: repeats: must be a list of one or more numbers, each 0 or more, such as [1, 2, 3]"),
    ("repeats", [1, -2], "s.yaml: repeats: must be a list of one or more numbers"),
    ("repeats", [1, True], "s.yaml: repeats: must be a list of one or more numbers"),
    ("repeats", [1, 2, 1], "s.yaml: repeats: each repeat must be listed once, got [1, 2, 1]"),
    ("fixed", None, None),
    ("fixed/data.shot", 4, "s.yaml: fixed: data.shot: unknown name. Fix: did you mean 'data.shots'?"),
    ("fixed/data.shots", "4", "s.yaml: fixed: data.shots: must be a valid integer, got '4'"),
    ("fixed/data.shots", [4], "s.yaml: fixed.data.shots"),
    ("fixed/data.shots", 0, "s.yaml: fixed: data.shots: must be greater than or equal to 1, got 0"),
    ("fixed/method", "coop", "s.yaml: fixed: method: the method is the study's own key"),
    ("fixed/seeds.init", 1, "s.yaml: fixed: seeds.init: seeds come from the study's 'seed' and 'repeats'"),
    (f"fixed/{DEPTH}", 1, f"s.yaml: {DEPTH}: must not be both fixed and searched"),
    ("parameters", {}, "s.yaml: parameters: must name at least one parameter to search"),
    ("parameters", [1], "s.yaml: parameters: must be a valid dictionary, got [1]"),
    ("parameters/model.mask.temprature", {"type": "float", "low": 1, "high": 2}, "did you mean 'model.mask.temp"),
    (f"parameters/{DEPTH}", 3, f"s.yaml: parameters.{DEPTH}: must be a mapping with a 'type', got 3"),
    (f"parameters/{DEPTH}/type", "integer", f"s.yaml: parameters.{DEPTH}.type: is unknown, got 'integer'"),
    (f"parameters/{DEPTH}/lo", 3, f"s.yaml: parameters.{DEPTH}: lo: unknown key. Fix: did you mean 'low'?"),
    (f"parameters/{DEPTH}/low", 1.5, f"s.yaml: parameters.{DEPTH}: low: must be a valid integer, got 1.5"),
    (f"parameters/{DEPTH}/low", 4, "'low' must be below 'high', got 4 and 4 (a constant belongs in 'fixed')"),
    (f"parameters/{DEPTH}/step", 2, "'high' must be 'low' plus a multiple of 'step', got 1 to 4 by 2"),
    (f"parameters/{DEPTH}/step", 0, "'step' must be above 0, got 0"),
    (f"parameters/{TEMPERATURE}/step", 0.1, "'step' and 'log: true' exclude each other"),
    (f"parameters/{TEMPERATURE}/low", 0, "'log: true' needs 'low' above 0, got 0"),
    (f"parameters/{TEMPERATURE}/high", float("nan"), "high: must be a finite number"),
    (f"parameters/{WIDTH}", {"type": "categorical", "choices": [4]}, "needs at least two choices"),
    (f"parameters/{WIDTH}", {"type": "categorical", "choices": [4, 8, 4]}, "4 is listed twice"),
    (
        f"parameters/{WIDTH}",
        {"type": "categorical", "choices": [4, "8"]},
        f"{WIDTH} = '8': model.interaction.width: must be a valid integer, got '8'",
    ),
    (f"parameters/{DEPTH}/low", -1, f"s.yaml: parameters, at {DEPTH} = -1, {TEMPERATURE} = 0.1: {DEPTH}: must be"),
    (f"parameters/{TEMPERATURE}/when", {"model.mask.knd": "learned"}, "did you mean 'model.mask.kind'?"),
    (f"parameters/{TEMPERATURE}/when", {"model.mask.kind": "lerned"}, "must be 'learned', 'binary', 'random' or"),
    (f"parameters/{TEMPERATURE}/when", {"model.mask.kind": []}, "the condition can never hold"),
    (
        f"parameters/{TEMPERATURE}/when",
        {DEPTH: 9},
        "can never hold: the parameter does not take this value, got 9",
    ),
    (f"parameters/{DEPTH}/when", {TEMPERATURE: 0.5}, "is searched further down. Fix: a condition looks back"),
    (f"parameters/{DEPTH}/when", {DEPTH: 1}, "is searched further down"),
    ("objective", {"metric": "test/accuracy"}, "tuning never sees the test split: choose a validation metric"),
    (
        "objective",
        {"direction": "max"},
        "s.yaml: objective.direction: must be 'maximize' or 'minimize', got 'max'",
    ),
    ("sampler", "tpe", "s.yaml: sampler: must be a mapping with a 'name', got 'tpe'. Fix: {name: tpe}"),
    ("sampler", {"name": "tp"}, "s.yaml: sampler.name: is unknown, got 'tp'. Fix: did you mean 'tpe'?"),
    ("sampler", {"name": "tpe", "startup_trails": 3}, "did you mean 'startup_trials'?"),
    ("sampler", {"name": "tpe", "group": True, "multivariate": False}, "'group: true' needs 'multivariate: true'"),
    ("pruner", {"name": ["median"]}, "s.yaml: pruner.name: is unknown, got ['median']"),
    ("pruner", {"name": "median", "startup_trials": -1}, "s.yaml: pruner median: startup_trials: must be greater"),
    (
        "pruner",
        {"name": "patient", "inner": {"name": "none"}},
        "s.yaml: pruner.inner.name: is unknown, got 'none'",
    ),
    ("pruner", {"name": "hyperband", "max_resource": 1, "min_resource": 2}, "'max_resource' must be at least"),
    ("budget", {"trials": 0}, "s.yaml: budget.trials: must be greater than or equal to 1, got 0"),
    ("budget", {"trails": 3}, "s.yaml: budget.trails: unknown key. Fix: did you mean 'budget.trials'?"),
    (
        "budget",
        {"time": "ten minutes"},
        "s.yaml: budget.time: must be a time above 0, in hours, minutes and seconds, such as 90s, 10m, 2h or "
        "1h30m, got 'ten minutes'",
    ),
    ("budget", {"time": 600}, "s.yaml: budget.time: must be a time above 0"),
    ("budget", {"trial_time": "soon"}, "s.yaml: budget.trial_time: must be a time above 0"),
    ("budget", {"gpu_hours": 0}, "s.yaml: budget.gpu_hours: must be greater than 0, got 0"),
    ("budget", {"target": "high"}, "s.yaml: budget.target: must be a valid number, got 'high'"),
    ("budget", {"patience": 0}, "s.yaml: budget.patience: must be greater than or equal to 1, got 0"),
    ("budget", {"failures": 0}, "s.yaml: budget.failures: must be greater than or equal to 1, got 0"),
    ("budget", {"time": "0h0m"}, "such as 90s, 10m, 2h or 1h30m, got '0h0m'"),
    ("budget", {"time": "1m1h"}, "such as 90s, 10m, 2h or 1h30m, got '1m1h'"),
    ("confirm", {"top": 0}, "s.yaml: confirm.top: must be greater than or equal to 1, got 0"),
    ("confirm", {"baselines": ["cop"]}, "s.yaml: confirm.baselines: 'cop' is no method (did you mean 'coop'?)"),
    ("confirm", {"baselines": ["coop", "coop"]}, "each baseline must be named once"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_mistakes_are_named_with_file_field_rule_and_fix(path: str, value: Any, message: str | None) -> None:
    if message is None:
        parse_space(_with(path, value), "s.yaml")
        return
    with pytest.raises(UserError) as caught:
        parse_space(_with(path, value), "s.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("s.yaml: ")


@pytest.mark.parametrize("missing", ["version", "name", "parameters"])
def test_what_is_required(missing: str) -> None:
    raw = {key: value for key, value in RAW.items() if key != missing}
    with pytest.raises(UserError, match=f"s.yaml: {missing}: is required"):
        parse_space(raw, "s.yaml")


def test_a_combination_that_cannot_be_built_is_found_before_the_study() -> None:
    raw = _with(
        "parameters",
        {
            "model.text.context": {"type": "categorical", "choices": ["shared", "fixed"]},
            "model.interaction.direction": {"type": "categorical", "choices": ["none", "both"]},
        },
    )
    with pytest.raises(UserError, match=r"at model.text.context = 'fixed', model.interaction.direction = 'both'"):
        parse_space(raw, "s.yaml")
    raw["parameters"]["model.interaction.direction"]["when"] = {"model.text.context": "shared"}
    raw["fixed"]["model.interaction.direction"] = "none"
    del raw["parameters"]["model.interaction.direction"]
    parse_space(raw, "s.yaml")


def test_many_parameters_are_checked_by_sample_in_reasonable_time() -> None:
    names = [
        "model.mask.temperature", "model.mask.initial_probability", "model.mask.keep_rate", "training.learning_rate",
        "training.mask_lr_multiplier", "training.weight_decay", "model.interaction.strength",
    ]  # fmt: skip
    parameters: dict[str, Any] = {name: {"type": "float", "low": 0.1, "high": 0.9} for name in names}
    parameters |= {n: {"type": "int", "low": 1, "high": 9} for n in (DEPTH, WIDTH, "model.mask.samples", "data.shots")}
    parameters["model.mask.kind"] = {"type": "categorical", "choices": ["learned", "random"]}
    fixed = {"model.mask.evaluation": "samples"}
    parse_space(_with("parameters", parameters) | {"fixed": fixed}, "s.yaml")
    parameters["model.mask.keep_rate"]["high"] = 1.5
    with pytest.raises(UserError, match=r"model.mask.keep_rate: must be less than or equal to 1, got 1.5"):
        parse_space(_with("parameters", parameters) | {"fixed": fixed}, "s.yaml")


@pytest.mark.parametrize(
    ("budget", "size", "seconds"),
    [
        ({}, 24, None),
        ({"trials": 7}, 7, None),
        ({"trials": 7, "time": "90s"}, 7, 90),
        ({"time": "10m"}, None, 600),
        ({"time": "2h"}, None, 7200),
        ({"time": "1h30m5s"}, None, 5405),
        ({"gpu_hours": 1.5}, None, None),
        ({"patience": 10}, None, None),
        ({"target": 0.9, "failures": 3, "trial_time": "30m"}, 24, None),
    ],
)
def test_budgets(budget: dict[str, Any], size: int | None, seconds: float | None) -> None:
    space = small_space(budget=budget)
    assert (space.search_size, space.budget.seconds) == (size, seconds)
    assert parse_space(space.resolved(), "study.yaml").budget == space.budget


def test_few_configurations_reach_every_extreme() -> None:
    space = small_space()
    values = [config.flat() for config in space.extreme_configs()]
    assert len(values) == 3
    for name, parameter in space.parameters.items():
        assert {value[name] for value in values} >= set(parameter.extremes()) - {5.0}  # 5.0 waits for a wider width
    assert {value["seeds.data"] for value in values} == {1}


def test_fixed_values_replaced_from_outside() -> None:
    space = small_space().with_fixed({"training.steps": 7, "data.shots": 2}, "command line")
    assert space.base.training.steps == 7
    assert space.baseline("coop", 1).data.shots == 2
    with pytest.raises(UserError, match=r"^command line: model.padding.depth: is searched by this space"):
        small_space().with_fixed({DEPTH: 1}, "command line")
    with pytest.raises(UserError, match=r"^command line: training.step: unknown name. Fix: did you mean 'training.st"):
        small_space().with_fixed({"training.step": 1}, "command line")
    with pytest.raises(UserError, match=r"^command line: data.shots: must be greater than or equal to 1, got 0"):
        small_space().with_fixed({"data.shots": 0}, "command line")


@pytest.mark.parametrize("raw", [None, [], "text", 3, {}, {1: 2}])
def test_files_that_are_no_space(raw: Any) -> None:
    with pytest.raises(UserError, match=r"^s.yaml: "):
        parse_space(raw, "s.yaml")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_places = ["version", "name", "method", "seed", "repeats", "fixed", "parameters", "objective", "sampler", "pruner"]
_places += ["budget", "confirm", "description", f"parameters/{DEPTH}", f"parameters/{DEPTH}/low", "fixed/data.shots"]
_places += [f"parameters/{TEMPERATURE}/when", "sampler/name", "pruner/name", "budget/trials", "confirm/baselines"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(place=st.sampled_from(_places), value=_json)
def test_nothing_in_a_space_file_crashes_the_parser(place: str, value: Any) -> None:
    try:
        assert isinstance(parse_space(_with(place, value), "s.yaml"), SearchSpace)
    except UserError as error:
        assert str(error).startswith("s.yaml: ")

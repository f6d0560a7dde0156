"""What a later version of a study searches, knows, confirms and tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.plan.extension import Extension, draw_alike, extended_space, version_seed
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.event_log import History, Line
from ammpl.study.result.summary import summarize
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.space.samplers import SAMPLERS as NAMES
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.trial import Trial
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import DEPTH, SAMPLERS, TEMPERATURE, WIDTH, Recorder, execute, run_inline, small_space

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

WIDE = {
    TEMPERATURE: {"type": "float", "low": 0.1, "high": 1.9, "step": 0.3},
    DEPTH: {"type": "int", "low": 1, "high": 4},
    WIDTH: {"type": "categorical", "choices": [8, 16, 32]},
}
NARROW = {**WIDE, DEPTH: {"type": "int", "low": 2, "high": 3}, WIDTH: {"type": "categorical", "choices": [16, 8]}}
ABLATION = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "fixed": {"model.mask.scope": "task", "training.steps": 30},
    "reference": "learned",
    "variants": {"none": {"model.mask.kind": "none"}, "learned": {}},
    "repeats": [1, 3],
}


def _space(trials: int, **changes: Any) -> SearchSpace:
    defaults = {"parameters": WIDE, "seed": 3, "confirm": {"top": 2, "repeats": 2, "baselines": ["coop"]}}
    return small_space(**{**defaults, "budget": {"trials": trials}, **changes})


def _extended(folder: Path, *spaces: SearchSpace) -> tuple[Plan, Recorder]:
    recorder = Recorder()
    plan = Plan(spaces[0], "small", folder, recorder)
    run_inline(plan, folder)
    for space in spaces[1:]:
        plan.check_extension(space)
        plan.extend(space)
        run_inline(plan, folder)
    return plan, recorder


@pytest.mark.parametrize("sampler", NAMES)
def test_another_space_begins_with_what_it_can_give(tmp_path: Path, sampler: str) -> None:
    first = _space(9, sampler=SAMPLERS[sampler][0])
    second = _space(13, sampler=SAMPLERS[sampler][0], parameters=NARROW)
    plan, recorder = _extended(tmp_path, first, second)
    searched = [trial for trial in recorder.started if trial.phase == "search"]
    assert [trial.key for trial in searched] == [f"search-{number:04d}" for number in range(13)]
    assert all(t.params[DEPTH] in (2, 3) and t.params[WIDTH] in (8, 16) for t in searched[9:])
    inside = [t for t in searched[:9] if t.params[DEPTH] in (2, 3) and t.params[WIDTH] in (8, 16)]
    assert 0 < len(inside) < 9
    assert plan.knowledge == [(2, len(inside), 9)]

    # Optuna knows exactly those, as trials of the new space with their curves and values.
    before = dict(plan.searches[0].own)
    known = plan.search.study.trials[: len(inside)]
    assert [told.user_attrs["key"] for told in known] == [trial.key for trial in inside]
    for trial, told in zip(inside, known, strict=True):
        then = before[trial.number]  # type: ignore[index]
        assert (told.state, told.values, told.params) == (then.state, then.values, dict(trial.params))
        assert told.intermediate_values == then.intermediate_values
        assert told.distributions == plan.search.study.trials[-1].distributions
    assert [number for number, _ in plan.search.own] == list(range(9, 13))
    if sampler == "grid":  # which tries nothing twice
        tried = [repr(trial.params) for trial in (*inside, *searched[9:])]
        assert len(set(tried)) == len(tried)

    # Candidates are of the present space.
    summary = summarize(plan, tmp_path, interrupted=False, seconds=0.0)
    assert all(trial.params[DEPTH] in (2, 3) for trial, _ in plan.best(99))
    assert plan.winner is not None and f"can give {len(inside)} of the 9 configurations" in summary.notes[0]


def test_a_parameter_that_was_fixed_and_one_that_is_no_longer_searched(tmp_path: Path) -> None:
    fixed = {"model.mask.scope": "task", "training.steps": 60}
    first = _space(8, sampler={"name": "random"}, fixed={**fixed, "training.mask_lr_multiplier": 20.0})
    multiplier = {"type": "float", "low": 5, "high": 50}
    parameters = {"training.mask_lr_multiplier": multiplier, TEMPERATURE: WIDE[TEMPERATURE], WIDTH: WIDE[WIDTH]}
    second = _space(12, sampler={"name": "random"}, fixed={**fixed, DEPTH: 2}, parameters=parameters)
    plan, _ = _extended(tmp_path, first, second)
    known = plan.search.study.trials[: plan.knowledge[0][1]]
    assert known
    assert {told.params["training.mask_lr_multiplier"] for told in known} == {20.0}
    for trial, _ in plan.finished:
        if trial.phase == "confirm" and trial.params:
            assert trial.config.model.padding.depth == trial.params.get(DEPTH, 2)
            assert trial.config.training.mask_lr_multiplier == trial.params.get("training.mask_lr_multiplier", 20.0)


def test_what_was_confirmed_and_tested_is_not_run_again(tmp_path: Path) -> None:
    plan, recorder = _extended(tmp_path, _space(6), _space(12), _space(13))
    keys = [trial.key for trial in recorder.started]
    assert len(keys) == len(set(keys))
    confirmed = {trial.candidate for trial in recorder.started if trial.phase == "confirm" and trial.params}
    assert len(confirmed) > 2
    means = {
        candidate: sum(outcome.value or 0.0 for _, outcome in plan.outcomes("confirm", candidate)) / 2
        for candidate in confirmed
    }
    assert plan.winner == max(means, key=means.__getitem__)  # whichever version confirmed it
    tested = {trial.candidate for trial in recorder.started if trial.phase == "test" and trial.params}
    assert plan.test_openings == len(tested) == 2
    summary = summarize(plan, tmp_path, interrupted=False, seconds=0.0)
    assert summary.test_openings == 2
    assert "the test split was opened 2 times" in summary.notes[0]
    assert plan.totals["confirm"] is not None and plan.totals["confirm"] >= sum(summary.counts["confirm"].values())


@pytest.mark.parametrize(("first", "trials", "looks"), [(12, 13, 1), (6, 12, 2)])
def test_a_look_that_an_extension_comes_between_is_one_if_the_winner_stays(
    tmp_path: Path, first: int, trials: int, looks: int
) -> None:
    def cut(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        if trial.phase == "test" and plan.outcomes("test", trial.candidate):  # the second of its repeats
            raise KeyboardInterrupt
        yield from execute(trial, folder)

    plan = Plan(_space(first), "small", tmp_path, Recorder())
    with pytest.raises(KeyboardInterrupt):
        run_inline(plan, tmp_path, cut)
    winner = plan.winner
    assert plan.test_openings == 1
    plan.extend(_space(trials))
    run_inline(plan, tmp_path)
    assert plan.test_openings == len({winner, plan.winner}) == looks


def test_the_winner_of_before_needs_no_further_look(tmp_path: Path) -> None:
    plan, _ = _extended(tmp_path, _space(12), _space(13))
    assert plan.test_openings == 1
    assert summarize(plan, tmp_path, interrupted=False, seconds=0.0).notes == ()


def test_a_grid_that_is_used_up_is_refused(tmp_path: Path) -> None:
    few = {WIDTH: WIDE[WIDTH], DEPTH: NARROW[DEPTH]}
    plan, _ = _extended(tmp_path, _space(6, sampler={"name": "grid"}, parameters=few))
    with pytest.raises(UserError, match="all 6 configurations of the space have been tried"):
        plan.check_extension(_space(9, sampler={"name": "grid"}, parameters=few))
    wider = {WIDTH: WIDE[WIDTH], DEPTH: WIDE[DEPTH]}
    plan.check_extension(_space(20, sampler={"name": "grid"}, parameters=wider))
    plan.extend(_space(20, sampler={"name": "grid"}, parameters=wider))
    run_inline(plan, tmp_path)
    assert len([t for t, _ in plan.finished if t.phase == "search"]) == 12  # the whole of the wider one, once


def test_an_open_search_keeps_its_space(tmp_path: Path) -> None:
    plan = Plan(_space(6), "small", tmp_path, Recorder())
    plan.next()
    plan.check_extension(_space(8))
    with pytest.raises(UserError, match=r"--space: cannot change while configurations of the search have not ended"):
        plan.check_extension(_space(8, parameters=NARROW))


def _history(begun: int, seconds: float, phase: str = "search") -> History:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    began = {"event": "started", "phase": phase, "time": at.isoformat()}
    events: list[dict[str, Any]] = [{"event": "session", "time": at.isoformat()}]
    events += [{**began, "key": str(number), "number": number} for number in range(begun)]
    events.append({"event": "reported", "key": "0", "time": (at + timedelta(seconds=seconds)).isoformat()})
    return History(tuple(Line(n, event) for n, event in enumerate(events, 1)))


@pytest.mark.parametrize(
    ("budget", "begun", "seconds", "more", "expected"),
    [
        ({"trials": 10}, 10, 60, Extension(trials=5), (15, None)),
        ({"trials": 10}, 4, 60, Extension(trials=5), (15, None)),  # stopped before
        ({"trials": 10}, 10, 60, Extension(seconds=30), (None, "0h1m30s")),
        ({"trials": 10}, 4, 60, Extension(seconds=30), (10, "0h1m30s")),
        ({"time": "1h"}, 7, 4000.5, Extension(trials=5, seconds=3600), (12, "2h6m41s")),
        ({"time": "2h"}, 7, 600, Extension(seconds=3600), (None, "3h0m0s")),
        ({"time": "2h"}, 7, 600, Extension(trials=3), (10, "2h0m0s")),
    ],
)
def test_how_a_budget_grows(
    budget: dict[str, Any], begun: int, seconds: float, more: Extension, expected: tuple[int | None, str | None]
) -> None:
    new = extended_space(_space(1, budget=budget), _history(begun, seconds), more)
    assert (new.budget.trials, new.budget.time) == expected
    assert isinstance(new, SearchSpace) and draw_alike(new, _space(1))


def test_repeats_of_an_ablation_grow_by_unused_numbers() -> None:
    masks = parse_ablation(ABLATION, "masks.yaml")
    assert extended_space(masks, _history(4, 60, "ablation"), Extension(repeats=3)).repeats == (1, 3, 2, 4, 5)


@pytest.mark.parametrize(
    ("old", "more", "text"),
    [
        (ABLATION, {"trials": 5}, r"--trials: this ablation has no budget of trials: .* Fix: --repeats \+5"),
        (ABLATION, {"space": {}}, "--space: belongs to a search, and this study is an ablation"),
        ({}, {"repeats": 5}, r"--repeats: belongs to an ablation"),
        ({"budget": {"time": "1m"}}, {"trials": 5}, r"--trials \+5: none could begin: .* of 1m is used up"),
        ({}, {"space": ABLATION}, "--space: is an ablation, and this study is a search"),
        ({}, {"space": {"name": "other"}}, r"--space: name: must stay 'small', got 'other'"),
        ({}, {"space": {"seed": 4}}, r"--space: seed: must stay 0, got 4"),
        ({}, {"space": {"repeats": [2]}}, r"--space: repeats: must stay \(1,\)"),
        ({}, {"space": {"fixed": {"data.shots": 4, "model.mask.scope": "task"}}}, r"data\.shots: must stay 16, got 4"),
        ({}, {"space": {"parameters": {"data.shots": WIDE[DEPTH]}}}, r"data\.shots: must stay fixed or searched"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_study_is_refused(old: dict[str, Any], more: dict[str, Any], text: str) -> None:
    def read(raw: dict[str, Any]) -> Any:
        return parse_ablation(raw, "masks.yaml") if "kind" in raw else small_space(**raw)

    if "space" in more:
        more = {**more, "space": read(more["space"])}
    with pytest.raises(UserError, match=text):
        extended_space(read(old), _history(12, 60), Extension(**more))


def test_another_space_has_another_seed() -> None:
    assert len({version_seed(seed, version) for seed in range(3) for version in (2, 3)}) == 6
    assert not draw_alike(_space(9), _space(9, parameters=dict(reversed(WIDE.items()))))
    assert not draw_alike(_space(9), _space(9, pruner={"name": "none"}))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], r"extend: needs to know by how much"),
        (["--trials", "50"], r"--trials: must say how much more, with a plus, got '50'\. Fix: --trials \+50"),
        (["--trials", "+0"], "must say how much more"),
        (["--trials", "++5"], "must say how much more"),
        (["--time-budget", "+5"], r"--time-budget: must say how much more, .* Fix: --time-budget \+1h30m"),
        (["--repeats", "+a"], "--repeats: must say how much more"),
        (["--trials", "+5", "--space", "missing.yaml"], "missing.yaml"),
    ],
)
def test_flags_of_an_extension(
    tmp_path: Path, flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(dump_yaml(_space(6).resolved()))
    assert cli.main(["extend", str(tmp_path), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(text, captured.err), captured.err


def test_trials_of_the_made_up_training_go_on(tmp_path: Path) -> None:
    """An extension of a study that stopped itself goes on."""

    def fails(trial: Any, folder: Path) -> Any:
        if trial.number is not None and trial.number < 5:
            raise RuntimeError("no data")
        yield from execute(trial, folder)

    plan = Plan(_space(8, budget={"trials": 8, "failures": 5}), "small", tmp_path, Recorder())
    run_inline(plan, tmp_path, fails)
    assert plan.stopped is not None
    plan.extend(_space(12))
    assert plan.stopped is None
    run_inline(plan, tmp_path, fails)
    assert len([trial for trial, _ in plan.finished if trial.phase == "search"]) == 12
    assert plan.winner is not None

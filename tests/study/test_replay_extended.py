"""An extended study is the one that was larger from the start, and is brought back by its log like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ammpl.study.plan.base_plan import FINISHED
from ammpl.study.plan.replay import begin_version
from ammpl.study.plan.search_plan import Plan
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.space.space_file import StudySpace
from tests.study.fakes import (
    SAMPLERS,
    TEMPERATURE,
    run_inline,
    told,
)
from tests.study.replaying import (
    ABLATION,
    FEW,
    STEPPED,
    Session,
    check_every_cut,
    events_of,
    open_session,
    run_for,
    run_session,
    space_of,
)

NARROW = {**FEW, TEMPERATURE: {"type": "float", "low": 0.7, "high": 1.3, "step": 0.3}}


def larger(trials: int, **changes: Any) -> StudySpace:
    return space_of("tpe", "median", **{"budget": {"trials": trials}, "parameters": STEPPED, **changes})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_trials_are_those_of_a_study_that_had_them_from_the_start(tmp_path: Path, sampler: str) -> None:
    whole = run_session(space_of(sampler, "median", budget={"trials": 14}), tmp_path / "whole")
    extended = run_session(
        space_of(sampler, "median", budget={"trials": 6}),
        tmp_path / "extended",
        *(space_of(sampler, "median", budget={"trials": trials}) for trials in (9, 14)),
    )
    assert isinstance(whole.plan, Plan) and isinstance(extended.plan, Plan)
    assert repr(told(extended.plan.search.study)) == repr(told(whole.plan.search.study))
    assert len(extended.plan.searches) == 1

    def searched(session: Session) -> list[Any]:
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
    first = space_of(sampler, "median", budget={"trials": 5}, parameters=STEPPED)
    second = space_of(sampler, "median", budget={"trials": 8}, parameters=STEPPED)
    third = space_of(sampler, "median", budget={"trials": 12}, parameters=NARROW)
    result = check_every_cut(first, tmp_path, stride=3 if sampler == "tpe" else 11, later=[second, third])
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
    result = check_every_cut(parse_ablation(ABLATION, "masks.yaml"), tmp_path, later=[more])
    assert len([row for row in result["trials"] if row["phase"] == "ablation"]) == 8
    assert result["summary"]["test_openings"] == 2
    assert len([row for row in result["trials"] if row["phase"] == "test"]) == 7  # one failed


def test_a_study_that_is_extended_before_its_end_leaves_nothing_out(tmp_path: Path) -> None:
    whole = run_session(larger(12), tmp_path / "whole")
    run_session(larger(8), tmp_path / "first")
    reports = sum(event["event"] == "reported" for event in events_of(tmp_path / "first"))
    for evaluations in (1, 13, reports - 12, reports - 1):  # in the search, the confirmation, the test
        folder = tmp_path / str(evaluations)
        session = open_session(larger(8), folder)
        assert not run_for(session, folder, evaluations)
        session.records.log.close()
        session = open_session(larger(8), folder, larger(12))
        begin_version(session.plan, session.records.log, folder, larger(12))
        run_inline(session.plan, folder, session.runs)
        session.records.close()
        assert isinstance(whole.plan, Plan) and isinstance(session.plan, Plan)
        assert repr(told(session.plan.search.study)) == repr(told(whole.plan.search.study))
        again = open_session(larger(8), folder, larger(12))
        assert again.plan.finished == session.plan.finished
        assert again.plan.next() is FINISHED

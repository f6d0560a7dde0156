"""Studies that start from another one's winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from ammpl import cli
from ammpl.errors import UserError
from ammpl.report.results import read_study
from ammpl.study.plan.search_plan import Plan
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.start import from_best
from ammpl.yaml_file import parse_yaml
from tests.report.studies import ablation, make
from tests.study.fakes import DEPTH, MULTIPLIER, TEMPERATURE, WIDTH, Recorder, objective, run_inline, small_space, told


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("start") / "small", small_space())


def winner(study: Path) -> dict[str, Any]:
    return dict(read_study(study).rows[0].params)


def test_the_search_goes_over_the_winner_first(study: Path, tmp_path: Path) -> None:
    space = from_best(study, None, ())
    assert isinstance(space, SearchSpace)
    recorder = Recorder()
    run_inline(Plan(space, space.name, tmp_path, recorder), tmp_path)
    first = recorder.started[0]
    assert dict(first.params) == winner(study)
    assert dict(recorder.started[1].params) != winner(study)


def test_it_is_the_study_that_optuna_makes_of_an_enqueued_trial(tmp_path: Path) -> None:
    first = {TEMPERATURE: 0.4, DEPTH: 2, WIDTH: 4}
    space = small_space(first=first, confirm=None, pruner={"name": "none"})
    plan = Plan(space, space.name, tmp_path, Recorder())
    run_inline(plan, tmp_path)
    sampler, pruner = space.sampler.build(space.seed), optuna.pruners.NopPruner()
    plain = optuna.create_study(study_name="small", direction="maximize", sampler=sampler, pruner=pruner)
    plain.enqueue_trial(first)
    plain.optimize(objective(space), n_trials=12, catch=(RuntimeError,))
    assert told(plan.search.study) == told(plain)
    assert plan.search.study.trials[0].params == first


def test_what_is_set_is_no_longer_searched(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--from",
        str(study),
        "--best",
        "--set",
        f"{DEPTH}=3",
        "--set",
        "training.steps=2",
        "--dry-run",
        "--full",
        "--quiet",
    ]
    assert cli.main(command) == 0
    resolved = parse_yaml(capsys.readouterr().out, "out")
    assert DEPTH not in resolved["parameters"]
    assert resolved["fixed"][DEPTH] == 3
    assert resolved["fixed"]["training.steps"] == 2
    assert resolved["first"][TEMPERATURE] == winner(study)[TEMPERATURE]


def test_an_ablation_around_the_winner(study: Path) -> None:
    space = from_best(study, ablation(fixed={"data.shots": 4, "training.steps": 5}), ())
    config = space.config("learned", 1).flat()
    assert {name: config[name] for name in winner(study)} == winner(study)
    assert (config["data.shots"], config["training.steps"]) == (4, 60)  # the data its own, the training the winner's
    assert space.config("none", 1).model.mask.kind == "none"


def test_of_another_space_only_values_that_it_allows_are_tried(study: Path) -> None:
    other = small_space(
        parameters={
            TEMPERATURE: {"type": "float", "low": 50.0, "high": 60.0},
            DEPTH: {"type": "int", "low": 1, "high": 4},
        }
    )
    space = from_best(study, other, ())
    assert isinstance(space, SearchSpace)
    assert space.first == {DEPTH: winner(study)[DEPTH]}
    assert space.fixed[WIDTH] == winner(study)[WIDTH]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"model.padding.deph": 1},
        "small.yaml: first.model.padding.deph: is not searched. Fix: did you mean 'model.pad",
    ),
    ({DEPTH: 9}, "small.yaml: first.model.padding.depth: the parameter does not take this value, got 9"),
]


@pytest.mark.parametrize(("first", "message"), MISTAKES)
def test_first_values_are_checked(first: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        small_space(first=first)
    assert str(error.value).startswith(message)


def test_what_cannot_be_started_from(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(text: str, *arguments: object) -> None:
        assert cli.main([*map(str, arguments), "--dry-run"]) == cli.EXIT_USER_ERROR
        assert text in capsys.readouterr().err

    refused("--from: and --best belong together. Fix: --from STUDY --best", "--from", study)
    refused("--from: and --best belong together", "--best")
    refused("is not a folder", "--from", tmp_path / "none", "--best")
    refused(
        "is an ablation, which chooses nothing", "--from", make(tmp_path / "abl", ablation(repeats=[1, 2])), "--best"
    )
    names = [part for name in (TEMPERATURE, DEPTH, WIDTH, MULTIPLIER) for part in ("--set", f"{name}=1")]
    refused("parameters: must name at least one parameter to search", "--from", study, "--best", *names)
    broken = make(tmp_path / "broken", small_space())
    (broken / "summary.json").unlink()
    refused("has no winner", "--from", broken, "--best")

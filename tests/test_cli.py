from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ammpl
from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.result.summary import Cell, Row, Summary
from ammpl.study.settings import study_space
from ammpl.study.space.search_space import load_space
from ammpl.yaml_file import parse_yaml
from tests.command_line import SPACE


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    return Path("space.yaml")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command line hands to run_study, which does not run."""
    from ammpl.study import study

    told: list[Any] = []

    def run(space: Any, options: Any) -> Summary:
        told.append((space, options))
        return SUMMARY

    monkeypatch.setattr(study, "run_study", run)
    return told


CELLS = {"validation/accuracy": Cell.of([0.8, 0.9]), "test/accuracy": Cell.of([0.5, 0.7])}

SUMMARY = Summary(
    study="small",
    folder=Path("studies/small-1"),
    interrupted=False,
    objective="validation/accuracy",
    counts={"search": {"COMPLETE": 1, "FAILED": 1}},
    best={"number": 0, "value": 0.875, "params": {"model.mask.temperature": 0.5}},
    winner="0",
    rows=(Row("0", "ammpl", True, {}, CELLS),),
    finalists=(),
    test_openings=1,
    seconds=3.0,
    reasons={"RuntimeError: loss is nan": 1},
    mlflow="python tune.py ui studies/small-1",
    problems=("MLflow lacks 1 trial",),
)


def _main(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_flags_reach_the_space_and_the_options(space: Path, ran: list[Any]) -> None:
    code = _main(
        space, "--trials", 7, "--dataset", "digits", "--shots", 4, "--backbone", "ViT-B-16", "--pretrained", "openai",
        "--seed", 0, "--set", "training.steps=1e1", "--set", "training.batch_size=8", "--concurrency", 2,
        "--gpus-per-trial", 0.5, "--ray-address", "a:1", "--tracking-uri", "sqlite:///x.db", "--output", "out",
        "--quiet",
    )  # fmt: skip
    assert code == 2  # 1e1 is a float, and steps are whole
    code = _main(
        space,
        "--trials",
        7,
        "--time-budget",
        "1h",
        "--trial-time",
        "5m",
        "--shots",
        4,
        "--backbone",
        "ViT-B-16",
        "--pretrained",
        "openai",
        "--seed",
        5,
    )
    assert code == 0
    code = _main(
        space, "--set", "training.steps=9", "--set", "model.text.init=a picture of", "--concurrency", 2, "--quiet",
        "--gpus-per-trial", 0.5, "--ray-address", "a:1", "--tracking-uri", "sqlite:///x.db", "--output", "out",
    )  # fmt: skip
    assert code == 0
    (first, plain), (second, options) = ran
    assert (first.budget.trials, first.budget.seconds, second.budget.time) == (7, 3600, None)
    assert first.budget.trial_seconds == 300
    assert (first.seed, first.base.data.shots, second.budget.trials) == (5, 4, 2)
    assert (first.base.backbone.name, first.base.backbone.pretrained) == ("ViT-B-16", "openai")
    assert (second.base.training.steps, second.base.model.text.init) == (9, "a picture of")
    assert (plain.output, plain.concurrency, plain.gpus_per_trial, plain.quiet) == (None, None, None, False)
    assert (options.output, options.concurrency, options.gpus_per_trial) == (Path("out"), 2, 0.5)
    assert (options.ray_address, options.tracking_uri, options.quiet) == ("a:1", "sqlite:///x.db", True)


def test_the_end_of_a_study_is_shown(space: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(space) == 0
    out = capsys.readouterr().out
    assert "ammpl, trial 0 (winner)" in out
    assert "0.6000 ± 0.1414" in out
    assert "1 × RuntimeError: loss is nan\n" in out
    assert "warning: MLflow lacks 1 trial\n" in out
    assert "study folder: studies/small-1\n" in out
    assert "MLflow: python tune.py ui studies/small-1\n" in out


def test_every_command_can_be_called_from_python() -> None:
    names = {name.replace("-", "_") for name in cli.COMMANDS}
    assert [name for name in names if not hasattr(ammpl.study, name) and not hasattr(ammpl.study.Study, name)] == []


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"interrupted": True, "winner": None, "rows": ()}, 130, "interrupted: this is what was known by then"),
        ({"winner": None, "rows": ()}, 0, "best, unconfirmed: trial 0, validation/accuracy 0.8750: model.mask.temp"),
        ({"best": None, "winner": None, "rows": ()}, 1, "no trial of the search completed"),
        ({"winner": None, "rows": (), "stopped": "all failed"}, 1, "stopped: all failed\n"),
    ],
)
def test_exit_codes(
    space: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    code: int,
    text: str,
) -> None:
    import dataclasses

    from ammpl.study import study

    monkeypatch.setattr(study, "run_study", lambda *told: dataclasses.replace(SUMMARY, **changes))
    assert _main(space) == code
    assert text in capsys.readouterr().out


def test_what_could_not_be_kept_is_said_after_the_result(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from ammpl.study import study

    lacking = dataclasses.replace(SUMMARY, errors=("out: cannot be written (No space left on device)",))
    monkeypatch.setattr(study, "run_study", lambda *told: lacking)
    assert _main(space) == 2
    out, err = capsys.readouterr()
    assert "ammpl, trial 0 (winner)" in out
    assert err == "error: out: cannot be written (No space left on device)\n"


def test_an_interrupt_before_the_first_trial(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ammpl.study import study

    def interrupt(*told: Any) -> Summary:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", interrupt)
    assert _main(space) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml: cannot be read (No such file or directory)"),
        (["space.yaml", "--trials", "0"], "--trials: must be at least 1, got 0"),
        (
            ["space.yaml", "--time-budget", "10 minutes"],
            "--time-budget: must be a time above 0, in hours, minutes and seconds, such as 90s, 10m, 2h or 1h30m, "
            "got '10 minutes'. Fix: --time-budget 10m",
        ),
        (["space.yaml", "--time-budget", "0s"], "--time-budget: must be a time above 0"),
        (["space.yaml", "--trial-time", "half an hour"], "--trial-time: must be a time above 0"),
        (["space.yaml", "--seed", "-1"], "--seed: must be from 0 to 4294967295, got -1"),
        (["space.yaml", "--shots", "0"], "command line: data.shots: must be greater than or equal to 1, got 0"),
        (["space.yaml", "--set", "training.steps"], "--set: must be NAME=VALUE, got 'training.steps'"),
        (["space.yaml", "--set", "training.step=3"], "command line: training.step: unknown name. Fix: did you mean"),
        (["space.yaml", "--set", "training.steps=[1"], "--set training.steps, line 1, column 3: is not valid YAML"),
        (["space.yaml", "--set", "training.steps=[1]"], "--set training.steps: must be a single value, got '[1]'"),
        (["space.yaml", "--set", "training.steps=x"], "command line: training.steps: must be a valid integer"),
        (["space.yaml", "--shots", "4", "--set", "data.shots=2"], "--set data.shots: is given twice on the command l"),
        (["space.yaml", "--set", "model.mask.temperature=1"], "is searched by this space. Fix: remove it from the f"),
        (["space.yaml", "--concurrency", "0"], "--concurrency: must be at least 1, got 0"),
        (["space.yaml", "--gpus-per-trial", "-1"], "--gpus-per-trial: must be at least 0, got -1.0"),
        (["space.yaml", "--gpus-per-trial", "nan"], "--gpus-per-trial: must be at least 0, got nan"),
        (["space.yaml", "--output", "."], "--output: exists already, and a study never overwrites, got '.'"),
        (["space.yaml", "--output", "space.yaml"], "--output: exists already, and a study never overwrites"),
        (["space.yaml", "--ray-address", "nowhere"], "--ray-address: must be the HOST:PORT of a cluster's head"),
    ],
)
def test_mistakes_end_with_code_2_a_message_and_nothing_written(
    space: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, monkeypatch: Any
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have started one
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = sorted(Path().rglob("*"))
    assert _main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out.removeprefix("study small: starting Ray\n") == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--shots", "many"], ["--nonsense"], ["a.yaml", "b.yaml"]])
def test_flags_that_do_not_parse_end_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _main(*arguments)
    assert caught.value.code == 2
    assert "usage: tune.py" in capsys.readouterr().err


SURROUNDINGS = {
    "--concurrency", "--gpus-per-trial", "--ray-address", "--tracking-uri", "--output", "--quiet", "--help",
}  # fmt: skip
FLAGS = SURROUNDINGS | {
    "--trials", "--time-budget", "--trial-time",
    "--dataset", "--shots", "--backbone", "--pretrained", "--seed", "--set", "--dry-run",
    "--version",
}  # fmt: skip


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits_a_screen_and_every_flag_has_a_default_or_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        _main(*filter(None, [name]), "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 60
    assert re.search(rf"(?m)^examples?:\n  {re.escape(f'python tune.py {name}'.rstrip())}\b", text)
    for action in (cli.COMMANDS[name] if name else cli.TUNE).parser(name)._actions:
        shown = action.option_strings[-1] if action.option_strings else str(action.metavar)
        assert re.search(rf"(?m)^  (?:-h, )?{re.escape(shown)}\b", text)
        assert "(default: " in str(action.help) or "e.g. " in str(action.help), shown


@pytest.mark.parametrize(("name", "flags"), [("", FLAGS), ("rerun", SURROUNDINGS)])
def test_the_flags_of_the_interface(name: str, flags: set[str]) -> None:
    parser = (cli.COMMANDS[name] if name else cli.TUNE).parser(name)
    assert {flag for action in parser._actions for flag in action.option_strings} >= flags


def test_every_command_is_listed_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _main("--help")
    text = capsys.readouterr().out
    assert cli.COMMANDS
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"(?m)^  {command.stage} .*\b{name}\b", text)


def test_a_mistyped_command_is_told_from_a_space_file(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("reurn", "studies/x") == 2
    assert (
        capsys.readouterr().err == "error: reurn: is neither a command nor a space file. Fix: did you mean 'rerun'?\n"
    )
    assert _main("frobnicate") == 2
    assert "frobnicate: is neither a command nor a space file. Fix: known: " in capsys.readouterr().err
    Path("reurn").write_text(SPACE)  # a file of that name is a space, with or without an ending
    assert _main("reurn", "--trials", "0") == 2
    assert "--trials: must be at least 1" in capsys.readouterr().err
    assert _main("reurn.yml") == 2
    assert "reurn.yml: cannot be read (No such file or directory)" in capsys.readouterr().err


def test_a_saved_space_is_called_by_its_name(ran: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main("smoke") == _main("ablation_mask") == 0
    assert [space.name for space, _ in ran] == ["smoke", "ablation_mask"]


def test_a_space_file_needs_no_command_and_none_is_the_default_one(ran: list[Any], tmp_path: Path) -> None:
    for words in ([], ["--quiet"], [Path(__file__).parents[1] / "search_spaces" / "default.yaml"]):
        assert _main(*words) == 0
    assert [space.name for space, _ in ran] == ["default"] * 3


def test_a_dry_run_checks_and_prints_a_space_that_can_be_run(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert _main(space, "--dry-run", "--full", "--trials", 9) == 0
    text = capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before
    printed = parse_yaml(text, "printed")
    assert {name: value for name, value in printed["budget"].items() if value is not None} == {
        "trials": 9,
        "failures": 10,
    }
    assert printed["fixed"]["data.name"] == "digits"
    Path("printed.yaml").write_text(text)
    assert load_space(Path("printed.yaml")).resolved() == printed
    assert _main(space, "--dry-run", "--dataset", "no-such-data") == 2
    assert "no-such-data" in capsys.readouterr().err


def test_the_default_space_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_space(None, "call").name == "default"
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "default.yaml").write_text(SPACE)
    assert study_space(None, "call").name == "small"


def test_a_user_error_crosses_from_a_worker_with_its_text() -> None:
    import pickle

    error = UserError("data.shots", "must be at most 8", got=9, fix="take fewer")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_reader_who_has_seen_enough_is_no_mistake() -> None:
    """``tune.py schema | head``: more is printed than a pipe holds."""
    command = [sys.executable, str(Path(__file__).parents[1] / "tune.py"), "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_the_driver_imports_no_torch() -> None:
    code = "import sys, ammpl.cli, ammpl.study.study; sys.exit(any(m in sys.modules for m in ('torch', 'open_clip')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_is_not_utf_8_ends_nothing(encoding):
    shown = subprocess.run(
        [sys.executable, "tune.py", "--help"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert shown.returncode == 0 and not shown.stderr
    assert b"usage: " in shown.stdout

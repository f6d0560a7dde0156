from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ammpl import cli
from ammpl.commands.status import show
from ammpl.study import status as status_module
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.event_log import FILE, History, end_log, read_history
from ammpl.study.record.folder import locked
from ammpl.study.record.records import Records
from ammpl.study.space.budget import duration_text
from ammpl.study.status import status, watch
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import run_inline, small_space


def test_a_study_from_its_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = small_space(seed=3, confirm=None)
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    run_inline(plan, tmp_path)
    records.close()
    dead = status(tmp_path)
    assert dead[0].endswith(f"is not running and has not ended; it goes on with: python tune.py resume {tmp_path}")
    [(trial, value)] = plan.best(1)
    time = f"time: {duration_text(read_history(tmp_path / FILE).seconds) or '0 s'}"
    assert dead[2:] == [f"best of the search: {trial.key}, validation/accuracy {value:.4f}", time]
    assert dead[1].startswith("search: 12 trials: ")
    assert "PRUNED" in dead[1]
    with locked(tmp_path):
        assert " is running (process " in status(tmp_path)[0]
    assert status(tmp_path) == dead
    end_log(tmp_path / FILE)
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path}: has ended"


def test_the_best_of_several_repeats_is_their_mean(tmp_path: Path) -> None:
    """As the plan, the console, the summary and the report have it, not the luckiest repeat."""
    space = small_space(seed=3, confirm=None, repeats=[1, 2, 3], budget={"trials": 18})
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    run_inline(plan, tmp_path)
    records.close()
    [(trial, value)] = plan.best(1)
    key = trial.key.removesuffix(f"-r{trial.repeat}")
    assert status(tmp_path)[2] == f"best of the search: {key} (mean of 3), validation/accuracy {value:.4f}"


def test_a_study_that_was_cut_off(tmp_path: Path) -> None:
    space = small_space(objective={"metric": "train/loss", "direction": "minimize"}, pruner={"name": "none"})
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    for loss in (0.5, 0.25):
        trial = plan.next()
        plan.report(trial, 10, {"train/loss": loss})  # type: ignore[arg-type]
        plan.finish(trial, 1.0)  # type: ignore[arg-type]
    plan.next()
    records.close()
    assert status(tmp_path)[1:3] == [
        "search: 3 trials: 2 COMPLETE, 1 begun, not ended",
        "best of the search: search-0001, train/loss 0.2500",
    ]


def test_a_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "is not the folder of a study" in capsys.readouterr().err


def test_watching_ends_with_the_study(tmp_path: Path) -> None:
    """Each look sees what has happened by then; the last one is taken after the driver has gone."""
    space = small_space(confirm=None, pruner={"name": "none"})
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    plan = Plan(space, space.name, tmp_path, records)
    lock = locked(tmp_path)
    lock.__enter__()
    looks = watch(tmp_path, seconds=0)
    seen = [next(looks)]
    trial = plan.next()
    seen.append(next(looks))
    plan.report(trial, 10, {"validation/accuracy": 0.5})  # type: ignore[arg-type]
    plan.finish(trial, 1.0)  # type: ignore[arg-type]
    seen.append(next(looks))
    records.close()
    end_log(tmp_path / FILE)
    lock.__exit__(None, None, None)
    seen += list(looks)
    assert [" is running" in lines[0] for lines in seen] == [True, True, True, False]
    assert seen[1][1] == "search: 1 trials: 1 begun, not ended"
    assert seen[2][1:3] == [
        "search: 1 trials: 1 COMPLETE",
        "best of the search: search-0000, validation/accuracy 0.5000",
    ]
    assert seen[3][0] == f"{tmp_path}: has ended"


LOOKS = [["s: is running", "search: 1", "time: 1 s"], ["s: is running", "search: 1", "time: 2 s"]]
LOOKS.append(["s: has ended", "search: 1", "time: 2 s"])


def test_a_pipe_gets_what_is_new_and_a_terminal_the_last_look_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    show(LOOKS, Console())
    assert capsys.readouterr().out.splitlines() == [
        "s: is running",
        "search: 1",
        "time: 1 s",
        "s: has ended",
        "time: 2 s",
    ]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    show(LOOKS, terminal)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1A" in text  # the cursor goes up: nothing is scrolled
    assert text.rstrip().endswith("time: 2 s") or "s: has ended" in text.rpartition("\x1b[1A")[2]


def test_ctrl_c_ends_the_watching_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path) -> Iterator[list[str]]:
        yield LOOKS[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(status_module, "watch", interrupted)
    assert cli.main(["status", str(tmp_path), "--watch"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == LOOKS[0] and err == ""


def test_the_state_of_all_trials_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = small_space(confirm=None, pruner={"name": "none"}, budget={"trials": 30})
    (tmp_path / "study.yaml").write_text(dump_yaml(space.resolved()))
    records = Records(tmp_path, space)
    run_inline(Plan(space, space.name, tmp_path, records), tmp_path)
    records.close()
    states, asked = History.states.fget, []
    assert states is not None
    monkeypatch.setattr(History, "states", property(lambda history: asked.append(1) or states(history)))
    assert status(tmp_path)[1].startswith("search: 30 trials: ")
    assert len(asked) == 1

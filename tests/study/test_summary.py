from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.environment import describe_environment
from ammpl.study.result.summary import Cell, Summary, summarize
from ammpl.study.trial import State, Trial
from tests.study.fakes import Recorder, execute, run_inline, small_space


def _summary(tmp_path: Path, run: Any = execute, **changes: Any) -> tuple[Summary, Plan]:
    plan = Plan(small_space(**changes), "small", tmp_path, Recorder())
    run_inline(plan, tmp_path, run)
    return summarize(plan, tmp_path, interrupted=False, seconds=12.5), plan


def test_a_cell_has_mean_sample_deviation_and_n() -> None:
    cell = Cell.of([0.8, 0.9, 0.7])
    assert (cell.mean, cell.n) == (pytest.approx(0.8), 3)
    assert cell.sd == pytest.approx(0.1)
    assert str(cell) == "0.8000 ± 0.1000"
    assert str(Cell.of([0.5])) == "0.5000"


def test_winner_and_baselines_on_the_same_repeats(tmp_path: Path) -> None:
    summary, plan = _summary(tmp_path, seed=3)
    assert [row.label for row in summary.rows] == [
        f"ammpl, trial {plan.winner} (winner)",
        "zero_shot",
        "coop (untuned)",
    ]
    assert summary.metrics == ["validation/accuracy", "test/accuracy"]
    for row in summary.rows:
        for phase, metric in (("confirm", "validation/accuracy"), ("test", "test/accuracy")):
            values = [outcome.metrics[metric] for _, outcome in plan.outcomes(phase, row.candidate)]
            assert row.cells[metric].values == tuple(values)
            assert row.cells[metric].sd == statistics.stdev(values)
    assert summary.counts["search"].keys() == {"COMPLETE", "PRUNED", "FAILED"}
    assert sum(summary.counts["search"].values()) == 12
    assert len(summary.finalists) == 3
    assert max(row.cells["validation/accuracy"].mean for row in summary.finalists) == (
        summary.rows[0].cells["validation/accuracy"].mean
    )
    assert summary.test_openings == 1
    assert summary.reasons == {"RuntimeError: loss is nan at step 30": summary.counts["search"]["FAILED"]}


def test_the_figures_for_mlflow_and_the_file(tmp_path: Path) -> None:
    summary, plan = _summary(tmp_path)
    flat = summary.flat_metrics()
    assert flat["winner/test/accuracy/mean"] == summary.rows[0].cells["test/accuracy"].mean
    assert flat["coop/validation/accuracy/n"] == 3
    assert flat.keys() >= {"zero_shot/test/accuracy/sd"}
    data = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert data["winner"] == plan.winner
    assert data["folder"] == tmp_path.name
    assert data["rows"][0]["cells"]["test/accuracy"]["values"] == list(summary.rows[0].cells["test/accuracy"].values)


def test_the_table_in_markdown_and_in_the_terminal(tmp_path: Path) -> None:
    summary, _ = _summary(tmp_path)
    lines = summary.markdown().splitlines()
    assert lines[:2] == ["| method | n | validation/accuracy | test/accuracy |", "| --- | --- | --- | --- |"]
    assert len(lines) == 5
    assert lines[4].startswith("| coop (untuned) | 3 | 0.")
    console = Console(width=80, file=(out := io.StringIO()))
    console.print(*summary.tables())
    text = out.getvalue()
    assert "coop (untuned)" in text
    assert str(summary.rows[0].cells["test/accuracy"]) in text


def test_the_table_shows_no_losses_and_says_where_n_differs(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        if trial.phase == "test" and trial.candidate == "coop" and trial.repeat == 2:
            raise RuntimeError("no luck")
        for step, metrics in execute(trial, folder):
            yield step, {**metrics, "test/loss": 0.5} if trial.phase == "test" else metrics

    summary, _ = _summary(tmp_path, run)
    assert "test/loss" in summary.rows[0].cells
    lines = summary.markdown().splitlines()
    assert "loss" not in lines[0]
    assert lines[4].endswith("(n = 2) |")


def test_without_a_confirmation_there_is_a_best_and_no_winner(tmp_path: Path) -> None:
    summary, plan = _summary(tmp_path, confirm=None)
    [(trial, value)] = plan.best(1)
    assert summary.best == {"number": trial.number, "value": value, "params": dict(trial.params)}
    assert (summary.winner, summary.rows, summary.test_openings) == (None, (), 0)


def test_only_repeats_that_completed_count(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        if trial.candidate == "coop" and trial.repeat == 2:
            raise RuntimeError("no luck")
        return execute(trial, folder)

    summary, plan = _summary(tmp_path, run)
    coop = next(row for row in summary.rows if row.candidate == "coop")
    assert {metric: cell.n for metric, cell in coop.cells.items()} == {"validation/accuracy": 2, "test/accuracy": 2}
    assert [o.state for _, o in plan.outcomes("confirm", "coop")] == [State.FAILED, State.COMPLETE, State.COMPLETE]


@pytest.mark.parametrize(("keep_rate", "said"), [(1.0, True), (0.9, False)])
def test_an_idle_image_prompt_is_said(tmp_path: Path, keep_rate: float, said: bool) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        for step, metrics in execute(trial, folder):
            yield step, {**metrics, "mask/keep_rate": keep_rate}

    summary, _ = _summary(tmp_path, run)
    assert any("in 3 of 3 repeats the winner's masks keep over 99%" in note for note in summary.notes) == said
    assert ("image prompt is idle" in summary.markdown()) == said


def test_a_password_on_the_command_line_is_not_recorded() -> None:
    uris = ["postgresql://me:secret@host/db", "--tracking-uri=https://me:secret@host:5000"]
    recorded = describe_environment({}, ["tune.py", "--tracking-uri", *uris])["command"]
    assert recorded == [
        "tune.py",
        "--tracking-uri",
        "postgresql://me:***@host/db",
        "--tracking-uri=https://me:***@host:5000",
    ]


def test_the_environment_names_what_decides_numbers() -> None:
    environment = describe_environment({"CPU": 2.0, "node:1": 1.0}, ["tune.py", "--shots", "4"])
    assert environment["command"] == ["tune.py", "--shots", "4"]
    assert environment["ray"] == {"CPU": 2.0}
    assert environment["packages"].keys() >= {"torch", "ray", "optuna", "mlflow", "open_clip_torch", "numpy"}
    assert set(environment["code"]) in (set(), {"commit", "modified"})
    json.dumps(environment)


def test_why_a_study_stopped_itself_is_in_its_summary(tmp_path: Path) -> None:
    def broken(trial: Trial, folder: Path) -> Any:
        raise RuntimeError("broken")
        yield

    summary, _ = _summary(tmp_path, broken)
    assert summary.as_dict()["stopped"] == "the first 5 trials all failed the same way: RuntimeError: broken"
    assert summary.counts == {"search": {"FAILED": 5}}
    assert _summary(tmp_path)[0].as_dict()["stopped"] is None


def test_many_metrics_become_rows_so_that_nothing_is_cut(tmp_path: Path) -> None:
    """Base-to-new and transfer report several accuracies; a terminal has 80 columns."""

    def run(trial: Trial, folder: Path) -> Any:
        for step, metrics in execute(trial, folder):
            if trial.phase == "test":
                metrics |= {f"test/{name}_accuracy": 0.5 for name in ("base", "new")} | {"test/base_loss": 1.0}
            yield step, metrics

    summary, _ = _summary(tmp_path, run)
    console = Console(width=80, file=(out := io.StringIO()))
    console.print(*summary.tables())
    text = out.getvalue()
    assert "…" not in text and "loss" not in text
    for metric in ("validation/accuracy", "test/accuracy", "test/base_accuracy", "test/new_accuracy"):
        (line,) = [line for line in text.splitlines() if metric in line]
        assert str(summary.rows[0].cells[metric]) in line

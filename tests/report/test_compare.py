from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from ammpl import cli
from ammpl.report.compare import compare_studies
from ammpl.study.trial import Trial
from tests.report.studies import ablation, make
from tests.report.test_report import execute, measured
from tests.study.fakes import small_space


def _better(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    for step, metrics in execute(trial, folder):
        metrics["validation/accuracy"] += 0.01 * trial.repeat
        yield step, metrics


def test_only_what_changed_is_said_and_results_are_paired(tmp_path: Path) -> None:
    first = make(tmp_path / "a", ablation(repeats=[1, 2, 3]), execute)
    fixed = {"model.mask.scope": "task", "training.steps": 30, "training.learning_rate": 0.5}
    second = make(tmp_path / "b", ablation(repeats=[2, 3, 4], fixed=fixed), _better)
    settings, results = compare_studies(first, second)
    assert {row[0]: row[1:] for row in settings.rows} == {
        "fixed.training.learning_rate": ("0.01", "0.5"),
        "repeats": ("1, 2, 3", "2, 3, 4"),
    }
    lines = {row[0]: row for row in results.rows}
    assert list(lines) == ["none", "random", "learned"]
    none = lines["none"]
    assert none[1] == pytest.approx(sum(measured("none", r) for r in (1, 2, 3)) / 3)
    test = stats.ttest_1samp([0.02, 0.03], 0.0)  # of repeats 2 and 3
    interval = test.confidence_interval(0.95)
    assert none[3:] == pytest.approx((2, 0.025, interval.low, interval.high, test.pvalue))


def test_the_same_study_does_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "a", ablation(repeats=[1, 2]), execute)
    settings, results = compare_studies(folder, folder)
    assert settings.rows == ()
    assert {row[4] for row in results.rows} == {0.0}
    assert cli.main(["compare", str(folder), str(folder)]) == 0
    assert "B − A" in capsys.readouterr().out


def test_winners_are_compared_with_each_other_and_strangers_alone(tmp_path: Path) -> None:
    one = make(tmp_path / "a", small_space())
    other = make(tmp_path / "b", small_space(seed=5))
    tables = {table.title: table for table in compare_studies(one, other)[1:]}
    [winner] = [row for row in tables["test/accuracy, 16 shots: B minus A"].rows if row[0] == "winner"]
    assert winner[3] == 3
    assert winner[4] == pytest.approx(winner[2] - winner[1])
    stream = io.StringIO()
    for table in tables.values():
        Console(file=stream, width=80).print(table.terminal())
    assert "│ zero_shot │" in stream.getvalue()  # in a line of its own, not letter by letter
    alone = {}
    for table in compare_studies(one, make(tmp_path / "c", ablation(repeats=[1, 2])))[1:]:
        alone |= {(row[0], table.title): row for row in table.rows}
    none = alone["none", "validation/accuracy, 16 shots: B minus A"]
    assert none[1:5] == (
        None,
        pytest.approx(none[2]),
        0,
        None,
    )


def test_what_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == cli.EXIT_USER_ERROR
    assert "is not the folder of a study" in capsys.readouterr().err

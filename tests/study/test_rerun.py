from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ammpl import cli
from ammpl.errors import UserError
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.rerun import Comparison, chosen, compare, finished_versions, only
from ammpl.study.result.summary import Summary
from ammpl.study.space.budget import Budget
from ammpl.study.space.space_file import StudySpace, read_space
from ammpl.study.study import Options
from ammpl.study.trial import Trial
from ammpl.yaml_file import dump_yaml
from tests.report.studies import ablation, make
from tests.study.fakes import Clock, execute, run_inline, small_space

Evaluations = Iterator[tuple[int, dict[str, float]]]


def _study(
    folder: Path,
    run: Callable[[Trial, Path], Evaluations] = execute,
    clock: Callable[[], float] | None = None,
    **changes: Any,
) -> Path:
    """A finished study without Ray."""
    folder.mkdir()
    confirm = {"top": 1, "repeats": 2, "baselines": ["coop"]}
    space = small_space(**{"budget": {"trials": 4}, "confirm": confirm, **changes})
    records = Records(folder, space)
    run_inline(Plan(space, space.name, folder, Observers([], records), clock), folder, run)
    records.close()
    (folder / "study.yaml").write_text(dump_yaml(space.resolved()))
    (folder / "summary.json").write_text(json.dumps({"interrupted": False}))
    return folder


def _changed(key: str, change: Callable[[dict[str, float], int], None]) -> Callable[[Trial, Path], Evaluations]:
    def run(trial: Trial, folder: Path) -> Evaluations:
        for step, metrics in execute(trial, folder):
            if trial.key == key:
                change(metrics, step)
            yield step, metrics

    return run


def _shown(comparison: Comparison) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(comparison.table())
    return stream.getvalue()


def test_the_same_study_twice_is_identical(tmp_path: Path) -> None:
    found = compare(_study(tmp_path / "a"), _study(tmp_path / "b"))
    assert found.identical
    keys = [row.key for row in found.rows]
    assert {"search-0000", "confirm-coop-r2", "test-coop-r3"} <= set(keys)
    cells = sum(row.cells for row in found.rows)
    assert found.verdict == f"identical: all {len(keys)} trials, {cells} values"
    assert found.rows[keys.index("confirm-coop-r2")].cells == 3 + 8  # state, config, value; eight evaluations
    assert found.rows[keys.index("test-coop-r3")].cells == 3 + 1
    text = _shown(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("identical") == len(keys)


def test_a_value_that_differs_is_named_with_its_step_and_by_how_much(tmp_path: Path) -> None:
    def change(metrics: dict[str, float], step: int) -> None:
        if step in (40, 80):
            metrics["validation/accuracy"] += step / 8000
        metrics["train/loss"] = 7.0  # no result: not compared

    found = compare(_study(tmp_path / "a"), _study(tmp_path / "b", _changed("confirm-coop-r2", change)))
    assert not found.identical
    assert [row.key for row in found.rows if row.texts] == ["confirm-coop-r2"]
    [row] = [row for row in found.rows if row.texts]
    assert row.texts == ("value: +0.01", "validation/accuracy: +0.01 at step 80, 2 steps differ")
    others = len(found.cells) - 1
    first = f"different: 1 of {len(found.rows)} trials, the first is confirm-coop-r2"
    # The mean moved by .005 over two repeats, whose interval is wider.
    assert found.verdict == f"{first}; cells: {others} identical, 1 within noise"
    assert "validation/accuracy: +0.01 at step 80" in _shown(found)


@pytest.mark.parametrize(
    ("shift", "agreement"), [(0.0, "identical"), (1e-9, "within noise"), (0.5, "different"), (math.inf, "different")]
)
def test_cells_are_identical_within_noise_or_different(tmp_path: Path, shift: float, agreement: str) -> None:
    def run(folder: Path, name: str) -> Path:
        def shifted(trial: Trial, where: Path) -> Evaluations:
            if name == "b" and trial.candidate == "none" and shift == math.inf:
                raise RuntimeError("no luck")
            for step, metrics in execute(trial, where):
                if name == "b" and trial.candidate == "none":
                    metrics["validation/accuracy"] += shift
                yield step, metrics

        return make(folder / name, ablation(repeats=[1, 2, 3]), shifted)

    cells = {cell.name: cell for cell in compare(run(tmp_path, "a"), run(tmp_path, "b")).cells}
    assert {name: cell.agreement for name, cell in cells.items()} == {
        "ablation-none": agreement,
        "ablation-random": "identical",
        "ablation-learned": "identical",
    }
    none = cells["ablation-none"]
    assert none.n == 3
    if shift == math.inf:
        assert none.old is not None and none.new is None
    else:
        assert (none.new or 0) - (none.old or 0) == pytest.approx(shift)


def test_a_single_trial_is_never_within_noise(tmp_path: Path) -> None:
    def change(metrics: dict[str, float], step: int) -> None:
        metrics["validation/accuracy"] += 1e-9

    found = compare(_study(tmp_path / "a"), _study(tmp_path / "b", _changed("search-0001", change), confirm=None))
    cells = {cell.name: cell.agreement for cell in found.cells}
    assert (cells["search-0000"], cells["search-0001"]) == ("identical", "different")


def test_a_part_of_an_ablation_again(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", ablation(repeats=[1, 2]))
    space = only(finished_versions(whole)[0], ["random", "none"])
    found = compare(whole, make(tmp_path / "b", space), part=True)
    assert found.identical
    assert [cell.name for cell in found.cells] == ["ablation-none", "ablation-random"]
    assert read_space(tmp_path / "b" / "study.yaml") == space
    assert [row.texts for row in compare(whole, tmp_path / "b").rows].count(("only in the old study",)) == 2


def test_failed_trials_alone_again(tmp_path: Path) -> None:
    def some_fail(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        if trial.key in ("ablation-random-r2", "ablation-none-r1"):
            raise RuntimeError("no luck")
        yield from execute(trial, folder)

    whole = make(tmp_path / "a", ablation(repeats=[1, 2]), some_fail)
    space = only(finished_versions(whole)[0], chosen(["state=Failed,lost"], whole))
    assert [space.trial_name(cell) for cell in space.cells()] == ["none-r1", "random-r2"]
    found = compare(whole, make(tmp_path / "b", space), part=True)
    assert [(row.key, row.texts[0]) for row in found.rows] == [
        ("ablation-none-r1", "state: FAILED, now COMPLETE"),
        ("ablation-random-r2", "state: FAILED, now COMPLETE"),
    ]
    with pytest.raises(UserError, match=f"--only: no trial of an ablation in {whole} ended so, got 'state=lost'"):
        chosen(["state=lost"], whole)
    with pytest.raises(UserError, match="no such state of an ablation's trials, got 'pruned'"):
        chosen(["variant=none", "state=pruned"], whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant=nune", "--only: no such variant, got 'nune'. Fix: did you mean 'none'?"),
        ("variant=", "--only: must be variant=NAME or state=failed, got 'variant='. Fix: --only variant=learned"),
        ("repeat=1", "--only: must be variant=NAME or state=failed, got 'repeat=1'"),
    ],
)
def test_a_part_that_there_is_not(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        only(ablation(), chosen([text], tmp_path))
    assert message in str(error.value)
    with pytest.raises(UserError, match="chooses variants, which a search has not"):
        only(small_space(), ["none"])


def test_the_smallest_difference_counts(tmp_path: Path) -> None:
    def change(metrics: dict[str, float], step: int) -> None:
        metrics["validation/accuracy"] = math.nextafter(metrics["validation/accuracy"], 1)

    found = compare(_study(tmp_path / "a"), _study(tmp_path / "b", _changed("confirm-coop-r2", change)))
    assert not found.identical


def test_nan_equals_nan(tmp_path: Path) -> None:
    def change(metrics: dict[str, float], step: int) -> None:
        metrics["validation/loss"] = math.nan

    run = _changed("confirm-coop-r2", change)
    assert compare(_study(tmp_path / "a", run), _study(tmp_path / "b", run)).identical
    [row] = [row for row in compare(tmp_path / "a", _study(tmp_path / "c")).rows if row.texts]
    assert row.texts == ("validation/loss at step 10: nan, now nothing",)


def test_a_trial_that_failed_or_is_missing_differs(tmp_path: Path) -> None:
    def fail(metrics: dict[str, float], step: int) -> None:
        raise RuntimeError("no luck")

    found = compare(_study(tmp_path / "a"), _study(tmp_path / "b", _changed("confirm-coop-r2", fail)))
    texts = {row.key: row.texts for row in found.rows if row.texts}
    assert texts["confirm-coop-r2"][0] == "state: COMPLETE, now FAILED"
    assert texts["test-coop-r2"] == ("only in the old study",)
    back = {row.key: row.texts for row in compare(tmp_path / "b", tmp_path / "a").rows}
    assert back["test-coop-r2"] == ("only in the new study",)


def test_a_finished_study_gives_its_space(tmp_path: Path) -> None:
    [space] = finished_versions(_study(tmp_path / "a"))
    assert space.name == "small"
    assert space.resolved()["fixed"]["data.shots"] == 16


def test_a_time_budget_becomes_the_number_of_trials_that_began(tmp_path: Path) -> None:
    [whole] = finished_versions(
        _study(tmp_path / "a", budget={"trials": 4, "time": "1h", "gpu_hours": 2.0, "patience": 3})
    )
    assert whole.budget == Budget(trials=4, patience=3)
    clock = Clock()

    def slow(trial: Trial, folder: Path) -> Evaluations:
        clock.now += 1800.0
        return execute(trial, folder)

    [cut] = finished_versions(_study(tmp_path / "b", slow, clock, budget={"time": "1h"}, repeats=[1, 2], confirm=None))
    assert cut.budget == Budget(trials=1)
    assert compare(
        tmp_path / "b", _study(tmp_path / "c", **cut.model_dump(include={"budget"}), repeats=[1, 2], confirm=None)
    ).identical


def test_folders_that_cannot_be_rerun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path, text: str) -> None:
        with pytest.raises(UserError, match=text):
            finished_versions(folder)
        assert cli.main(["rerun", str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.out == ""

    refused(tmp_path / "missing", "missing: is not a folder. Fix: name the folder of a study")
    refused(tmp_path, "is not the folder of a study: it has no study.yaml")
    study = _study(tmp_path / "a")
    (study / "trials" / "trials.parquet").write_bytes(b"PAR1")
    refused(study, r"trials.parquet: cannot be read \(")
    (study / "summary.json").write_text('{"interrupted": true}')
    refused(study, r"did not end: nothing to compare a rerun with. Fix: go on with it: python tune.py resume .*/a$")
    for text in ("{", "[]"):
        (study / "summary.json").write_text(text)
        refused(study, "did not end")


def test_flags_of_a_rerun(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = str(_study(tmp_path / "a"))
    assert cli.main(["rerun", study, "--concurrency", "0"]) == 2
    assert "--concurrency: must be at least 1, got 0" in capsys.readouterr().err
    assert cli.main(["rerun", study, "--output", study]) == 2
    assert "a study never overwrites" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["rerun", "--help"])
    assert "usage: tune.py rerun" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "code", "verdict"), [(False, 0, "identical: all "), (True, 1, "different: 1 of ")])
def test_the_verdict_and_the_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: bool,
    code: int,
    verdict: str,
) -> None:
    from ammpl.study import study

    def change(metrics: dict[str, float], step: int) -> None:
        metrics["validation/accuracy"] += 0.5

    def run(space: StudySpace, options: Options) -> Summary:
        assert space.name == "small"
        assert options.output == tmp_path / "new"
        folder = _study(tmp_path / "new", _changed("confirm-coop-r2", change) if other else execute)
        return Summary(
            study="small", folder=folder, interrupted=False, objective="validation/accuracy", counts={}, best=None,
            winner=None, rows=(), finalists=(), test_openings=1, seconds=1.0, reasons={},
        )  # fmt: skip

    monkeypatch.setattr(study, "run_study", run)
    assert cli.main(["rerun", str(_study(tmp_path / "old")), "--output", str(tmp_path / "new"), "--quiet"]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)

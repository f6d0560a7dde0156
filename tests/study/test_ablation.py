from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from ammpl import cli
from ammpl.study.plan.ablation_plan import AblationPlan
from ammpl.study.plan.base_plan import FINISHED
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.result.ablation_summary import AblationSummary, summarize_ablation
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import State, Trial
from ammpl.study.views import note
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import ABLATION, KIND, RATE, Clock, Recorder, ablation_space, run_inline

# What the made-up training ends at, by variant and repeat.
ENDS = {
    "none": {1: 0.80, 2: 0.70, 3: 0.75},
    "random": {1: 0.85, 2: 0.80, 3: 0.75},
    "learned": {1: 0.90, 2: 0.80, 3: 0.88},
}


def _execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    end = ENDS[trial.candidate][trial.repeat]
    if trial.phase == "test":
        assert trial.learnables is not None
        assert trial.learnables.is_file()
        yield 0, {"test/accuracy": end - 0.01, "test/loss": 1.0}
        return
    for step in (10, 20, 30):
        yield step, {"validation/accuracy": end - (30 - step) / 100, "train/loss": 1 / step}
    (folder / "learnables.safetensors").write_bytes(b"")


def _unlucky(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    if (trial.candidate, trial.repeat) == ("learned", 2):
        raise RuntimeError("loss is nan")
    yield from _execute(trial, folder)


def _run(folder: Path, execute: Any = _execute, **changes: Any) -> tuple[AblationPlan, Recorder, AblationSummary]:
    recorder = Recorder()
    plan = AblationPlan(ablation_space(**changes), folder, recorder)
    run_inline(plan, folder, execute)
    return plan, recorder, summarize_ablation(plan, folder, interrupted=False, seconds=1.0)


def test_every_variant_runs_on_every_repeat_with_the_seeds_of_the_repeat(tmp_path: Path) -> None:
    plan, recorder, _ = _run(tmp_path)
    assert [trial.key for trial in recorder.started] == [
        f"ablation-{variant}-r{repeat}" for repeat in (1, 2, 3) for variant in ("none", "random", "learned")
    ]
    assert plan.totals == {"ablation": 9, "test": 0}
    for trial in recorder.started:
        assert (trial.phase, trial.number, trial.config.seeds.data) == ("ablation", None, trial.repeat)
        assert trial.config.model.mask.kind == trial.candidate == trial.params[KIND]
        assert trial.params[RATE] == (0.5 if trial.candidate == "random" else 0.7)
    for repeat in (1, 2, 3):
        assert len({t.config.seeds.model_dump_json() for t in recorder.started if t.repeat == repeat}) == 1
    assert {outcome.state for outcome in recorder.outcomes.values()} == {State.COMPLETE}
    assert not any("test/accuracy" in metrics for curve in recorder.curves.values() for _, metrics in curve)


def test_means_and_paired_differences(tmp_path: Path) -> None:
    summary = _run(tmp_path)[2]
    none, _, learned = (row.cells["validation/accuracy"] for row in summary.rows)
    assert none.values == ENDS["none"]
    assert (none.own.n, none.own.mean) == (3, pytest.approx(0.75))
    assert none.own.sd == pytest.approx(0.05)
    assert learned.difference is None
    assert none.difference is not None
    test = stats.ttest_rel(list(ENDS["none"].values()), list(ENDS["learned"].values())).confidence_interval(0.95)
    assert none.difference.mean == pytest.approx(-0.11)
    assert (none.difference.low, none.difference.high) == pytest.approx((test.low, test.high))
    assert summary.counts == {"ablation": {"COMPLETE": 9}}
    assert summary.test_openings == 0


def test_a_failed_repeat_leaves_its_pairs_out(tmp_path: Path) -> None:
    _, recorder, summary = _run(tmp_path, _unlucky)
    assert recorder.outcomes["ablation-learned-r2"].state is State.FAILED
    none = summary.rows[0].cells["validation/accuracy"]
    assert none.difference is not None
    assert (none.own.n, none.difference.n, none.difference.mean) == (3, 2, pytest.approx(-0.115))
    assert summary.reasons == {"RuntimeError: loss is nan": 1}
    assert "(n = 2) |" in summary.markdown()


def test_tests_come_once_at_the_end_and_only_when_asked_for(tmp_path: Path) -> None:
    plan, recorder, summary = _run(tmp_path, _unlucky, test=True)
    phases = [trial.phase for trial in recorder.started]
    assert phases == ["ablation"] * 9 + ["test"] * 8
    assert plan.totals == {"ablation": 9, "test": 9}
    assert "test-learned-r2" not in recorder.outcomes
    assert recorder.outcomes["test-none-r1"].value == pytest.approx(0.79)
    assert summary.metrics == ["validation/accuracy", "test/accuracy"]
    assert summary.rows[0].cells["test/accuracy"].own.mean == pytest.approx(0.74)
    assert summary.test_openings == 1


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"train/loss": 1.0}, "the evaluation at step 1 has no 'validation/accuracy'; it has: train/loss"),
        ({"validation/accuracy": math.nan}, "the objective is not finite at step 1"),
        (None, "the trial ended without an evaluation"),
    ],
)
def test_a_trial_without_a_value_failed(tmp_path: Path, metrics: Mapping[str, float] | None, reason: str) -> None:
    def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        yield from [] if metrics is None else [(1, dict(metrics))]

    _, _, summary = _run(tmp_path, execute)
    assert summary.reasons == {reason: 5}
    assert summary.rows == ()


def test_a_time_budget_lets_no_further_cell_begin_and_the_table_says_which_are_missing(tmp_path: Path) -> None:
    clock = Clock()

    def slow(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        clock.now += 30.0 if trial.phase == "ablation" else 0.0
        yield from _execute(trial, folder)

    recorder = Recorder()
    plan = AblationPlan(ablation_space(budget={"time": "2m"}, test=True), tmp_path, recorder, clock)
    run_inline(plan, tmp_path, slow)
    assert plan.totals == {"ablation": 9, "test": 9}
    assert [trial.phase for trial in recorder.started] == ["ablation"] * 4 + ["test"] * 4
    assert plan.ended == "time budget of 2 min used up after 4 trials"
    summary = summarize_ablation(plan, tmp_path, interrupted=False, seconds=1.0)
    assert [row.cells["validation/accuracy"].own.n for row in summary.rows] == [2, 1, 1]
    assert summary.as_dict()["ended"] == plan.ended
    assert summary.remarks == ["note: not run: random r2, r3; learned r2, r3; none r3", f"ended: {plan.ended}"]
    assert summary.markdown().endswith(f"\n\n{summary.remarks[0]}\n\nended: {plan.ended}\n")


def test_a_budget_of_trials_runs_the_first_cells(tmp_path: Path) -> None:
    plan, recorder, summary = _run(tmp_path, budget={"trials": 4})
    assert [trial.key for trial in recorder.started][-1] == "ablation-none-r2"
    assert (len(recorder.started), plan.totals["ablation"]) == (4, 4)
    assert summary.ended == "budget of 4 trials used up"
    whole = _run(tmp_path / "whole", budget={"trials": 9})[2]
    assert (whole.ended, whole.notes) == (None, ())


def _broken(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    raise RuntimeError(f"loss is nan at step {trial.repeat}")
    yield


def test_an_ablation_whose_trials_fail_one_after_the_other_stops_and_says_so(tmp_path: Path) -> None:
    plan, recorder, summary = _run(tmp_path, _broken, test=True, budget={"failures": 5})
    why = "the first 5 trials all failed the same way: RuntimeError: loss is nan at step 2"
    assert plan.stopped == why
    assert [trial.key for trial in recorder.started] == [
        f"ablation-{variant}-r{repeat}"
        for variant, repeat in [("none", 1), ("random", 1), ("learned", 1), ("none", 2), ("random", 2)]
    ]
    assert plan.next() is FINISHED
    assert summary.as_dict()["stopped"] == why
    assert summary.markdown() == (f"note: not run: learned r2, r3; none r3; random r3\n\nstopped: {why}\n")


def test_one_trial_of_an_ablation_that_ends_otherwise_lets_it_go_on(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        return (_execute if trial.key == "ablation-random-r2" else _broken)(trial, folder)

    plan, recorder, summary = _run(tmp_path, run, budget={"failures": 5})
    assert plan.stopped is None
    assert len(recorder.started) == 9
    assert [row.variant for row in summary.rows] == ["random"]


def test_an_interrupt_loses_what_runs(tmp_path: Path) -> None:
    plan = AblationPlan(ablation_space(), tmp_path, Recorder())
    first = plan.next()
    assert isinstance(first, Trial)
    plan.interrupt("interrupted")
    assert plan.next() is FINISHED
    assert [(t.key, o.state) for t, o in plan.finished] == [("ablation-none-r1", State.LOST)]


def test_a_repeated_step_is_taken_once(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = AblationPlan(ablation_space(), tmp_path, recorder)
    trial = plan.next()
    assert isinstance(trial, Trial)
    for step in (10, 20, 10, 20, 30):
        assert not plan.report(trial, step, {"validation/accuracy": 0.5}, seconds=2.0)
    assert [step for step, _ in recorder.curves[trial.key]] == [10, 20, 30]
    assert plan.finish(trial).seconds == 2.0


def test_the_tables_fit_eighty_columns(tmp_path: Path) -> None:
    def flat(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        (folder / "learnables.safetensors").write_bytes(b"")
        yield 30, {"validation/accuracy": 0.5, "test/accuracy": 0.5 / trial.repeat}

    variants = {"a-variant-with-a-very-long-name-indeed": {KIND: "none"}, "learned": {}}
    summary = _run(tmp_path, flat, variants=variants, test=True)[2]
    stream = io.StringIO()
    for table in summary.tables():
        Console(file=stream, width=80).print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "+0.0000 [+0.0000, +0.0000]" in text
    assert "…" not in text
    assert text.count("reference") == 2


def test_verdicts_on_a_declared_effect_are_in_the_tables(tmp_path: Path) -> None:
    summary = _run(tmp_path, test=True, smallest_effect=0.1)[2]
    verdicts = {row.variant: row.cells["validation/accuracy"].verdict for row in summary.rows}
    assert verdicts == {"none": "undecided", "random": "undecided", "learned": None}  # -.110 ± .066, -.060 ± .163
    assert summary.rows[0].cells["test/loss"].verdict is None  # the effect is of accuracies
    assert note.result(summary) == "undecided: none, random (whether learned is better by 0.1 in validation/accuracy)"
    clear = _run(tmp_path / "clear", smallest_effect=0.01)[2]
    assert clear.markdown().splitlines()[2].endswith("| reference better by 0.01 |")
    assert clear.markdown().splitlines()[4].endswith("| holds |")
    stream = io.StringIO()
    for table in clear.tables():
        Console(file=stream, width=80).print(table)
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert re.search(r"none .* holds", stream.getvalue())
    assert json.loads(json.dumps(clear.as_dict()))["rows"][0]["cells"]["validation/accuracy"]["verdict"] == "holds"


def test_the_figures_for_mlflow_and_the_file(tmp_path: Path) -> None:
    summary = _run(tmp_path)[2]
    flat = summary.flat_metrics()
    assert flat["none/validation/accuracy/mean"] == pytest.approx(0.75)
    assert flat["none/validation/accuracy/difference/mean"] == pytest.approx(-0.11)
    assert "learned/validation/accuracy/difference/mean" not in flat
    data = json.loads(json.dumps(summary.as_dict()))
    assert data["rows"][0]["cells"]["validation/accuracy"]["difference"]["n"] == 3
    assert data["rows"][0]["params"] == {KIND: "none"}
    lines = summary.markdown().splitlines()
    assert lines[0] == "**validation/accuracy**, differences to `learned` paired by repeat"
    assert lines[-1] == "| learned | 3 | 0.8600 | 0.0529 | reference |"


def test_records_have_a_column_for_what_variants_set(tmp_path: Path) -> None:
    space = ablation_space()
    records = Records(tmp_path, space)
    run_inline(AblationPlan(space, tmp_path, Observers([], records)), tmp_path, _execute)
    records.close()
    rows = pq.read_table(tmp_path / "trials" / "trials.parquet").to_pylist()
    assert [row[f"params.{KIND}"] for row in rows] == ["none", "random", "learned"] * 3
    assert {row["phase"] for row in rows} == {"ablation"}


CROSSED = {"datasets": ["digits", "dtd"], "shots": [1, 4], "repeats": [1, 2]}


def _crossed(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """A level of the data set, one of the shots, an effect of the variant that differs by data set, some noise."""
    data, repeat = trial.config.data, trial.repeat
    if (trial.candidate, data.name, data.shots, repeat) == ("random", "dtd", 4, 2):
        raise RuntimeError("lost")
    effect = {"none": -0.1, "random": -0.2, "learned": 0.0}[trial.candidate] * (1 if data.name == "dtd" else 0.5)
    level = (0.9 if data.name == "digits" else 0.5) + data.shots / 100 + effect + (0.01, 0.03)[repeat - 1]
    (folder / "learnables.safetensors").write_bytes(b"")
    name = "test" if trial.phase == "test" else "validation"
    yield 0 if name == "test" else 30, {f"{name}/accuracy": level}


def test_variants_are_crossed_with_data_sets_and_shots(tmp_path: Path) -> None:
    plan, recorder, summary = _run(tmp_path, _crossed, **CROSSED, test=True)
    assert plan.totals == {"ablation": 24, "test": 24}
    assert [trial.key for trial in recorder.started][:7] == [
        "ablation-none@digits@1shots-r1", "ablation-random@digits@1shots-r1", "ablation-learned@digits@1shots-r1",
        "ablation-none@digits@4shots-r1", "ablation-random@digits@4shots-r1", "ablation-learned@digits@4shots-r1",
        "ablation-none@dtd@1shots-r1",
    ]  # fmt: skip
    for trial in recorder.started:
        data = trial.config.data
        assert f"{trial.candidate}@{data.name}@{data.shots}shots-r{trial.repeat}" in trial.key
        assert trial.config.seeds.data == trial.repeat
    assert [trial.phase for trial in recorder.started] == ["ablation"] * 24 + ["test"] * 23
    assert [(row.dataset, row.shots) for row in summary.rows[::3]] == [
        ("digits", 1), ("digits", 4), ("dtd", 1), ("dtd", 4), (None, 1), (None, 4),
    ]  # fmt: skip
    random = {row.name: row.cells for row in summary.rows if row.variant == "random"}
    within = random["random@dtd@4shots"]["validation/accuracy"]
    assert within.values == {1: pytest.approx(0.35)}  # the second repeat failed
    assert within.difference is not None and (within.difference.n, within.difference.low) == (1, None)


def test_over_data_sets_repeats_are_averaged_first(tmp_path: Path) -> None:
    summary = _run(tmp_path, _crossed, **CROSSED)[2]
    overall = {row.variant: row.cells["validation/accuracy"] for row in summary.rows if row.name.endswith("s@1shots")}
    assert overall["none"].values == {"digits": pytest.approx(0.88), "dtd": pytest.approx(0.43)}
    assert (overall["none"].own.n, overall["none"].own.mean) == (2, pytest.approx(0.655))
    difference = overall["none"].difference
    assert difference is not None
    assert (difference.n, difference.mean) == (2, pytest.approx(-0.075))
    assert difference.sd == pytest.approx(0.05 / math.sqrt(2))  # of -.05 and -.1
    assert overall["learned"].difference is None
    flat = summary.flat_metrics()
    assert flat["none/2datasets/1shots/validation/accuracy/difference/mean"] == pytest.approx(-0.075)
    assert flat["none/dtd/4shots/validation/accuracy/mean"] == pytest.approx(0.46)
    titles = [str(table.title) for table in summary.tables()]
    assert titles == [
        f"masks: validation/accuracy, over data sets, {shots} shots, paired with learned" for shots in (1, 4)
    ]
    markdown = summary.markdown()
    assert markdown.count("paired by repeat") == 4 and markdown.count("paired by data set") == 2
    assert "**validation/accuracy**, dtd, 4 shots, differences to `learned` paired by repeat" in markdown
    assert note.result(summary) == ""
    judged = _run(tmp_path / "judged", _crossed, **{**CROSSED, "shots": [1]}, smallest_effect=0.5)[2]
    assert note.result(judged).startswith("does not: none; undecided: random (whether learned is better by 0.5 in ")
    data = json.loads(json.dumps(summary.as_dict()))["rows"][-1]
    assert (data["variant"], data["dataset"], data["shots"]) == ("learned", None, 4)


def test_missing_cells_are_named_with_their_setting(tmp_path: Path) -> None:
    summary = _run(tmp_path, _crossed, **CROSSED, budget={"trials": 23})[2]
    assert summary.notes == ("note: not run: learned@dtd@4shots r2",)


def test_records_have_data_set_and_shots(tmp_path: Path) -> None:
    space = ablation_space(**CROSSED)
    records = Records(tmp_path, space)
    run_inline(AblationPlan(space, tmp_path, Observers([], records)), tmp_path, _crossed)
    records.close()
    for table in ("trials", "curves"):
        rows = pq.read_table(tmp_path / table / f"{table}.parquet").to_pylist()
        assert {(row["dataset"], row["shots"]) for row in rows} == {
            ("digits", 1), ("digits", 4), ("dtd", 1), ("dtd", 4),
        }  # fmt: skip


def test_a_data_set_from_outside_takes_the_place_of_those_listed() -> None:
    space = ablation_space(**CROSSED).with_fixed({"data.name": "digits", "training.steps": 5}, "command line")
    assert (space.datasets, space.shots) == (None, (1, 4))
    assert [(setting.dataset, setting.shots) for setting in space.settings] == [("digits", 1), ("digits", 4)]
    again = parse_ablation(space.resolved(), "study.yaml")
    assert list(again.cells()) == list(space.cells())


def test_the_command_line_takes_an_ablation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ammpl.study import study

    def broken(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        raise RuntimeError("nothing works")

    works = [_unlucky, broken]

    def run(space: StudySpace, options: study.Options) -> AblationSummary:
        assert (space.seed, space.base.training.steps) == (3, 7)
        return _run(tmp_path, works.pop(0))[2]

    monkeypatch.setattr(study, "run_study", run)
    (tmp_path / "masks.yaml").write_text(dump_yaml(ABLATION))
    flags = [str(tmp_path / "masks.yaml"), "--seed", "3", "--set", "training.steps=7"]
    assert cli.main(flags) == 0
    out = capsys.readouterr().out
    assert "-0.1150 [-0.3056, +0.0756] (n = 2)" in out
    assert "1 × RuntimeError: loss is nan\n" in out

    assert cli.main([*flags, "--quiet"]) == 1
    assert "no trial of the ablation completed\n" in capsys.readouterr().out
    assert cli.main([*flags, "--set", f"{KIND}=none"]) == 2
    assert f"command line: {KIND}: is what the variants vary" in capsys.readouterr().err

"""The report's parts, on studies with made-up curves whose numbers are known."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from ammpl import cli
from ammpl.errors import UserError
from ammpl.report.comparisons import answer, differences, harmonic_table, remarks
from ammpl.report.files import LIST, PAGE
from ammpl.report.masks import distances, probabilities
from ammpl.report.published import published_tables
from ammpl.report.record import cost_table
from ammpl.report.report import write_report
from ammpl.report.results import read_study
from ammpl.report.search_figures import Point, pareto_front
from ammpl.report.signatures import SIGNATURES, signatures_table
from ammpl.report.tables import Column, Table
from ammpl.study.record.event_log import FILE
from ammpl.study.result.statistics import Verdict, estimate
from ammpl.study.space.search_space import Objective
from ammpl.study.trial import State, Trial
from tests.report.studies import ablation, make
from tests.study.fakes import log_to_change, small_space

LOWER = {"learned": 0.0, "random": 0.04, "none": 0.001}


def measured(variant: str, repeat: int) -> float:
    return 0.9 - LOWER[variant] + 0.01 * np.sin(7 * repeat) + 0.002 * np.sin(13 * repeat + 50 * LOWER[variant])


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    if trial.phase == "test":
        base = measured(trial.candidate, trial.repeat)
        yield 0, {"test/base_accuracy": base, "test/new_accuracy": base - 0.1, "test/harmonic_mean": base - 0.05}
        return
    for step in (10, 20, 30):
        value = measured(trial.candidate, trial.repeat) - (30 - step) / 100
        yield (
            step,
            {"validation/accuracy": value, "train/loss": 10 / step, "mask/keep_rate": 0.995, "mask/entropy": 0.4},
        )
    (folder / "learnables.safetensors").write_bytes(b"")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("report") / "masks", ablation(), execute)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("report") / "small",
        small_space(budget={"trials": 16}, pruner={"name": "median", "startup_trials": 10}),
    )


def test_an_ablation_is_judged_by_its_paired_differences(masks: Path) -> None:
    study = read_study(masks)
    found = {c.name: c for c in differences(study, "validation/accuracy", 16)}
    for name, comparison in found.items():
        pairs = [[measured(variant, repeat) for repeat in range(1, 11)] for variant in (name, "learned")]
        expected = stats.ttest_rel(*pairs)
        assert comparison.p == pytest.approx(expected.pvalue)
        assert comparison.difference.low == pytest.approx(expected.confidence_interval(0.95).low)
    assert {name: c.verdict for name, c in found.items()} == {"none": Verdict.DOES_NOT, "random": Verdict.HOLDS}
    lines = answer(study)
    assert lines[0].text.startswith("learned (reference) reaches validation/accuracy 0.")
    assert "random lies 0.0" in lines[2].text
    assert "below learned (95 % interval −0.0" in lines[2].text
    assert lines[2].claim == "learned is better than random by 0.01 or more"
    assert remarks(study) == ["The test split was not opened: all numbers are of validation images."]


def test_a_search_says_that_its_baselines_are_untuned(search: Path) -> None:
    study = read_study(search)
    assert [row.label for row in study.rows[:3]] == [
        f"ammpl, trial {study.reference} (winner)",
        *(row.label for row in study.rows[1:3]),
    ]
    assert {row.method: row.tuned for row in study.rows} == {"ammpl": True, "zero_shot": None, "coop": False}
    assert study.main_metric == "test/accuracy"
    assert study.test_openings == 1
    assert not any("opened" in remark for remark in remarks(study))
    summary = json.loads((search / "summary.json").read_text())
    winner = next(row for row in summary["rows"] if row["candidate"] == study.reference)
    values = study.rows[0].values("test/accuracy", 16)
    assert list(values.values()) == winner["cells"]["test/accuracy"]["values"]


def test_the_report_is_whole(search: Path, tmp_path: Path) -> None:
    folder = write_report([search], tmp_path / "out")
    figures = {path.name for path in (folder / "figures").iterdir()}
    for name in ("history", "importance", "curves", "parallel", "slices", "forest-test-accuracy-16shots"):
        assert {f"{name}.svg", f"{name}.png"} <= figures
        ElementTree.parse(folder / "figures" / f"{name}.svg")
    tables = {path.name for path in (folder / "tables").iterdir()}
    assert {f"means-test-accuracy-16shots.{ending}" for ending in ("csv", "md", "tex")} <= tables
    page = (folder / PAGE).read_text()
    assert page.count("<svg") == len({name.removesuffix(".svg") for name in figures if name.endswith(".svg")})
    # It works offline: nothing is fetched, and what is referred to is on the page.
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "@import" not in page
    identities = re.findall(r'\sid="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(identities)
    # Trials are the same thing wherever they are drawn.
    assert page.count('data-key="search-0000"') >= 4


def test_several_studies_together(masks: Path, search: Path, tmp_path: Path) -> None:
    folder = write_report([masks, search], tmp_path / "both")
    rows = list(csv.DictReader((folder / "tables" / "together-validation-accuracy.csv").open()))
    assert {row["study: candidate"] for row in rows} >= {"masks: none", "small: zero_shot"}
    assert (folder / "figures" / "2-history.svg").is_file()


def reopened(folder: Path) -> Path:
    """Add to a study's log what an extended study's would have: more search after its tests, then tests again."""
    lines = log_to_change(folder).splitlines()

    def another(line: str) -> str:
        return re.sub(r'"candidate":"\d+"', '"candidate":"900"', line.replace('"test-', '"test-again-'))

    told = [
        line for line in lines if json.loads(line).get("phase") == "test" or "test-" in json.loads(line).get("key", "")
    ]
    begun = next(line for line in lines if json.loads(line).get("phase") == "search")
    again = [begun.replace("search-0000", "search-0900"), *(another(line) for line in told)]
    (folder / FILE).write_text("\n".join([*lines[:-1], *again, lines[-1]]) + "\n")
    return folder


def test_a_test_split_opened_twice_is_said_to_be(tmp_path: Path) -> None:
    folder = reopened(make(tmp_path / "small", small_space()))
    study = read_study(folder)
    assert study.test_openings == 2
    assert any(remark.startswith("The test split was opened twice.") for remark in remarks(study))
    page = (write_report([folder]) / PAGE).read_text()
    assert "The test split was opened twice. What was chosen after the first look may" in page
    assert "Test split opened twice" in page


@pytest.fixture
def crossed(tmp_path: Path) -> Callable[..., Path]:
    """Makes ablations over data sets that need not be there: nothing is trained."""

    def run(data_sets: list[str], **changes: object) -> Path:
        space = ablation(datasets=data_sets, repeats=[1, 2, 3], **changes)
        return make(tmp_path / "crossed", space, execute)

    return run


def test_two_data_sets_are_answered_by_themselves(crossed: Callable[..., Path]) -> None:
    folder = crossed(["digits", "digits-distractor"])
    study = read_study(folder)
    lines = [line.text for line in answer(study)]
    assert len(lines) == 6
    assert "on digits-distractor (95 % interval" in lines[5]
    assert "n = 3 repeats" in lines[5]
    report = write_report([folder])
    assert {path.name for path in (report / "figures").glob("forest-*.svg")} == {
        "forest-validation-accuracy-16shots-digits.svg",
        "forest-validation-accuracy-16shots-digits-distractor.svg",
    }
    rows = list(csv.reader((report / "tables" / "each-data-set-validation-accuracy-16shots.csv").open()))[1:]
    assert [row[:3] for row in rows[:2]] == [["none", "digits", "3"], ["random", "digits", "3"]]
    expected = np.mean([measured("random", r) - measured("learned", r) for r in (1, 2, 3)])
    assert float(rows[1][7]) == pytest.approx(expected)


def test_from_six_data_sets_on_there_are_ranks(crossed: Callable[..., Path]) -> None:
    names = ["dtd", "eurosat", "food101", "ucf101", "sun397", "caltech101"]
    folder = crossed(names, shots=[1, 4])
    study = read_study(folder)
    found = {c.name: c for c in differences(study, "validation/accuracy", 4)}
    assert (found["none"].unit, found["none"].difference.n) == ("data sets", 6)
    assert sum("at 4 shots" in line.text for line in answer(study)) == 3
    report = write_report([folder])
    drawn = {path.stem for path in (report / "figures").glob("*.svg")}
    assert {"shots", "ranks-validation-accuracy-1shots", "ranks-validation-accuracy-4shots"} <= drawn
    header = (report / "tables" / "data-sets-validation-accuracy-4shots.csv").read_text().splitlines()[0]
    assert header == "candidate," + ",".join(sorted(names)) + ",mean"
    assert (report / "tables" / "published-all-dtd-4shots.csv").is_file()


def test_base_new_and_both_definitions_of_h(tmp_path: Path) -> None:
    space = ablation(test=True, repeats=[1, 2, 3], fixed={"data.task": "base_to_new", "model.mask.scope": "task"})
    study = read_study(make(tmp_path / "masks", space, execute))
    table = harmonic_table(study, 16)
    assert table is not None
    base = [measured("none", repeat) for repeat in (1, 2, 3)]
    mean = float(np.mean(base))
    assert table.rows[0][1:] == pytest.approx(
        (
            3,
            mean,
            mean - 0.1,
            0.1,
            2 * mean * (mean - 0.1) / (2 * mean - 0.1),
            np.mean([2 * b * (b - 0.1) / (2 * b - 0.1) for b in base]),
        )
    )
    assert study.main_metric == "test/harmonic_mean"
    assert "3 repeats on one data set; ten or more" in " ".join(remarks(study))


def test_a_study_without_an_end_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path / "masks", ablation(repeats=[1, 2]), execute, ends=False)
    (folder / "summary.json").unlink()
    assert "has not come to its end" in (write_report([folder]) / PAGE).read_text()


def test_signatures_are_found(masks: Path, search: Path) -> None:
    rows = {row[0]: row for row in signatures_table(read_study(masks)).rows}
    assert rows["image prompt idle"][2:4] == (20, 20)  # those of variant "none" have no mask to be idle
    assert rows["mask collapsed"][2:4] == (0, 20)
    assert rows["new classes lost"][3] == 0
    assert rows["loss plateau"][2:4] == (0, 30)
    assert len(rows) == len(SIGNATURES)
    failed = {row[0]: row for row in signatures_table(read_study(search)).rows}["diverged"]
    assert failed[2] == sum(trial.state is State.FAILED for trial in read_study(search).trials)


def test_each_signature_can_be_shown_and_not(masks: Path) -> None:
    from dataclasses import replace

    trial = next(t for t in read_study(masks).trials if t.candidate == "learned")

    def shows(name: str, *curve: dict[str, float], **changes: object) -> bool | None:
        signature = next(signature for signature in SIGNATURES if signature.name == name)
        shown = replace(trial, curve=tuple(enumerate(curve)), **changes)  # type: ignore[arg-type]
        return signature.shows(shown)

    assert shows("everything masked", {"mask/keep_rate": 0.01}) is True
    assert shows("everything masked", {"mask/keep_rate": 0.5}) is False
    assert shows("mask collapsed", {"mask/entropy": 0.01}) is True
    assert shows("sampling too noisy", {"mask/entropy": 0.99}) is True
    gap = [{"validation/accuracy": 0.5, "validation/new_accuracy": 0.5}, {"validation/accuracy": 0.8}]
    assert shows("new classes lost", gap[0], {**gap[1], "validation/new_accuracy": 0.7}) is True
    assert shows("new classes lost", gap[0], {**gap[1], "validation/new_accuracy": 0.79}) is False
    assert shows("new classes lost", gap[0], gap[1]) is None
    assert shows("loss plateau", *({"train/loss": loss} for loss in (2.0, 1.9, 1.899))) is True
    assert shows("loss plateau", *({"train/loss": loss} for loss in (2.0, 0.9, 0.899))) is False
    assert shows("loss plateau", {"train/loss": 2.0}) is None
    assert shows("unstable gradients", *({"train/gradient_norm": norm} for norm in (1.0, 1.0, 30.0))) is True
    assert shows("diverged", state=State.FAILED, reason="loss is nan at step 3") is True


def test_what_pruning_saved(search: Path) -> None:
    study = read_study(search)
    pruned = [t for t in study.of_phase("search") if t.state is State.PRUNED]
    assert pruned
    rows = {row[0]: row for row in cost_table(study).rows}
    assert rows["search"][5] == sum(80 - (trial.step or 0) for trial in pruned)
    assert rows["test"][4:6] == (0, 0)


def test_distances_between_the_classes_masks(masks: Path, tmp_path: Path) -> None:
    folder = masks / "checkpoints" / "ablation-learned-r1"
    matrix = np.array([[0.0, 0.0], [0.0, np.log(3.0)], [np.log(3.0), np.log(3.0)]], dtype=np.float32)
    about = {"class_names": ["a", "b", "c"], "config": {"model": {"mask": {"parameterization": "sigmoid"}}}}
    save_file({"image_prompt.mask.matrix_GN": matrix}, folder / "learnables.safetensors", {"ammpl": json.dumps(about)})
    found = probabilities(folder / "learnables.safetensors")
    assert found is not None
    assert found[1] == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.75], [0.75, 0.75]]))
    [figure] = distances(read_study(masks))
    assert "mean over pairs 0.1667" in figure.caption  # .125, .25 and .125
    assert probabilities(tmp_path / "none.safetensors") is None


def test_the_pareto_front_is_what_nothing_dominates(masks: Path) -> None:
    trial, (x, y) = read_study(masks).trials[0], (Objective(metric=metric) for metric in ("a", "b"))
    pairs = [(0.1, 0.9), (0.5, 0.5), (0.5, 0.4), (0.4, 0.5), (0.9, 0.1), (0.9, 0.1)]
    points = [Point(trial, estimate([first]), estimate([second])) for first, second in pairs]
    found = [(point.first.mean, point.second.mean) for point in pareto_front(x, y, points)]
    assert found == [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1), (0.9, 0.1)]
    down = Objective(metric="b", direction="minimize")
    assert [point.second.mean for point in pareto_front(x, down, points)] == [0.1, 0.1]


def test_two_objectives_over_repeats_end_in_a_front(tmp_path: Path) -> None:
    def trades(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        depth = int(trial.params["model.padding.depth"] or 0)
        gain = 0.01 * depth + 0.001 * trial.repeat
        yield 60, {"validation/accuracy": 0.5 + gain, "validation/new_accuracy": 0.9 - 5 * (0.01 * depth) ** 2}

    space = small_space(
        parameters={"model.padding.depth": {"type": "int", "low": 1, "high": 4}},
        second_objective={"metric": "validation/new_accuracy"},
        sampler={"name": "grid"},
        pruner={"name": "none"},
        confirm=None,
        repeats=[1, 2, 3],
    )
    folder = make(tmp_path / "trade", space, trades)
    lines = answer(read_study(folder))
    assert lines[0].text == "4 of 4 configurations are on the Pareto front."
    assert lines[1].text.startswith("depth=1: validation/accuracy 0.5120 (95 % interval 0.5095 to 0.5145, n = 3)")
    report = write_report([folder])
    rows = list(csv.DictReader((report / "tables" / "pareto-front.csv").open()))
    assert [row["parameters"] for row in rows] == [f"depth={depth}" for depth in (1, 2, 3, 4)]
    assert (report / "figures" / "pareto.svg").is_file()
    assert (report / "figures" / "importance.svg").is_file()


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    fixed = {"data.name": "dtd", "data.task": "base_to_new", "model.mask.scope": "task"}
    study = read_study(make(tmp_path / "dtd", ablation(test=True, repeats=[1, 2], fixed=fixed), execute))
    [table] = published_tables(study)
    rows = {row[0]: row for row in table.rows}
    assert rows["MaPLe, published"][1:4] == (80.36, 59.18, 68.16)
    assert "MaPLe (DePT re-run), published" in rows
    base = np.mean([measured("none", repeat) for repeat in (1, 2)])
    assert rows["none, here"][1] == pytest.approx(100 * base)
    assert "not run here" in table.title
    assert published_tables(read_study(make(tmp_path / "digits", ablation(repeats=[1, 2]), execute))) == []


def test_a_table_in_four_forms() -> None:
    columns = (Column("a_b"), Column("x", "+.2f"), Column("p", "p"), Column("said"))
    table = Table("t", "50 % of & more", columns, (("r_1", -0.5, 0.00001, "holds"), ("[x]", None, 0.5, None)), "Note.")
    assert table.csv() == "a_b,x,p,said\nr_1,-0.5,1e-05,holds\n[x],,0.5,\n"
    assert "| r_1 | −0.50 | &lt; .0001 | holds |\n| \\[x\\] | – | .5000 | – |\n" in table.markdown()
    assert '<td class="number">−0.50</td>' in table.html()
    assert '<span class="verdict holds">holds</span>' in table.html()
    latex = table.latex()
    assert r"r\_1 & $-$0.50 & \textless{} .0001 & holds \\" in latex
    assert r"{}[x] & -- & .5000 & -- \\" in latex
    assert r"\caption{50 \% of \& more. Note.}" in latex
    assert r"\begin{tabular}{lrrl}" in latex


def test_what_cannot_be_reported(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "none")]) == cli.EXIT_USER_ERROR
    assert "is not a folder" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="has files in it and no list"):
        write_report([masks], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not list(tmp_path.glob(".*"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_replaces_the_one_before_by_the_same(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(masks)]) == 0
    assert "MLflow: not logged (the study was not tracked there)" in capsys.readouterr().out
    report = masks / "report"
    before = files(report)
    assert set(json.loads(before[LIST])["files"]) == set(before) - {LIST}
    # One of a version that wrote no list is replaced too, and there as well nothing but a report's files.
    (report / LIST).unlink()
    (report / "tables" / "gone.csv").touch()
    (report / "tables" / "notes.txt").write_bytes(b"mine")
    write_report([masks])
    assert files(report) == {**before, "tables/notes.txt": b"mine"}
    (report / "tables" / "notes.txt").unlink()
    assert not list(masks.glob(".report*"))


def own_files(folder: Path) -> dict[str, bytes]:
    """Put a person's files into a folder."""
    mine = {"thesis.tex": b"mine", ".git/HEAD": b"ref", "figures/photo.jpg": b"jpg", "tables/mine.csv": b"1"}
    for name, content in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return mine


def test_files_of_others_are_left_where_a_report_goes(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder without a list is refused, whatever it holds.
    folder = tmp_path / "thesis"
    mine = own_files(folder) | {PAGE: b"my own"}
    (folder / PAGE).write_bytes(b"my own")
    assert cli.main(["report", str(masks), "--output", str(folder)]) == cli.EXIT_USER_ERROR
    assert "--output: has files in it and no list (.ammpl-report.json)" in capsys.readouterr().err
    assert files(folder) == mine
    # With a list its files are replaced, beside the others; a name in it that is no report's, or outside, has no say.
    both = write_report([masks], tmp_path / "both")
    report = files(both)
    mine = own_files(both)
    (both / "tables" / "gone.csv").touch()
    (both / PAGE).write_bytes(b"old")
    (tmp_path / "secret.csv").write_bytes(b"mine")
    names = ["thesis.tex", ".git/HEAD", "../secret.csv", "tables/../../secret.csv", str(tmp_path / "secret.csv"), 3]
    listed = [*json.loads(report[LIST])["files"], "tables/gone.csv", *names]
    (both / LIST).write_text(json.dumps({"files": listed}))
    write_report([masks], both)
    assert files(both) == {**report, **mine}
    assert (tmp_path / "secret.csv").read_bytes() == b"mine" and not list(tmp_path.glob(".*"))


def test_no_report_is_written_over_a_file_or_through_a_link(masks: Path, tmp_path: Path) -> None:
    folder = write_report([masks], tmp_path / "out")
    content = json.loads((folder / LIST).read_text())
    table = next(name for name in content["files"] if name.endswith(".csv"))
    content["files"].remove(table)
    (folder / LIST).write_text(json.dumps(content))
    before = files(folder)
    with pytest.raises(UserError, match=f"has a file {re.escape(table)} that is not the former report's"):
        write_report([masks], folder)
    assert files(folder) == before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / LIST).write_text(json.dumps({"files": [table]}))
    (linked / "tables").symlink_to(folder / "tables")
    with pytest.raises(UserError, match="something else than a folder of a report as tables"):
        write_report([masks], linked)
    assert files(folder) == before

"""Studies from Python: the functions that the command line calls, with real Ray and MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits

import ammpl
from ammpl.errors import UserError
from tests.command_line import SPACE
from tests.integration.conftest import Tracked
from tests.integration.mlflow_store import parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_are_arrow_tables_and_pandas_frames(tracked: Tracked) -> None:
    study = tracked.study
    assert tracked.printed == ""  # quiet unless asked
    for name in ("trials", "curves"):
        assert getattr(study, name)().equals(pq.read_table(study.folder / name / f"{name}.parquet"))
    frame = study.trials().to_pandas()
    assert set(frame["state"]) <= {"COMPLETE", "PRUNED"}
    assert frame["params.model.padding.depth"].dropna().between(1, 3).all()
    assert study.summary is not None
    results = study.results().to_pandas()
    winner = results[(results.label == study.summary.rows[0].label) & (results.metric == "test/accuracy")]
    assert winner.value.mean() == pytest.approx(study.summary.rows[0].cells["test/accuracy"].mean, abs=1e-12)
    assert "| ammpl, trial" in study._repr_markdown_()
    [told] = tracked.notified
    assert (told["study"], told["state"]) == ("smoke-1", "ended")
    assert told["metrics"]["winner/test/accuracy/mean"] == winner.value.mean()


def test_a_study_that_was_opened(tracked: Tracked) -> None:
    folder = tracked.study.folder
    study = ammpl.study.open(folder)
    assert study.status()[0] == f"{folder}: has ended" and study.status()[0] in study._repr_markdown_()
    [winner] = [line for line in study.status() if line.startswith("winner: ")]
    assert re.fullmatch(r"winner: trial \d+, mean of 2: validation/accuracy 0\.\d{4}, test/accuracy 0\.\d{4}", winner)
    compared = [f"results-{split}-accuracy-2shots" for split in ("test", "validation")]
    assert [table.name for table in study.compare(folder)] == ["changed", *compared]
    assert study.rerun_trial(0).difference is None
    assert study.resume(tracking_uri=tracked.uri).summary is None
    with pytest.raises(UserError, match="is not running: the study has ended"):
        study.stop()
    with study.ui(tracked.uri) as interface:
        assert interface.address.startswith(tracked.uri)


def test_the_studys_run_has_report_winner_and_what_it_is_found_by(tracked: Tracked) -> None:
    study, client = tracked.study, MlflowClient(tracked.uri)
    assert study.summary is not None
    run = parent(tracked.uri, study.folder)
    run_id = run.info.run_id
    assert study.said == (f"report: {study.folder}/report/report.html",)
    assert {item.path for item in client.list_artifacts(run_id, "report")} >= {"report/report.html"}
    assert {item.path for item in client.list_artifacts(run_id, "winner")} >= {
        "winner/learnables.safetensors",
        "winner/masks.png",
    }
    [model] = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert model.status == "READY" and model.tags["trial"].startswith("confirm-")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["digits"]
    assert run.data.tags["winner"].startswith(f"trial {study.summary.winner} tau=")
    assert (run.data.tags["dataset"], run.data.tags["shots"]) == ("digits", "2")
    ended = [value for name, value in run.data.metrics.items() if name.startswith("trials/")]
    assert sum(ended) == study.trials().num_rows
    note = run.data.tags["mlflow.note.content"]
    tested = study.summary.rows[0].cells["test/accuracy"]
    assert run.data.tags["result"].startswith(f"test/accuracy {tested} of {study.summary.rows[0].label}; ")
    assert note.startswith(f"**{run.data.tags['result']}**\n\nThree trials of four steps")
    assert f"Winner: **trial {study.summary.winner}**" in note and "| confirm | 4 |" in note
    assert note.index("Winner") < note.index("| `model.mask.temperature` | tau | 0.1 … 2, log |")


def test_the_winner_can_be_taken_from_the_studys_run(tracked: Tracked) -> None:
    pictures = [Image.fromarray((16 * digit).clip(0, 255).astype("uint8")) for digit in load_digits().images[:3]]
    run_id = parent(tracked.uri, tracked.study.folder).info.run_id
    taken, own = ammpl.load(run_id, tracked.uri), tracked.study.load()
    assert taken.config == own.config
    assert taken.logits(pictures).equal(own.logits(pictures))
    assert set(taken.predict(pictures, ["seven", "a letter"])) <= {"seven", "a letter"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ammpl.study.run("smoke", trial=3), "call: trial: is no setting. Fix: did you mean 'trials'?"),
        (lambda: ammpl.study.run("smoke", trials=0), "--trials: must be at least 1, got 0"),
        (lambda: ammpl.study.run("smoke", set={"training.step": 3}), "call: training.step: unknown name"),
        (
            lambda: ammpl.study.run("smok"),
            "is neither a space file nor a saved space. Fix: did you mean 'smoke'",
        ),
        (lambda: ammpl.study.run("none.yaml"), "none.yaml: cannot be read"),
        (lambda: ammpl.study.run({"version": 1}), "space: "),
        (lambda: ammpl.study.run("smoke", gpus_per_trial="all"), "--gpus-per-trial: must be a number or 'auto', got"),
        (lambda: ammpl.study.run("smoke", output="."), "--output: exists already"),
        (lambda: ammpl.study.open("nowhere"), "nowhere: is not a folder"),
        (lambda: ammpl.study.Study(Path("nowhere")).trials(), "trials.parquet: cannot be read"),
        (lambda: ammpl.study.Study(Path("nowhere")).extend(), "extend: needs to know by how much"),
        (lambda: ammpl.study.Study(Path("nowhere")).extend(trials=-1), "--trials: must say how much more, got -1"),
        (lambda: ammpl.study.Study(Path("nowhere")).extend(trials=1), "nowhere: is not a folder"),
    ],
)
def test_mistakes_are_exceptions_and_leave_nothing(here: Path, call: Any, message: str) -> None:
    (here / "taken").write_text("")
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert [path.name for path in here.iterdir()] == ["taken"]


def test_a_space_is_a_file_a_saved_name_or_a_dictionary(here: Path) -> None:
    from ammpl.study.settings import study_space
    from ammpl.yaml_file import parse_yaml

    (here / "small.yaml").write_text(SPACE)
    spaces = ["small.yaml", here / "small.yaml", parse_yaml(SPACE, "small.yaml")]
    spaces.append(study_space("small.yaml", "call"))
    resolved = [study_space(space, "call", shots=2).resolved() for space in spaces]
    assert all(one == resolved[0] for one in resolved) and resolved[0]["fixed"]["data.shots"] == 2
    assert study_space("smoke", "call").name == "smoke"

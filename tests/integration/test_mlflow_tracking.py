"""A study told to real MLflow stores: a SQLite file, and a server over HTTP."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ammpl.errors import UserError
from ammpl.study.trial import State
from ammpl.study.views.tracking import MLflowTracker
from tests.integration.mlflow_store import children, curve, files, free_port, parent, states
from tests.study.scripted import other_trial, outcome, trial

ENDS = {
    "search-0000": "COMPLETE",
    "search-0001": "PRUNED",
    "search-0002": "FAILED",
    "search-0003": "COMPLETE",
    "search-0004": "LOST",
    "confirm-0-r2": "COMPLETE",
    "test-coop-r2": "COMPLETE",
}
TRIALS = {
    "search-0000": trial(0, mask__temperature=0.25, padding__depth=2),
    "search-0001": trial(1, mask__temperature=1.5, padding__depth=1),
    "search-0002": trial(2, mask__temperature=0.5, padding__depth=4),
    "search-0003": trial(3, mask__temperature=0.75, padding__depth=3),
    "search-0004": trial(4),
    "confirm-0-r2": other_trial("confirm", "0", 2),
    "test-coop-r2": other_trial("test", "coop", 2),
}


def tracker(uri: str, folder: Path) -> MLflowTracker:
    return MLflowTracker(
        uri, "demo", folder, "# Question\nWhich?", {"kind": "test"}, {"budget.trials": 5, "gpu": None}
    )


def report(told: MLflowTracker, key: str, *steps: int) -> None:
    for step in steps:
        told.trial_reported(TRIALS[key], step, {"validation/accuracy": step / 100, "mask/keep_rate": 0.9})


def tell_study(told: MLflowTracker, folder: Path) -> None:
    """Every way in which a trial ends, one of them after it was lost and begun again."""
    for key in ("search-0000", "search-0003"):
        made = TRIALS[key].folder(folder)
        made.mkdir(parents=True)
        (made / "config.json").write_text(TRIALS[key].config.canonical_json())
        (made / "masks.png").write_bytes(b"picture")
    (folder / "study.yaml").write_text("version: 1\n")
    for key, searched in TRIALS.items():
        told.trial_started(searched)
        if key == "search-0003":  # its worker dies and it begins again from the start
            report(told, key, 20, 40)
            told.trial_finished(searched, outcome(State.LOST, 0.4, 40, reason="worker died"))
            told.trial_started(searched)
        if key == "search-0002":
            told.trial_reported(searched, 20, {"validation/accuracy": math.nan})
            told.trial_finished(searched, outcome(State.FAILED, None, 20, reason="loss is NaN at step 20"))
        elif key == "search-0004":
            told.trial_finished(searched, outcome(State.LOST, None, None, reason="node gone"))
        else:
            steps = (20,) if key == "search-0001" else (20, 40, 60)
            report(told, key, *steps)
            last = {"validation/accuracy": steps[-1] / 100, "mask/keep_rate": 0.9}
            told.trial_finished(searched, outcome(State(ENDS[key]), steps[-1] / 100, steps[-1], last))
    told.summary({"test/accuracy": 0.7}, "| row | mean |\n|---|---|\n| coop | .70 |", tags={"result": "coop .70"})


@pytest.fixture(scope="module", params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The address of a store that was told a study, and the study's folder."""
    root = tmp_path_factory.mktemp(request.param)
    uri = request.getfixturevalue("mlflow_uri") if request.param == "server" else f"sqlite:///{root}/mlflow.db"
    folder = root / "demo-1"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where MLflow puts the artifacts of a SQLite store
        told = tracker(uri, folder)
        told.check()
        tell_study(told, folder)
        told.close()
    assert told.warnings == ()
    assert not (folder / "mlflow.log").exists()  # nothing was said on stderr
    return uri, folder


def test_the_parent_run_is_the_study(store: tuple[str, Path]) -> None:
    uri, folder = store
    run = parent(uri, folder)
    assert MlflowClient(uri).get_experiment(run.info.experiment_id).name == "ammpl-demo"
    assert run.info.run_name == "demo-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"budget.trials": "5", "gpu": "null"}
    assert run.data.metrics == {"test/accuracy": 0.7}
    assert run.data.tags["kind"] == "test"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**coop .70**\n\n# Question\nWhich?\n\n| row |") and note.endswith("| coop | .70 |")
    assert files(uri, run) == {"study.yaml", "summary.md"}


def test_states_and_statuses(store: tuple[str, Path]) -> None:
    assert states(*store) == ENDS


def test_tags_say_what_a_trial_is_and_how_it_ended(store: tuple[str, Path]) -> None:
    runs = children(*store)
    pruned, failed = runs["search-0001"].data.tags, runs["search-0002"].data.tags
    assert (pruned["phase"], pruned["candidate"], pruned["repeat"], pruned["pruned_step"]) == (
        "search",
        "1",
        "1",
        "20",
    )
    assert failed["reason"] == "loss is NaN at step 20"
    assert "reason" not in runs["search-0003"].data.tags  # the earlier attempt's
    assert pruned["config_sha256"] == TRIALS["search-0001"].config.sha256
    assert runs["search-0001"].info.run_name == "001 tau=1.5 J=1"
    assert runs["test-coop-r2"].info.run_name == "test-coop-r2"
    assert runs["test-coop-r2"].data.tags["candidate"] == "coop"


def test_params_are_the_whole_configuration(store: tuple[str, Path]) -> None:
    params = children(*store)["search-0000"].data.params
    assert params.keys() == TRIALS["search-0000"].config.flat().keys()
    assert params["model.mask.temperature"] == "0.25"
    assert params["model.padding.depth"] == "2"
    assert params["training.epochs"] == "null"


def test_curves_have_each_point_once(store: tuple[str, Path]) -> None:
    uri, _ = store
    runs = children(*store)
    for key in ("search-0000", "search-0003"):
        assert curve(uri, runs[key], "validation/accuracy") == [(20, 0.2), (40, 0.4), (60, 0.6)]
        assert curve(uri, runs[key], "mask/keep_rate") == [(20, 0.9), (40, 0.9), (60, 0.9)]
    assert curve(uri, runs["search-0000"], "objective") == [(60, 0.6)]
    assert runs["search-0000"].data.metrics["seconds"] == 1.5
    ((step, value),) = curve(uri, runs["search-0002"], "validation/accuracy")
    assert step == 20 and math.isnan(value)


def test_data_sets_are_inputs(store: tuple[str, Path]) -> None:
    runs = children(*store)
    (searched,) = runs["search-0000"].inputs.dataset_inputs
    (tested,) = runs["test-coop-r2"].inputs.dataset_inputs
    assert searched.dataset.name == "digits"
    assert json.loads(searched.dataset.profile)["shots"] == 16
    assert searched.dataset.digest == runs["search-0001"].inputs.dataset_inputs[0].dataset.digest
    assert searched.dataset.digest != tested.dataset.digest  # another repeat, other images
    assert [tag.value for tag in searched.tags] == ["training"]
    assert [tag.value for tag in tested.tags] == ["testing"]


def test_files_of_the_trial_are_artifacts(store: tuple[str, Path], tmp_path: Path) -> None:
    uri, _ = store
    runs = children(*store)
    assert files(uri, runs["search-0000"]) == {"config.json", "masks.png"}
    assert files(uri, runs["search-0001"]) == set()
    got = MlflowClient(uri).download_artifacts(runs["search-0000"].info.run_id, "config.json", str(tmp_path))
    assert Path(got).read_text() == TRIALS["search-0000"].config.canonical_json()


def test_a_later_session_goes_on_in_the_same_runs(store: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    uri, folder = store
    before = {key: run.info.run_id for key, run in children(uri, folder).items()}
    monkeypatch.chdir(folder.parent)
    told = tracker(uri, folder)
    told.trial_started(TRIALS["search-0004"])
    report(told, "search-0004", 20)
    told.trial_finished(TRIALS["search-0004"], outcome(State.COMPLETE, 0.2, 20))
    told.trial_started(TRIALS["search-0001"])
    report(told, "search-0001", 20, 40)  # 20 is there already
    told.summary({}, "", interrupted=True)
    told.close()
    assert told.warnings == ()
    runs = children(uri, folder)
    assert {key: run.info.run_id for key, run in runs.items()} == before
    # Trial 1 had no end, as when a study is interrupted before it says how its trials ended.
    assert states(uri, folder) == {**ENDS, "search-0004": "COMPLETE", "search-0001": "LOST"}
    assert curve(uri, runs["search-0001"], "validation/accuracy") == [(20, 0.2), (40, 0.4)]
    assert "pruned_step" not in runs["search-0001"].data.tags
    assert "reason" not in runs["search-0004"].data.tags
    assert parent(uri, folder).info.status == "KILLED"


def test_a_store_that_moved_to_another_address_has_the_same_runs(store: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = store
    if not uri.startswith("sqlite:"):
        pytest.skip("a file is moved")
    (tmp_path / "moved.db").write_bytes((folder.parent / "mlflow.db").read_bytes())
    other = f"sqlite:///{tmp_path}/moved.db"
    copied = shutil.copytree(folder, tmp_path / folder.name)
    before = {run.info.run_id for run in children(other, copied).values()}
    told = tracker(other, copied)
    told.check()
    for key in ("search-0000", "search-0001"):
        told.trial_started(TRIALS[key])
        report(told, key, 20)
    told.close()
    assert told.warnings == ()
    assert {run.info.run_id for run in children(other, copied).values()} == before
    assert json.loads((copied / "mlflow.json").read_text())["tracking_uri"] == other
    fresh = f"sqlite:///{tmp_path}/fresh.db"  # which has never heard of the study
    told = tracker(fresh, copied)
    told.check()
    told.close()
    assert children(fresh, copied) == {}


def test_a_server_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    told = tracker(f"http://127.0.0.1:{free_port()}", tmp_path / "study")
    with pytest.raises(
        UserError, match=r"--tracking-uri: the MLflow store cannot be used \(.*, got 'http://127"
    ) as error:
        told.check()
    assert "mlflow.db" in str(error.value)
    assert not (tmp_path / "study").exists()
    told.trial_started(TRIALS["search-0000"])  # harmless
    told.close()


DRIVER = """
import sys, time
from pathlib import Path
from tests.integration.test_mlflow_tracking import TRIALS, report, tracker
told = tracker(sys.argv[1], Path(sys.argv[2]))
told.check()
for key in ("search-0000", "search-0001"):
    told.trial_started(TRIALS[key])
    report(told, key, 20)
while not told._process._queue.empty():  # what is in the pipe outlives the driver
    time.sleep(0.01)
print(told._process.pid, flush=True)
sys.stdin.read()
"""


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_writer_outlives_ctrl_c_and_ends_with_its_driver(sqlite_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    here = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, sqlite_uri, str(folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(here)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    writer = int(driver.stdout.readline())
    os.kill(writer, signal.SIGINT)
    driver.kill()
    driver.communicate()
    deadline = time.monotonic() + 60
    while alive(writer):
        assert time.monotonic() < deadline, "the writer was left behind"
        time.sleep(0.05)
    # Not interrupted by Ctrl-C: it stored what it was told, and that the rest will not come.
    assert states(sqlite_uri, folder) == {"search-0000": "LOST", "search-0001": "LOST"}
    runs = children(sqlite_uri, folder)
    assert curve(sqlite_uri, runs["search-0000"], "validation/accuracy") == [(20, 0.2)]
    assert runs["search-0000"].data.tags["reason"] == "the study's driver died"
    assert parent(sqlite_uri, folder).info.status == "FAILED"


def test_a_study_survives_its_writer(sqlite_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    told = tracker(sqlite_uri, folder)
    told.check()
    os.kill(told._process.pid, signal.SIGKILL)
    told._process.ended.wait()
    tell_study(told, folder)
    told.close()
    (warning,) = told.warnings
    assert "7 of 7 trials (confirm-0-r2, search-0000" in warning
    assert "exit code -9" in warning and "events.jsonl has everything" in warning

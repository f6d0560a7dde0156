"""The driver's half of tracking; tests/integration has both halves and real stores."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ammpl.errors import UserError
from ammpl.study.trial import State
from ammpl.study.views import tracking
from ammpl.study.views.mlflow_process import MLflowProcess
from ammpl.study.views.tracking import MLflowTracker
from tests.study.scripted import other_trial, outcome, trial

URI = "http://me:secret@host:5000/"
SILENT = "import sys; sys.stdin.buffer.raw.read(1); import time; time.sleep(600)"
REFUSING = """print('{"re": "imported"}'); print('{"re": "refused", "text": "no such store"}')"""
READY = """
print('{"re": "ready", "parent": {"experiment_id": "3", "run_id": "abc"}}', flush=True)
import sys; sys.stdin.read()
"""


def tracker(folder: Path, monkeypatch: pytest.MonkeyPatch, writer: str, uri: str | None = URI) -> MLflowTracker:
    """Return a tracker with such a program for a writer."""

    def start(process: Any, *_: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", writer]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=process._errors, text=True)

    monkeypatch.setattr(MLflowProcess, "_start", start)
    return MLflowTracker(uri, "demo", folder, "", {}, {})


def test_a_writer_that_hangs_holds_up_nothing_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = tracker(tmp_path, monkeypatch, SILENT)
    for number in range(200):  # far more than a pipe holds
        stuck.trial_started(trial(number))
        for step in range(20):
            stuck.trial_reported(trial(number), step, {"validation/accuracy": 0.5})
        stuck.trial_finished(trial(number), outcome(State.COMPLETE))
    stuck.close(patience=0.2)
    (warning,) = stuck.warnings
    assert "MLflow (http://me:***@host:5000/) lacks 200 of 200 trials (search-0000, " in warning
    assert "no progress for 0.2 s" in warning
    assert not Path(f"/proc/{stuck._process.pid}").exists()
    stuck.close()  # a second time does nothing


def test_addresses_are_shown_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tracker(tmp_path, monkeypatch, READY)
    ready.check()
    assert ready.opened_by == "http://me:***@host:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    ready.close()


def test_what_opens_a_store_that_is_no_server_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ready = tracker(tmp_path, monkeypatch, READY, uri=None)
    assert ready.opened_by == f"python tune.py ui {tmp_path}"
    ready.close()


def test_a_store_that_refuses_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tracker(tmp_path, monkeypatch, REFUSING)
    with pytest.raises(
        UserError, match=r"^--tracking-uri: the MLflow store cannot be used \(no such store\), got .*\*\*\*@"
    ):
        refused.check()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: the MLflow store cannot be used"):
        tracker(tmp_path, monkeypatch, REFUSING, uri=None).check()


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tracker(tmp_path, monkeypatch, """print('{"re": "imported"}', flush=True)\n""" + SILENT)
    with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
        silent.check(seconds=0.1)


def test_the_digest_of_the_data_changes_with_the_images_it_picks() -> None:
    def digest(of: tracking.Trial) -> str:
        return tracking._dataset(of.config.flat(), of.config.seeds.data, "training")["digest"]

    assert digest(trial(0, mask__temperature=0.5)) == digest(trial(1))
    assert digest(other_trial("confirm", "0", 2)) != digest(other_trial("confirm", "0", 3))


def test_the_driver_does_not_import_mlflow() -> None:
    code = "import sys, ammpl.study.views.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_run_says_which_trial_it_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    ready = tracker(tmp_path, monkeypatch, READY)
    monkeypatch.setattr(MLflowProcess, "send", lambda self, event: sent.append(event))
    ready.trial_finished(trial(3), dataclasses.replace(outcome(), duplicate_of="search-0001"))
    ready.trial_finished(trial(4), outcome())
    assert [event["tags"] for event in sent] == [
        {"state": "COMPLETE", "duplicate_of": "search-0001"},
        {"state": "COMPLETE"},
    ]
    ready.close()


def test_why_the_writer_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line that it printed; a package that is missing is no matter of the address."""
    lost = tracker(tmp_path, monkeypatch, "import no_such_package")
    with pytest.raises(UserError, match=r"exit code 1: ModuleNotFoundError: No module named .* Fix: install what is"):
        lost.check()
    ended = tracker(tmp_path, monkeypatch, "import sys; sys.exit('no room for postgresql://me:hunter2@host')")
    with pytest.raises(
        UserError, match=r"exit code 1: no room for postgresql://me:\*\*\*@host.* Fix: start the server"
    ):
        ended.check()

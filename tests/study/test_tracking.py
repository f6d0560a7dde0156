"""The driver's half of tracking; tests/integration has both halves and real stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ammpl.study import tracking
from ammpl.study.tracking import MLflowTracker, without_password
from ammpl.study.trial import State
from tests.study.scripted import other_trial, outcome, trial

ALWAYS_BUSY = "import time\nwhile True: time.sleep(60)"


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLflowTracker:
    """A tracker whose writer neither reads nor answers."""

    def start(uri: str, log: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", ALWAYS_BUSY], stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(tracking, "_start_writer", start)
    return MLflowTracker("http://me:secret@host:5000/", "demo", tmp_path / "study", "", {}, {})


def test_a_writer_that_hangs_holds_up_nothing_and_is_ended(stuck: MLflowTracker) -> None:
    for number in range(200):  # far more than a pipe holds
        stuck.trial_started(trial(number))
        for step in range(20):
            stuck.trial_reported(trial(number), step, {"validation/accuracy": 0.5})
        stuck.trial_finished(trial(number), outcome(State.COMPLETE))
    stuck.close(patience=0.2)
    (warning,) = stuck.warnings
    assert "MLflow (http://me:***@host:5000/) lacks 200 of 200 trials (search-0000, " in warning
    assert "no progress for 0.2 s" in warning
    assert stuck._process.returncode is not None
    stuck.close()  # a second time does nothing


def test_addresses_are_shown_without_passwords(stuck: MLflowTracker) -> None:
    assert without_password("postgresql+psycopg2://me:pa:ss@db/x") == "postgresql+psycopg2://me:***@db/x"
    assert without_password("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    assert stuck.ui_command == "http://me:***@host:5000/"
    stuck.parent = {"experiment_id": "3", "run_id": "abc"}
    assert stuck.run_url == "http://me:***@host:5000/#/experiments/3/runs/abc"
    stuck.close(patience=0)


def test_the_digest_of_the_data_changes_with_the_images_it_picks() -> None:
    def digest(of: tracking.Trial) -> str:
        return tracking._dataset(of, of.config.flat())["digest"]

    assert digest(trial(0, mask__temperature=0.5)) == digest(trial(1))
    assert digest(other_trial("confirm", "0", 2)) != digest(other_trial("confirm", "0", 3))


def test_the_driver_does_not_import_mlflow() -> None:
    code = "import sys, ammpl.study.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

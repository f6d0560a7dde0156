from __future__ import annotations

import copy
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ammpl.study.engine.ray_worker import Parcel
from ammpl.study.engine.worker import Attempt, End, Evaluation, execute
from ammpl.study.trial import Trial
from tests.study.fakes import small_space


def _trial(phase: Any = "search", learnables: Path | None = None) -> Trial:
    return Trial(f"{phase}-0", phase, "0", None, 1, small_space().config({}, 1), {}, learnables)


def test_an_attempt_yields_evaluations_then_ends(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        assert folder.is_dir()
        yield 10, {"a": 1}
        yield 20, {"a": 2}
        (folder / "file").touch()

    attempt = Attempt(run, _trial(), tmp_path / "trial")
    first, second, end = attempt.next(), attempt.next(), attempt.next()
    assert isinstance(first, Evaluation)
    assert (first.step, first.metrics) == (10, {"a": 1.0})
    assert isinstance(second, Evaluation)
    assert isinstance(end, End)
    assert end.failure is None
    assert 0 <= first.seconds <= second.seconds <= end.seconds
    assert (tmp_path / "trial" / "file").exists()


def test_a_full_disk_takes_the_traceback_and_not_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*told: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    end = Attempt(full, _trial(), tmp_path / "trial").next()
    assert isinstance(end, End)
    assert end.failure == "OSError: [Errno 28] No space left on device"
    assert list((tmp_path / "trial").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("loss is nan\n at step 3"), "ValueError: loss is nan at step 3"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_exception_becomes_a_reason_and_a_traceback_on_disk(
    tmp_path: Path, error: Exception, reason: str, at_once: bool
) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        if not at_once:
            yield 10, {"a": 1.0}
        raise error

    def plain(trial: Trial, folder: Path) -> Any:
        raise error

    attempt = Attempt(plain if at_once else run, _trial(), tmp_path / "trial")
    if not at_once:
        assert isinstance(attempt.next(), Evaluation)
    end = attempt.next()
    assert isinstance(end, End)
    assert end.failure == reason
    text = (tmp_path / "trial" / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert type(error).__name__ in text


def test_closing_runs_the_clean_up_of_what_was_stopped(tmp_path: Path) -> None:
    closed = []

    def run(trial: Trial, folder: Path) -> Any:
        try:
            yield 10, {"a": 1.0}
        finally:
            closed.append(trial.key)

    attempt = Attempt(run, _trial(), tmp_path)
    attempt.close()
    assert closed == []
    attempt.next()
    attempt.close()
    assert closed == ["search-0"]


def test_trials_are_trained_and_those_of_the_test_phase_scored(tmp_path: Path, monkeypatch: Any) -> None:
    from ammpl.training import run

    monkeypatch.setattr(run, "train", lambda *told: ("train", *told))
    monkeypatch.setattr(run, "test", lambda *told: ("test", *told))
    trial = _trial("confirm")
    assert execute(trial, tmp_path) == ("train", trial.config, tmp_path, None)
    trial = _trial("test", tmp_path / "learnables.safetensors")
    assert execute(trial, tmp_path) == ("test", trial.config, tmp_path / "learnables.safetensors", tmp_path, None)


def test_a_trial_on_its_way_is_neither_copied_nor_spelled_out() -> None:
    parcel = Parcel(_trial(), {}, None)
    assert copy.deepcopy({"trial": parcel})["trial"] is parcel
    assert str(parcel) == "search-0"
    assert pickle.loads(pickle.dumps(parcel)).trial == parcel.trial

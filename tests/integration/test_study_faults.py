"""What goes wrong around trials, with real Ray: workers that die or hang, and what becomes of their trials."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ammpl.study.engine.ray_engine import run_plan
from ammpl.study.engine.ray_worker import Resources
from ammpl.study.engine.worker import Attempt, End
from ammpl.study.plan.search_plan import Plan
from ammpl.study.trial import MachineError, State, Trial
from tests.study.fakes import Recorder, small_space
from tests.study.scripted import other_trial

pytestmark = pytest.mark.usefixtures("ray_cluster")

NO_PRUNER = {"name": "none"}


def _evaluations(trial: Trial) -> Iterator[tuple[int, dict[str, float]]]:
    name = "test/accuracy" if trial.phase == "test" else "validation/accuracy"
    for step in (10, 20, 30):
        yield step, {name: 0.5, "pid": float(os.getpid())}


def _run(folder: Path, execute: Any, concurrency: int, **changes: Any) -> tuple[Plan, Recorder]:
    recorder = Recorder()
    plan = Plan(small_space(pruner=NO_PRUNER, **changes), "small", folder, recorder)
    assert run_plan(lambda: plan, execute, folder, Resources(concurrency))
    return plan, recorder


def _wait(until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _steps(recorder: Recorder) -> dict[str, list[int]]:
    return {key: [step for step, _ in curve] for key, curve in recorder.curves.items()}


def test_a_worker_that_dies_between_two_trials_costs_the_next_one_nothing(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        died = tmp_path / "died"
        if (
            trial.number == 1
        ):  # the other worker has nothing to do until this trial ends, since what follows depends on it
            _wait(lambda: died.exists() and _is_gone(int(died.read_text() or os.getpid())))
        yield from _evaluations(trial)
        if trial.number == 0:
            died.write_text(str(os.getpid()))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()  # once its end has been told

    confirm = {"top": 1, "repeats": 4, "baselines": []}
    _, recorder = _run(tmp_path, run, 2, budget={"trials": 2}, confirm=confirm)
    assert {outcome.state for outcome in recorder.outcomes.values()} == {State.COMPLETE}
    assert len(recorder.outcomes) == 2 + 4 + 4
    assert all(steps == [10, 20, 30] for steps in _steps(recorder).values())
    died = float((tmp_path / "died").read_text())
    assert [key for key, curve in recorder.curves.items() if curve[0][1]["pid"] == died] == ["search-0000"]


def test_a_worker_killed_while_it_writes_its_checkpoint_goes_on_from_the_one_before(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        checkpoint = folder / "checkpoint"
        begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for step in range(begun + 10, 40, 10):
            draft = folder / "checkpoint.partial"
            draft.write_text(str(step))
            if trial.number == 1 and step == 20 and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            draft.replace(checkpoint)
            yield step, {"validation/accuracy": 0.5, "begun": float(begun)}

    _, recorder = _run(tmp_path, run, 1, budget={"trials": 3}, confirm=None)
    assert {outcome.state for outcome in recorder.outcomes.values()} == {State.COMPLETE}
    assert all(steps == [10, 20, 30] for steps in _steps(recorder).values())
    assert [metrics["begun"] for _, metrics in recorder.curves["search-0001"]] == [0, 10, 10]


def test_a_trial_that_takes_too_long_has_failed_and_its_worker_is_replaced(tmp_path: Path) -> None:
    def run(trial: Trial, folder: Path) -> Any:
        for step, metrics in _evaluations(trial):
            yield step, metrics
            if trial.number == 1 and step == 20:
                time.sleep(3600)  # within a step: nothing can be asked of it

    budget = {"trials": 3, "trial_time": "3s"}
    _, recorder = _run(tmp_path, run, 1, budget=budget, confirm=None)
    states = [(outcome.state, outcome.reason) for outcome in recorder.outcomes.values()]
    reason = "did not end within its time of 3 s (budget.trial_time)"
    assert states == [(State.COMPLETE, None), (State.FAILED, reason), (State.COMPLETE, None)]
    assert _steps(recorder)["search-0001"] == [10, 20]
    assert recorder.outcomes["search-0001"].seconds == 3.0
    pids = [curve[0][1]["pid"] for curve in recorder.curves.values()]
    assert pids[0] == pids[1] != pids[2]
    assert _is_gone(int(pids[1]))


def test_a_fault_of_the_machine_interrupts_a_trial_and_does_not_fail_it(tmp_path: Path) -> None:
    def full_at_first(trial: Trial, folder: Path) -> Any:
        tried = tmp_path / f"tried-{trial.key}"
        times = len(tried.read_text()) if tried.exists() else 0
        tried.write_text("x" * (times + 1))
        yield from _evaluations(trial)
        if trial.key == "search-0001" and times < 2:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:  # as a library may tell it
                raise RuntimeError("could not save") from error

    for name in ("passes", "stays"):
        (tmp_path / name).mkdir()
    plan, recorder = _run(tmp_path / "passes", full_at_first, 1, budget={"trials": 3}, confirm=None)
    assert {outcome.state for outcome in recorder.outcomes.values()} == {State.COMPLETE}

    def full(trial: Trial, folder: Path) -> Any:
        yield from _evaluations(trial)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = Recorder()
    plan = Plan(small_space(pruner=NO_PRUNER), "small", tmp_path / "stays", recorder)
    with pytest.raises(MachineError, match=r"search-0000 ended 3 times by OSError: .*No space left on device"):
        run_plan(lambda: plan, full, tmp_path / "stays", Resources(1))
    assert recorder.outcomes == {} and [trial.key for trial in plan.running] == ["search-0000"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "x"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError("IOError: write failed. Detail: [errno 28] No space left on device"), True),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (RuntimeError("loss is NaN"), False),
    ],
)
def test_faults_of_the_machine_are_told_from_a_trials(error: Exception, expected: bool, tmp_path: Path) -> None:
    def raises(trial: Trial, folder: Path) -> Any:
        raise error
        yield

    end = Attempt(raises, other_trial("search", "0", 1), tmp_path / "trial").next()
    assert isinstance(end, End) and end.machine is expected

"""Trials in forks of a warm process: what they are like, and how they end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ammpl.errors import UserError
from ammpl.study.engine.runner import CAN_FORK, ForkedRunner, OwnRunner, runner, warm_process
from ammpl.study.engine.worker import THREAD_VARIABLES, End, Evaluation, Ready
from ammpl.study.trial import Trial
from tests.study.fakes import small_space
from tests.study.in_a_fork import about, break_down, die, hang, refuse

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="this system cannot tell a process of another one's end")

NEEDLESS = ("ray", "mlflow", "optuna", "matplotlib", "sklearn", "scipy", "pandas")


@pytest.fixture(scope="module")
def warm() -> Iterator[str]:
    with warm_process(True) as address:
        assert address is not None
        yield address


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a worker does to its own process is undone."""
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, os.environ.get(variable, "1"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _trial(key: str = "search-0000") -> Trial:
    config = small_space().config({}, 1)
    return Trial(key=key, phase="search", candidate="0", number=0, repeat=1, config=config, params={})


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_fork_has_what_training_needs_and_no_more(
    warm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMMPL_TEST", "of the worker")
    monkeypatch.chdir(tmp_path)
    forked = runner(warm, 1)
    assert isinstance(forked, ForkedRunner)
    forked.begin(about, _trial(), tmp_path / "trial")
    news = forked.next()
    assert isinstance(news, Evaluation) and news.metrics["pid"] != os.getpid()
    assert (news.metrics["threads"], news.metrics["cuda"]) == (1, 0)
    modules = (tmp_path / "trial" / "modules").read_text().split()
    assert {"torch", "ammpl.training.run"} <= set(modules)
    assert {module.partition(".")[0] for module in modules}.isdisjoint(NEEDLESS)
    assert (tmp_path / "trial" / "place").read_text().splitlines() == [str(tmp_path), "of the worker", "1"]
    assert isinstance(forked.next(), End)
    forked.close()


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("forks", [True, False])
def test_what_is_found_before_trials_is_the_same_in_a_fork(warm: str, forks: bool) -> None:
    where = runner(warm if forks else None, 1)
    assert isinstance(where, ForkedRunner if forks else OwnRunner)
    refused = where.prepare(refuse)
    assert isinstance(refused, Ready) and isinstance(refused.error, UserError)
    assert str(refused.error) == str(UserError("data", "is not there", fix="get it"))
    broken = where.prepare(break_down).error
    assert isinstance(broken, RuntimeError) and "ValueError: a surprise" in str(broken)
    assert where.prepare(os.getpid) == Ready()  # type: ignore[arg-type]


def test_a_fork_dies_with_its_worker_in_the_middle_of_a_step(warm: str, tmp_path: Path) -> None:
    forked, other = runner(warm, 1), runner(warm, 1)
    assert isinstance(forked, ForkedRunner)
    for where in (forked, other):
        where.begin(hang, _trial(), tmp_path)
    pid, kept = (int(where.next().metrics["pid"]) for where in (forked, other))  # type: ignore[union-attr]
    forked._connection.send(("next", ()))  # as a worker that is killed before the answer
    _wait((tmp_path / "hangs").exists)
    forked._connection.close()
    _wait(lambda: _is_gone(pid))
    assert not _is_gone(kept)
    other.close()


def test_a_worker_hears_of_its_forks_death(warm: str, tmp_path: Path) -> None:
    forked = runner(warm, 1)
    forked.begin(die, _trial(), tmp_path)
    with pytest.raises((EOFError, ConnectionError)):
        forked.next()
    assert isinstance(runner(warm, 1), ForkedRunner)  # the next one is as good as new


def test_forks_end_with_their_driver(tmp_path: Path) -> None:
    with warm_process(True) as address:
        forked = runner(address, 1)
        forked.begin(hang, _trial(), tmp_path)
        pid = int(forked.next().metrics["pid"])  # type: ignore[union-attr]
        ended = threading.Event()

        def wait() -> None:
            with contextlib.suppress(EOFError, ConnectionError):
                forked.next()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        _wait((tmp_path / "hangs").exists)
    _wait(lambda: _is_gone(pid))
    assert ended.wait(60)
    assert not Path(str(address)).exists()


@pytest.mark.usefixtures("as_it_was")
def test_without_a_warm_process_a_worker_does_the_work(tmp_path: Path) -> None:
    with warm_process(False) as address:
        assert address is None
    assert isinstance(runner(None, 1), OwnRunner)
    assert isinstance(runner(str(tmp_path / "nobody"), 1), OwnRunner)

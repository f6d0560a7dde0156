"""The search copied to an Optuna storage while it runs: the same trials, in whatever state the storage was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from ammpl.errors import UserError
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.event_log import FILE
from ammpl.study.record.observers import Observers
from ammpl.study.space.ablation_space import parse_ablation
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.study import Options, resume_study, run_study
from ammpl.study.trial import Trial
from ammpl.study.views.optuna_copy import OptunaCopy, file_url
from ammpl.study.views.optuna_writer import Copies
from ammpl.study.views.writer_process import WriterProcess
from tests.integration.test_resume import ROOT
from tests.study.fakes import (
    DEPTH,
    MULTIPLIER,
    PRUNERS,
    SAMPLERS,
    TEMPERATURE,
    WIDTH,
    Pipe,
    Recorder,
    execute,
    run_inline,
    small_space,
    told,
)


def stored(url: str, name: str | None = None) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=url)


def check_same(copy: optuna.Study, study: optuna.Study) -> None:
    def attributes(of: optuna.Study) -> list[Any]:
        return [(trial.user_attrs, trial.system_attrs) for trial in of.get_trials(deepcopy=False)]

    assert repr(told(copy)) == repr(told(study))  # NaN equals NaN there
    assert attributes(copy) == attributes(study)
    assert copy.directions == study.directions


def searched(folder: Path, pipe: Any, *later: SearchSpace, **changes: Any) -> Plan:
    """Run a search, and later versions of it, that tells such a pipe."""
    folder.mkdir()
    (folder / FILE).write_text("a session\n")
    recorder = Recorder()
    observers = Observers([recorder])
    plan = Plan(small_space(confirm=None, **changes), "small", folder, observers)
    observers.join(OptunaCopy(plan.searches, folder, None, pipe))
    run_inline(plan, folder)
    for space in later:
        plan.extend(space)
        run_inline(plan, folder)
    return plan


@pytest.mark.parametrize(
    ("sampler", "pruner", "every"),
    [("tpe", "median", 1), ("tpe", "successive_halving", 10_000), ("cmaes", "hyperband", 7), ("nsga2", "none", 7)],
)
def test_the_copy_equals_the_study_in_memory(tmp_path: Path, sampler: str, pruner: str, every: int) -> None:
    pipe = Pipe()
    plan = searched(tmp_path / "study", pipe, sampler=SAMPLERS[sampler][0], pruner=PRUNERS[pruner][0])
    url = f"sqlite:///{tmp_path}/study/optuna.sqlite3"
    copies = Copies(pipe.sent[0])
    for number, event in enumerate(pipe.sent[1:], 1):
        copies.take(event)
        if number % every == 0:
            assert copies.attempt(copies.store), copies.last_error
            if number == 2:
                assert [trial.state.name for trial in stored(url).trials] == ["RUNNING"]  # readable while it runs
    assert copies.attempt(copies.store), copies.last_error
    check_same(stored(url), plan.search.study)
    assert {"PRUNED", "FAIL"} & {trial.state.name for trial in stored(url).trials}


def test_two_objectives_a_first_point_and_a_second_space(tmp_path: Path) -> None:
    second = {"metric": "mask/keep_rate", "direction": "minimize"}
    common: dict[str, Any] = {"second_objective": second, "pruner": {"name": "none"}}
    first = {TEMPERATURE: 0.7, DEPTH: 2, WIDTH: 8, MULTIPLIER: 10.0}
    wide = {name: parameter.model_dump(exclude_none=True) for name, parameter in small_space().parameters.items()}
    narrow = small_space(
        confirm=None,
        **common,
        budget={"trials": 9},
        first=first,
        parameters={**wide, DEPTH: {"type": "int", "low": 1, "high": 3}},
    )
    pipe = Pipe()
    plan = searched(tmp_path / "study", pipe, narrow, budget={"trials": 6}, first=first, **common)
    copies = Copies(pipe.sent[0])
    for event in pipe.sent[1:]:
        copies.take(event)
    assert copies.attempt(copies.store), copies.last_error
    url = f"sqlite:///{tmp_path}/study/optuna.sqlite3"
    assert optuna.get_all_study_names(url) == ["study", "study-2"]
    for name, search in zip(("study", "study-2"), plan.searches, strict=True):
        check_same(stored(url, name), search.study)


def test_a_storage_that_fails_at_every_turn_gets_each_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe()
    plan = searched(tmp_path / "study", pipe)
    copies = Copies(pipe.sent[0])
    calls = 0

    def flaky(what: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 6 == 2:
                raise ConnectionError("refused")
            done = what(*arguments, **named)
            if calls % 6 == 5:
                raise ConnectionError("the answer was lost")
            return done

        return call

    for name in ("create_new_study", "create_new_trial", "set_trial_intermediate_value", "set_trial_state_values"):
        monkeypatch.setattr(optuna.storages.RDBStorage, name, flaky(getattr(optuna.storages.RDBStorage, name)))
    failed = 0
    for event in pipe.sent[1:]:
        copies.take(event)
        copies.retry_at = 0.0  # rather than wait
        failed += not copies.attempt(copies.store)
    while not copies.attempt(copies.store):
        copies.retry_at = 0.0
        assert calls < 10_000
    assert failed > 5
    check_same(stored(f"sqlite:///{tmp_path}/study/optuna.sqlite3"), plan.search.study)  # the only one there


def test_studies_of_the_same_name_in_one_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    optuna.create_study(study_name="study", storage=url).add_trial(optuna.create_trial(value=1.0))
    for token, name in (("a", "study-2"), ("b", "study-3"), ("a", "study-2")):
        copies = Copies({"url": url, "token": token})
        copies.take({"op": "search", "name": "study", "directions": ["MAXIMIZE"]})
        assert copies.attempt(copies.store), copies.last_error
        assert stored(url, name).user_attrs["ammpl:study"] == token
    assert optuna.get_all_study_names(url) == ["study", "study-2", "study-3"]
    assert len(stored(url, "study").trials) == 1


def test_a_storage_that_cannot_be_used_is_the_users_to_mend(tmp_path: Path) -> None:
    plan = Plan(small_space(confirm=None), "small", tmp_path, Recorder())
    process = WriterProcess("ammpl.study.views.optuna_writer", {})
    copy = OptunaCopy(plan.searches, tmp_path, "postgres://me:secret@host/x", process)
    rule = r"--optuna-storage: the Optuna storage cannot be used .*, got .*me:\*\*\*@host"
    with pytest.raises(UserError, match=rule):
        copy.check()
    variants = {"a": {"model.mask.kind": "none"}, "b": {"model.mask.kind": "learned"}}
    raw = {
        "version": 1,
        "name": "masks",
        "kind": "ablation",
        "reference": "a",
        "variants": variants,
        "repeats": [1, 2],
    }
    options = Options(tmp_path / "x", optuna_storage="sqlite:///x.db", tracking=False)
    with pytest.raises(UserError, match="--optuna-storage: belongs to a search, and an ablation is none"):
        run_study(parse_ablation({**raw, "repeats": [1, 2]}, "masks.yaml"), options, execute=execute)
    assert not (tmp_path / "x").exists()


def test_a_live_study_and_one_that_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    """Read while trials run; interrupted, when its trial has failed in the storage, and resumed."""
    url = f"sqlite:///{tmp_path}/shared.db"
    seen = tmp_path / "seen"
    space = small_space(budget={"trials": 6}, confirm=None)
    plan = Plan(space, "small", tmp_path, Recorder())
    run_inline(plan, tmp_path)
    whole = [trial.number for trial in plan.search.study.trials if trial.state.name == "COMPLETE"]
    cut = whole[len(whole) // 2]

    def waiting(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        for step, metrics in execute(trial, folder):
            if trial.number == cut and step == 20 and not seen.exists():
                deadline = time.monotonic() + 120
                while not running_at(url, cut):
                    assert time.monotonic() < deadline, "the running trial is not in the storage"
                    time.sleep(0.1)
                seen.touch()
                os.kill(driver, signal.SIGINT)
                time.sleep(3600)
            yield step, metrics

    driver = os.getpid()
    options = Options(tmp_path / "study", concurrency=1, tracking=False, optuna_storage=url, quiet=True)
    summary = run_study(space, options, execute=waiting)
    assert summary.interrupted and summary.problems == ()
    lost = stored(url).trials[cut]
    assert lost.state.name == "FAIL" and lost.user_attrs["state"] == "LOST"
    assert not (summary.folder / "optuna.sqlite3").exists()
    resumed = resume_study(summary.folder, Options(concurrency=1, tracking=False, quiet=True), execute=execute)
    assert resumed is not None and resumed.problems == ()
    assert optuna.get_all_study_names(url) == ["study"]
    check_same(stored(url), plan.search.study)


KILLED = """
import sys, time
from pathlib import Path
from ammpl.study.study import Options, run_study
from tests.study.fakes import execute, small_space
folder, url, cut = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def waiting(trial, folder):
    for step, metrics in execute(trial, folder):
        if trial.number == cut and step == 20:
            time.sleep(100)
        yield step, metrics
options = Options(folder, concurrency=1, tracking=False, optuna_storage=url, quiet=True)
run_study(small_space(budget={"trials": 8}, confirm=None), options, execute=waiting)
"""


def test_a_driver_killed_while_the_storage_is_written_to(ray_cluster: None, tmp_path: Path) -> None:
    """Killed with some trials in the storage and one running there: resumed, it has each trial once."""
    url, folder = f"sqlite:///{tmp_path}/shared.db", tmp_path / "study"
    plan = Plan(small_space(budget={"trials": 8}, confirm=None), "small", tmp_path, Recorder())
    run_inline(plan, tmp_path)
    whole = [trial.number for trial in plan.search.study.trials if trial.state.name == "COMPLETE"]
    cut = whole[len(whole) // 2]
    command = [sys.executable, "-c", KILLED, str(folder), url, str(cut)]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not running_at(url, cut):
        assert process.poll() is None and time.monotonic() < deadline, "the running trial is not in the storage"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < cut < 7 and [trial.number for trial in stored(url).trials] == [*range(cut + 1)]
    resumed = resume_study(folder, Options(concurrency=1, tracking=False, quiet=True), execute=execute)
    assert resumed is not None and resumed.problems == ()
    assert optuna.get_all_study_names(url) == ["study"]
    check_same(stored(url), plan.search.study)


def running_at(url: str, number: int) -> bool:
    """Whether a trial is seen running, with what it reported."""
    try:
        trial = stored(url, "study").trials[number]
    except (LookupError, sqlalchemy.exc.DatabaseError):  # neither it, the study nor the tables are there yet
        return False
    return trial.state.name == "RUNNING" and 10 in trial.intermediate_values


@pytest.mark.parametrize("name", ["plain", "a?b", "a#b", "a%3Fb", "a{b}", "a b&c=d"])
def test_the_file_lies_in_the_folder_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    optuna.storages.RDBStorage(file_url(tmp_path / name / "optuna.sqlite3")).get_all_studies()
    assert (tmp_path / name / "optuna.sqlite3").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]

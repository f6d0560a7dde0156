"""The study through real Ray: the same as plain Optuna, the same twice, and whole when workers die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import ray

from ammpl.errors import UserError
from ammpl.study.engine import ray_bridge
from ammpl.study.engine.ray_cluster import busy, connected, fit_resources
from ammpl.study.engine.ray_engine import run_plan
from ammpl.study.engine.ray_worker import Resources
from ammpl.study.engine.runner import warm_process
from ammpl.study.plan.search_plan import Plan
from ammpl.study.result.summary import Summary
from ammpl.study.space.space_file import parse_study_space
from ammpl.study.study import Options, run_study
from ammpl.study.trial import State, Trial
from tests.integration.mlflow_store import parent, states
from tests.study.fakes import PRUNERS, Recorder, accuracy, execute, optimized, small_space, told
from tests.study.in_a_fork import die_once

pytestmark = pytest.mark.usefixtures("ray_cluster")

ONE = Resources(concurrency=1)
TIMES = {"seconds", "started", "ended"}


def _evaluations(trial: Trial, steps: int = 3) -> Iterator[tuple[int, dict[str, float]]]:
    name = "test/accuracy" if trial.phase == "test" else "validation/accuracy"
    for step in range(10, 10 * steps + 1, 10):
        yield step, {name: accuracy(trial.params, step, trial.repeat), "pid": float(os.getpid())}


def _run(
    plan_folder: Path, execute: Any, resources: Resources = ONE, warm: str | None = None, **changes: Any
) -> tuple[Plan, Recorder, bool]:
    recorder = Recorder()
    plan = Plan(small_space(**changes), "small", plan_folder, recorder)
    ended = run_plan(lambda: plan, execute, plan_folder, resources, warm=warm)
    return plan, recorder, ended


@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon", "patient"])
def test_one_at_a_time_the_search_is_what_plain_optuna_makes(tmp_path: Path, pruner: str) -> None:
    plan, _, ended = _run(tmp_path, execute, pruner=PRUNERS[pruner][0], seed=3, budget={"trials": 40}, confirm=None)
    assert ended
    sampler = optuna.samplers.TPESampler(n_startup_trials=5, seed=3)
    expected = told(optimized(plan.space, pruner, sampler))
    assert told(plan.search.study) == expected
    assert {state.name for _, state, *_ in expected} == {"COMPLETE", "PRUNED", "FAIL"}


@pytest.fixture(scope="module")
def two_studies(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Summary]:
    """The same study, run twice one trial at a time, the first time tracked in MLflow."""
    space = small_space(budget={"trials": 30}, seed=3)

    def run(tracking: bool) -> Summary:
        folder = tmp_path_factory.mktemp("study")
        options = Options(folder, concurrency=1, tracking=tracking, tracking_uri=_store(folder), quiet=True)
        with contextlib.chdir(folder.parent):  # MLflow puts a SQLite store's artifacts below the working directory
            return run_study(space, options, execute=execute)

    return run(tracking=True), run(tracking=False)


def _store(study: Path) -> str:
    return f"sqlite:///{study}.mlflow.db"


def test_the_same_study_twice_gives_the_same_trials_and_curves(two_studies: tuple[Summary, Summary]) -> None:
    first, second = (summary.folder for summary in two_studies)
    for table in ("trials", "curves"):
        one, two = (pq.read_table(folder / table / f"{table}.parquet") for folder in (first, second))
        kept = [name for name in one.column_names if name not in TIMES]
        assert one.select(kept).equals(two.select(kept))
    assert (first / "study.yaml").read_text() == (second / "study.yaml").read_text()
    assert two_studies[0].rows == two_studies[1].rows


def test_states_agree_trial_by_trial_everywhere(two_studies: tuple[Summary, Summary]) -> None:
    folder = two_studies[0].folder
    trials = pq.read_table(folder / "trials" / "trials.parquet").to_pylist()
    search = {row["number"]: row for row in trials if row["phase"] == "search"}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    logged = {event["key"]: event for event in events if event["event"] == "finished"}
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/optuna.sqlite3").trials
    assert {row["state"] for row in search.values()} == {"COMPLETE", "PRUNED", "FAILED"}
    assert len(stored) == len(search) == 30
    for trial in stored:
        row = search[trial.number]
        assert trial.user_attrs["state"] == row["state"] == logged[row["key"]]["state"]
        assert trial.state.name == {"FAILED": "FAIL"}.get(row["state"], row["state"])
        assert trial.user_attrs.get("reason") == row["reason"] == logged[row["key"]]["reason"]
        assert {name: row[f"params.{name}"] for name in trial.params} == trial.params
        if trial.value is not None:
            assert trial.value == row["value"] == logged[row["key"]]["value"]
    for row in trials:
        assert logged[row["key"]]["state"] == row["state"]
    assert states(_store(folder), folder) == {row["key"]: row["state"] for row in trials}


def test_repeats_of_a_configuration_and_what_becomes_of_it(tmp_path: Path) -> None:
    space = small_space(
        repeats=[1, 2, 3, 4, 5, 6], budget={"trials": 8}, confirm=None, seed=3, pruner=PRUNERS["wilcoxon"][0]
    )
    options = Options(tmp_path / "study", concurrency=2, tracking=False, quiet=True)
    summary = run_study(space, options, execute=execute)
    rows = pq.read_table(summary.folder / "trials" / "trials.parquet").to_pylist()
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{summary.folder}/optuna.sqlite3").trials
    assert len(stored) == 8
    for trial in stored:
        repeats = [row for row in rows if row["number"] == trial.number]
        assert [row["key"] for row in repeats] == [f"search-{trial.number:04d}-r{n + 1}" for n in range(len(repeats))]
        assert repeats[-1]["state"] == trial.user_attrs["state"]
        if trial.user_attrs["state"] != "FAILED":
            values = [row["value"] for row in repeats]
            assert trial.value == pytest.approx(sum(values) / len(values))
            assert list(trial.intermediate_values.values()) == values
        if trial.user_attrs["state"] == "COMPLETE":
            assert len(repeats) == 6


def test_a_cluster_whose_cpus_others_hold_is_said_to_be_waited_for(ray_cluster: None) -> None:
    holder = ray.remote(num_cpus=2)(_Idle).remote()
    ray.get(holder.answer.remote())
    text = busy(Resources(1), patience=0.0)
    assert text == "waiting for the cluster: 0 of 2 CPUs free ('ray status' says more)"
    ray.kill(holder)
    assert busy(Resources(1), patience=60.0) is None


class _Idle:
    def answer(self) -> None:
        pass


def test_the_folder_of_a_study(two_studies: tuple[Summary, Summary]) -> None:
    summary = two_studies[0]
    names = {path.name for path in summary.folder.iterdir()}
    assert names == {
        ".lock", ".mlflow.lock", ".optuna.lock", "checkpoints", "curves", "environment.json", "events.jsonl",
        "mlflow.json", "optuna.sqlite3", "study.yaml", "summary.json", "trials",
    }  # fmt: skip
    environment = json.loads((summary.folder / "environment.json").read_text())
    assert environment["packages"]["ray"] == ray.__version__
    assert environment["ray"]["CPU"] == 2
    saved = json.loads((summary.folder / "summary.json").read_text())
    assert saved["test_openings"] == summary.test_openings == 1
    assert [row["candidate"] for row in saved["rows"]] == [summary.winner, "zero_shot", "coop"]
    failed = [key for key in (summary.folder / "checkpoints").iterdir() if (key / "error.txt").exists()]
    assert len(failed) == summary.counts["search"]["FAILED"]
    assert "RuntimeError: loss is nan at step 30" in (failed[0] / "error.txt").read_text()


def test_two_at_a_time_share_two_warm_workers_through_all_phases(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()

    def meet(trial: Trial, folder: Path) -> Any:
        if trial.number in (0, 1):  # neither goes on before both run
            (meeting / trial.key).touch()
            while len(list(meeting.iterdir())) < 2:
                time.sleep(0.01)
        # One thread for each, no GPU, and the directory that relative paths in a configuration start from.
        assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("1", "")
        assert str(Path.cwd()) == directory
        yield from _evaluations(trial)

    directory = str(Path.cwd())
    plan, recorder, _ = _run(
        tmp_path, meet, Resources(concurrency=2), budget={"trials": 8}, confirm={"top": 2, "repeats": 2}
    )
    pids = {metrics["pid"] for curve in recorder.curves.values() for _, metrics in curve}
    assert len(pids) == 2
    assert {outcome.reason for outcome in recorder.outcomes.values()} == {None}
    assert Counter(trial.phase for trial in recorder.started) == plan.totals


@pytest.mark.parametrize("forks", [False, True], ids=["worker", "fork of a worker"])
def test_a_worker_killed_in_a_step_costs_a_repetition_and_no_step_twice(tmp_path: Path, forks: bool) -> None:
    with warm_process(forks) as warm:
        plan, recorder, ended = _run(
            tmp_path, die_once, warm=warm, budget={"trials": 3}, confirm=None, pruner={"name": "none"}
        )
    assert ended
    assert {metrics["forked"] for curve in recorder.curves.values() for _, metrics in curve} == {forks}
    assert (tmp_path / "checkpoints" / "search-0001" / "died").exists()
    assert [trial.number for trial in recorder.started] == [0, 1, 2]
    assert {key: [step for step, _ in curve] for key, curve in recorder.curves.items()} == {
        f"search-{number:04d}": [10, 20, 30] for number in range(3)
    }
    assert [outcome.state for outcome in recorder.outcomes.values()] == [State.COMPLETE] * 3
    assert [t.state.name for t in plan.search.study.trials] == ["COMPLETE"] * 3


def test_a_worker_killed_while_it_is_handed_over_costs_the_next_trial_nothing(tmp_path: Path) -> None:
    def die_when_stopped(trial: Trial, folder: Path) -> Any:
        try:
            for step in (10, 20):  # the first trial sets the mark, the second one falls short and is pruned
                yield step, {"validation/accuracy": 0.5 if trial.number == 1 else 0.9, "pid": float(os.getpid())}
        finally:
            if trial.number == 1:  # closed by the worker's reset for trial 2
                os.kill(os.getpid(), signal.SIGKILL)

    _, recorder, _ = _run(
        tmp_path,
        die_when_stopped,
        budget={"trials": 4},
        confirm=None,
        pruner={"name": "median", "startup_trials": 1},
    )
    states = [outcome.state for outcome in recorder.outcomes.values()]
    assert states == [State.COMPLETE, State.PRUNED, State.COMPLETE, State.COMPLETE]
    pids = [recorder.curves[f"search-{number:04d}"][0][1]["pid"] for number in range(4)]
    assert pids[0] == pids[1] != pids[2]


def test_a_trial_that_always_kills_its_worker_is_lost_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_bridge, "RETRIES", 1)

    def die(trial: Trial, folder: Path) -> Any:
        if trial.number == 0:
            with (tmp_path / "attempts").open("a") as attempts:
                attempts.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        yield from _evaluations(trial)

    plan, recorder, _ = _run(tmp_path, die, budget={"trials": 2}, confirm=None)
    assert (tmp_path / "attempts").read_text() == "xx"
    outcomes = list(recorder.outcomes.values())
    assert [outcome.state for outcome in outcomes] == [State.LOST, State.COMPLETE]
    assert outcomes[0].reason == "its worker process died 2 times"
    assert plan.search.study.trials[0].user_attrs["state"] == "LOST"


def test_the_first_interrupt_ends_a_study_cleanly(tmp_path: Path) -> None:
    driver = os.getpid()

    def interrupt(trial: Trial, folder: Path) -> Any:
        for step, metrics in _evaluations(trial):
            if trial.number == 2 and step == 20:
                os.kill(driver, signal.SIGINT)
                time.sleep(3600)  # a long step must not delay the end
            yield step, metrics

    before = signal.getsignal(signal.SIGINT)
    summary = run_study(
        small_space(pruner={"name": "none"}),
        Options(tmp_path / "study", concurrency=1, tracking=False, quiet=True),
        execute=interrupt,
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert summary.interrupted
    assert summary.counts == {"search": {"COMPLETE": 2, "LOST": 1}}
    assert summary.reasons == {"interrupted": 1}
    assert summary.best is not None
    assert summary.winner is None
    assert (summary.rows, summary.test_openings) == ((), 0)
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{summary.folder}/optuna.sqlite3").trials
    assert [t.user_attrs["state"] for t in stored] == ["COMPLETE", "COMPLETE", "LOST"]
    states = pq.read_table(summary.folder / "trials" / "trials.parquet").column("state").to_pylist()
    assert states == ["COMPLETE", "COMPLETE", "LOST"]


@pytest.mark.parametrize("kind", ["search", "ablation"])
def test_a_study_that_stops_itself_has_failed_in_mlflow_and_says_why(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def broken(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        raise RuntimeError("loss is nan")
        yield

    monkeypatch.chdir(tmp_path)
    variants = {"none": {"model.mask.kind": "none"}, "learned": {}}
    ablation = {"version": 1, "kind": kind, "name": "masks", "reference": "learned", "variants": variants}
    space = small_space() if kind == "search" else parse_study_space(ablation, "masks.yaml")
    options = Options(tmp_path / "study", concurrency=1, tracking_uri=sqlite_uri, quiet=True)
    summary = run_study(space, options, execute=broken)
    assert summary.stopped == "the first 5 trials all failed the same way: RuntimeError: loss is nan"
    assert not summary.interrupted
    run = parent(sqlite_uri, summary.folder)
    assert run.info.status == "FAILED"
    assert f"\n\nstopped: {summary.stopped}\n" in run.data.tags["mlflow.note.content"]
    assert list(states(sqlite_uri, summary.folder).values()) == ["FAILED"] * 5


def test_a_fault_of_ours_keeps_its_traceback_and_what_was_known(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(self: Plan, trial: Trial, *rest: Any) -> bool:
        if trial.number == 1:
            raise ZeroDivisionError("a bug")
        return honest(self, trial, *rest)

    honest = Plan.report
    monkeypatch.setattr(Plan, "report", broken)
    options = Options(tmp_path / "study", concurrency=1, tracking=False, quiet=True)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_study(small_space(), options, execute=execute)
    states = pq.read_table(tmp_path / "study" / "trials" / "trials.parquet").column("state").to_pylist()
    assert states == ["COMPLETE", "LOST"]


def test_a_mistake_that_only_a_worker_can_see_is_told_before_the_study(tmp_path: Path) -> None:
    space = small_space(fixed={"data.shots": 1000})
    with pytest.raises(UserError, match="shots"):
        run_study(space, Options(tmp_path / "study", tracking=False, quiet=True))
    assert not (tmp_path / "study").exists()


def test_a_tracking_server_that_does_not_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    options = Options(tmp_path / "study", tracking_uri="http://127.0.0.1:9", quiet=True)
    with pytest.raises(UserError, match="--tracking-uri"):
        run_study(small_space(), options, execute=execute)
    assert not (tmp_path / "study").exists()


def test_what_fits_on_the_cluster() -> None:
    assert fit_resources(None, None) == Resources(concurrency=2, cpus=1, gpus=0.0)
    assert fit_resources(1, 0) == Resources(concurrency=1, cpus=1, gpus=0.0)
    with pytest.raises(UserError, match=r"--concurrency: at most 2 trials of 1 CPU fit at a time, got 3"):
        fit_resources(3, None)
    with pytest.raises(UserError, match=r"--gpus-per-trial: the cluster has none, got 0.5"):
        fit_resources(None, 0.5)


@pytest.mark.parametrize(
    ("resources", "concurrency", "gpus", "fit"),
    [
        ({"CPU": 8, "GPU": 2}, None, None, Resources(2, 1, 1.0)),
        ({"CPU": 8, "GPU": 2}, None, 0.25, Resources(8, 1, 0.25)),
        ({"CPU": 64, "GPU": 2}, None, 0.3, Resources(6, 1, 0.3)),
        ({"CPU": 64, "GPU": 4}, None, 2, Resources(2, 1, 2)),
        ({"CPU": 64, "GPU": 4}, 1, 0, Resources(1, 1, 0)),
    ],
)
def test_what_fits_on_clusters_with_gpus(
    monkeypatch: pytest.MonkeyPatch, resources: Any, concurrency: Any, gpus: Any, fit: Resources
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert fit_resources(concurrency, gpus) == fit


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (
            "127.0.0.1:9",
            r"(Ray takes \S+ for it, and )?nothing answers there \(Connection refused\), got '127.0.0.1:9'",
        ),
        ("ray://127.0.0.1:10001", "must be the HOST:PORT of a cluster's head, or 'auto'"),
        ("localhost", "must be the HOST:PORT"),
        ("host:99999", "must be the HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, address: str, rule: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UserError, match=f"^--ray-address: {rule}"), connected(address):
        pass


def test_a_cluster_is_joined_by_its_address() -> None:
    code = """
import sys
from ammpl.study.engine.ray_cluster import busy, connected, fit_resources
with connected(sys.argv[1]):
    found = fit_resources(None, None)
    print(found.concurrency, found.cpus, found.gpus)
"""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "2 1 0.0\n", done.stderr

"""Trials that share GPUs, on two that Ray believes in: it deals out devices by number and looks at none."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ammpl.study.engine import packing
from ammpl.study.engine.ray_cluster import fit_resources
from ammpl.study.engine.ray_engine import run_plan
from ammpl.study.engine.ray_worker import Resources
from ammpl.study.plan.search_plan import Plan
from ammpl.study.trial import State, Trial
from tests.study.fakes import Recorder, small_space


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    """Another Ray than that of the other tests, which is put back if it was there."""
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    others = ray.is_initialized()
    if others:
        ray.shutdown()
    ray.init("local", num_cpus=10, num_gpus=2, **quiet)
    yield
    ray.shutdown()
    if others:
        ray.init("local", num_cpus=2, **quiet)


def _run(folder: Path, execute: Any, resources: Resources, trials: int, notice: Any = print) -> Recorder:
    recorder = Recorder()
    space = small_space(budget={"trials": trials}, confirm=None, pruner={"name": "none"})
    plan = Plan(space, "small", folder, recorder)
    assert run_plan(lambda: plan, execute, folder, resources, notice=notice)
    return recorder


def _device() -> float:
    return float(os.environ["CUDA_VISIBLE_DEVICES"])  # which has to be a single one


def test_eight_trials_share_two_gpus_and_a_ninth_waits(tmp_path: Path) -> None:
    began, ended = tmp_path / "began", tmp_path / "ended"
    began.mkdir(), ended.mkdir()

    def meet(trial: Trial, folder: Path) -> Any:
        before = len(list(ended.iterdir()))
        (began / trial.key).touch()
        deadline = time.monotonic() + 120
        while len(list(began.iterdir())) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        together = len(list(began.iterdir())) - len(list(ended.iterdir()))
        yield 10, {"validation/accuracy": 0.5, "device": _device(), "before": before, "together": together}
        (ended / trial.key).touch()

    resources = fit_resources(None, 0.25)
    assert resources == Resources(8, 1, 0.25)
    recorder = _run(tmp_path, meet, resources, 9)
    assert {(o.state, o.reason, o.gpus) for o in recorder.outcomes.values()} == {(State.COMPLETE, None, 0.25)}
    *first, ninth = (metrics for curve in recorder.curves.values() for _, metrics in curve)
    assert [metrics["before"] for metrics in first] == [0] * 8
    assert max(metrics["together"] for metrics in first) == 8
    assert Counter(metrics["device"] for metrics in first) == {0.0: 4, 1.0: 4}
    assert ninth["before"] >= 1


def test_the_first_trial_is_measured_and_the_others_share_gpus_as_it_allows(tmp_path: Path) -> None:
    began = tmp_path / "began"
    began.mkdir()

    def run(trial: Trial, folder: Path) -> Any:
        packing.measure = lambda: packing.Memory(3 * 2**30, 2**30, 16 * 2**30)  # in the worker: Ray's GPUs have none
        before = len(list(began.iterdir()))
        (began / trial.key).touch()
        yield 10, {"validation/accuracy": 0.5, "device": _device(), "before": before}
        deadline = time.monotonic() + 120
        while len(list(began.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield 20, {"validation/accuracy": 0.5, "device": _device(), "met": len(list(began.iterdir()))}

    resources = fit_resources(None, "auto")
    assert (resources.concurrency, resources.gpus) == (10, 1.0)  # as many as there are CPUs, should they fit
    said: list[str] = []
    recorder = _run(tmp_path, run, resources, 7, said.append)
    first, *others = (recorder.outcomes[trial.key] for trial in recorder.started)
    assert (first.state, first.gpus) == (State.COMPLETE, 1.0)
    assert {(other.state, other.gpus) for other in others} == {(State.COMPLETE, 0.3333)}
    assert said[0].startswith("3 trials a GPU: the first one needed 4.0 of 16.0 GiB, ")
    curves = [recorder.curves[trial.key] for trial in recorder.started]
    assert curves[0][1][1]["met"] >= 4  # three began beside it, on the other GPU
    beside = curves[1:4]
    assert {curve[0][1]["device"] for curve in beside} == {1.0 - curves[0][0][1]["device"]}


def test_a_trial_out_of_memory_on_a_shared_gpu_runs_again_on_one_of_its_own(tmp_path: Path) -> None:
    places = [tmp_path / "0", tmp_path / "1"]  # of each device, the trials that use it now
    for place in places:
        place.mkdir()

    def run(trial: Trial, folder: Path) -> Any:
        here = places[int(_device())]
        (here / trial.key).touch()
        try:
            with (folder / "attempts").open("a") as attempts:
                attempts.write("x")
            begun = len((folder / "attempts").read_text())
            if trial.number == 2 and begun == 1:
                import torch

                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if trial.number == 5:
                raise RuntimeError("CUDA error: out of memory")
            most = 0
            for _ in range(10):
                most = max(most, len(list(here.iterdir())))
                time.sleep(0.05)
            yield 10, {"validation/accuracy": 0.5, "most": most}
        finally:
            (here / trial.key).unlink()

    recorder = _run(tmp_path, run, Resources(4, 1, 0.5), 9)
    assert [trial.number for trial in recorder.started] == list(range(9))
    ends = {trial.number: recorder.outcomes[trial.key] for trial in recorder.started}
    assert (ends[2].state, ends[2].gpus) == (State.COMPLETE, 1.0)
    assert recorder.curves["search-0002"][0][1]["most"] == 1
    assert (ends[5].state, ends[5].gpus) == (State.FAILED, 1.0)
    assert ends[5].reason == (
        "RuntimeError: CUDA error: out of memory "
        "(with a GPU to itself; a smaller training.batch_size or training.chunk needs less)"
    )
    attempts = {n: (tmp_path / "checkpoints" / f"search-{n:04d}" / "attempts").read_text() for n in ends}
    assert {n: text for n, text in attempts.items() if text != "x"} == {2: "xx", 5: "xx"}
    others = [end for number, end in ends.items() if number not in (2, 5)]
    assert {(end.state, end.gpus) for end in others} == {(State.COMPLETE, 0.5)}

"""Nodes that do not see the study folder: another file system lies over it in their mount namespace."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ammpl.data.home import DataHome
from ammpl.study.study import Options, run_study
from ammpl.study.trial import Trial
from tests.integration.test_own_pictures import pictures  # noqa: F401 (a fixture)
from tests.study.fakes import execute, small_space

CLONE_NEWNS = 0x20000  # unshare(2); in Python from 3.12 on


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the driver sees, and the nodes do not."""
    folder = tmp_path_factory.mktemp("shared")
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return folder
    pytest.skip("a mount namespace needs the rights to make one")


@pytest.fixture(scope="module")
def address(shared: Path) -> Iterator[str]:
    """The head, without CPUs, of a cluster of two nodes with one each."""
    others = ray.is_initialized()
    if others:
        ray.shutdown()
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
    try:
        for _ in range(2):
            with ThreadPoolExecutor(1) as elsewhere:  # a namespace is a thread's, and of what it starts
                elsewhere.submit(add_blind_node, cluster, shared).result()
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
        if others:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def add_blind_node(cluster: Cluster, folder: Path) -> None:
    """Start a node in a mount namespace of its own, where something else is at the folder's place."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    cluster.add_node(num_cpus=1)


def test_files_of_nodes_that_do_not_see_the_folder(shared: Path, address: str, tmp_path: Path) -> None:
    once = tmp_path / "once"

    def train(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        assert not (shared / "study").exists()
        # A node without this package finds the driver's.
        assert any("py_modules_files" in path and Path(path, "ammpl", "study").is_dir() for path in sys.path)
        checkpoint, done = folder / "deep" / "checkpoint", 0
        if checkpoint.exists():
            done = int(checkpoint.read_text())
        for step, metrics in execute(trial, folder):
            if trial.key == "search-0001" and step == 30 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text(str(step))
            if trial.key == "search-0004":
                raise RuntimeError("cannot go on")
            if trial.key == "search-0003" and step == 20:
                metrics["validation/accuracy"] = -1.0
            yield step, {**metrics, "done": float(done)}
        checkpoint.unlink()

    pruner = {"name": "threshold", "lower": -0.5}
    space = small_space(
        budget={"trials": 6}, seed=3, pruner=pruner, confirm={"top": 1, "repeats": 2, "baselines": ["coop"]}
    )
    options = Options(shared / "study", ray_address=address, concurrency=2, tracking=False, quiet=True)
    summary = run_study(space, options, execute=train)
    assert summary.problems == () and once.exists()
    rows = {row["key"]: row for row in pq.read_table(summary.folder / "trials" / "trials.parquet").to_pylist()}
    assert [rows[f"search-000{number}"]["state"] for number in (1, 3, 4)] == ["COMPLETE", "PRUNED", "FAILED"]
    assert rows["search-0001"]["metrics.done"] == 20  # it went on from its checkpoint, on whichever node
    assert sum(row["phase"] == "test" for row in rows.values()) == 4  # with what their training left
    for key, row in rows.items():
        left = {path.name for path in (summary.folder / "checkpoints" / key).rglob("*") if path.is_file()}
        expected = {
            "COMPLETE": set() if row["phase"] == "test" else {"learnables.safetensors"},
            "PRUNED": set(),
            "FAILED": {"checkpoint", "error.txt"},
        }
        assert left == expected[row["state"]], key
    assert not (summary.folder / ".driver").exists()


def test_each_node_prepares_the_pictures_that_it_does_not_see_prepared(
    shared: Path,
    address: str,
    tmp_path: Path,
    pictures: Path,  # noqa: F811
) -> None:
    """At the place of the driver's store the nodes have an empty one, which their own workers fill."""
    store = shared / "store"
    store.mkdir()
    (store / "only-here.arrow").touch()
    fixed: dict[str, Any] = {"data.name": str(pictures), "data.shots": 1, "data.validation_shots": 2}
    fixed |= {"model.mask.scope": "task", "training.steps": 2, "training.evaluate_every": 2}
    space = small_space(fixed=fixed, budget={"trials": 2}, confirm=None)
    options = Options(shared / "prepared", ray_address=address, concurrency=2, tracking=False, quiet=True)
    summary = run_study(space, replace(options, home=DataHome(tmp_path, store)))
    assert summary.errors == () and summary.problems == ()
    assert summary.counts == {"search": {"COMPLETE": 2}}

    def prepared() -> set[str]:
        return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.suffix == ".arrow"}

    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    found = []
    for node in ray.nodes():
        if node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(prepared).options(num_cpus=0, scheduling_strategy=there)
            found.append(ray.get(ask.remote()))
    ray.shutdown()
    here = prepared() - {"only-here.arrow"}  # of equal content, so of equal names
    assert {name.split("/")[1].split("-")[0] for name in here} == {"train", "validation", "test"}
    assert found == [{name for name in here if "/test-" not in name}] * 2  # a search never opens the test list

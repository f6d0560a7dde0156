"""Connecting to Ray, and what a trial may get there."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import ray
from ray._private import ray_constants, services
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of Cython

import ammpl
from ammpl.errors import UserError, reason_of
from ammpl.study.engine.packing import MOST_TRIALS, share
from ammpl.study.engine.ray_worker import Resources
from ammpl.study.reachable import SECONDS, head_problem

_TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Where a user names the token that lets into a cluster."""

OBJECT_STORE_BYTES = 200 * 2**20  # trials exchange a few kilobytes; Ray would reserve a third of the memory


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, for the length of the block.

    A Ray that is connected already is used as it is and left running.

    Args:
        address: ``host:port`` of a cluster's head, or ``auto``; None starts a local cluster.

    Raises:
        UserError: nothing answers at ``address`` within seconds.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    scratch: str | None = None
    agents: list[int] = []
    try:
        if address is None:
            # Unix sockets below it: their paths may have 107 characters at most.
            root = "/tmp" if Path("/tmp").is_dir() else None
            scratch = tempfile.mkdtemp(prefix="ammpl-ray-", dir=root)
            if not _TOKENS & os.environ.keys() and not _home_takes_a_token():
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray ends over it
            with _on_loopback():
                ray.init(
                    "local",  # else one that somebody has started on this machine is joined
                    _temp_dir=f"{scratch}/r",  # Ray opens it to all users; the folder above it is closed
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # A process a CPU, ahead: Tune's actors have an environment of their own, and would use none.
                    _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
                )
            agents = _agents()
        else:
            _join(address)
        yield
    finally:
        ray.shutdown()
        for pid in agents:  # where Ray's other processes were killed, they go on
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("ray::"):
                    os.kill(pid, signal.SIGKILL)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _agents() -> list[int]:
    """Return the processes that the raylet of this machine has started for itself, where the system tells."""
    found: list[int] = []
    for raylet in ray._private.worker._global_node.all_processes.get("raylet", ()):
        for tasks in Path(f"/proc/{raylet.process.pid}/task").glob("*/children"):
            found += map(int, tasks.read_text().split())
    return found


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray listen on this machine's loopback address only; it would on all, and replaces one that it is given."""
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled


def _home_takes_a_token() -> bool:
    """Return whether Ray can keep its token where it does, below the user's home."""
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return (folder / "auth_token").is_file() or os.access(folder, os.W_OK)


def _join(address: str) -> None:
    where, fix = "--ray-address", "start a head with 'ray start --head --port 6379' and give its HOST:6379"
    if "://" in address:
        raise UserError(where, "must be the HOST:PORT of a cluster's head, or 'auto'", got=address, fix=fix)
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(where, "must be the HOST:PORT of a cluster's head, or 'auto'", got=address, fix=fix)
        encrypted = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
        named = host.strip("[]")
        taken = services.resolve_ip_for_localhost(named)  # as Ray will: this machine's own address
        if problem := head_problem(taken, int(port), encrypted):
            if taken != named:
                problem = f"Ray takes {taken}:{port} for it, and {problem}"
            raise UserError(where, problem, got=address, fix=fix)
        with _silence():
            if not _answers(f"{taken}:{port}"):
                raise UserError(
                    where, f"no head of a Ray cluster answers there within {SECONDS:g} s", got=address, fix=fix
                )
    try:
        # Staged on each node once, by its content: all run the driver's version of this package.
        package = {"py_modules": [str(Path(ammpl.__file__).resolve().parent)]}
        with _silence():
            ray.init(address=address, runtime_env=package, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(where, f"Ray cannot connect ({reason_of(error)})", got=address, fix=fix) from None


def _answers(address: str) -> bool:
    """Return whether a head's first answer comes in time; Ray would try for minutes."""

    def ask() -> None:
        with contextlib.suppress(Exception):  # a refusal is an answer, and ray.init says which
            GcsClient(address=address)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return not asking.is_alive()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the lines off the terminal that Ray's C++ parts write past Python; what matters is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def busy(resources: Resources, patience: float = 10.0) -> str | None:
    """Return what a trial would have to wait for; None once the connected cluster has it free.

    Args:
        resources: what a trial gets.
        patience: seconds for which somebody else's may still end.
    """
    deadline = time.monotonic() + patience
    while True:
        free, cluster = ray.available_resources(), ray.cluster_resources()
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
        short = [name for name, count in wanted.items() if free.get(name, 0) < count]
        if not short:
            return None
        if time.monotonic() > deadline:
            held = ", ".join(f"{free.get(name, 0):g} of {cluster.get(name, 0):g} {name}s" for name in short)
            return f"waiting for the cluster: {held} free ('ray status' says more)"
        time.sleep(0.1)


def fit_resources(concurrency: int | None, gpus_per_trial: float | Literal["auto"] | None) -> Resources:
    """Return what a trial gets and how many run at a time on the connected cluster.

    Args:
        concurrency: trials at a time; None takes as many as fit.
        gpus_per_trial: None takes one GPU a trial if the cluster has any; ``auto`` has the first trial measured on a
            GPU of its own, and lets as many of the others share one as fit.

    Raises:
        UserError: more is wanted than the cluster has.
    """
    cluster = ray.cluster_resources()
    cpus, gpus = int(cluster.get("CPU", 0)), cluster.get("GPU", 0.0)
    if gpus_per_trial == "auto" and gpus >= 1:
        # At a time as many as could ever be: how many it will be is known once one has been measured.
        most = fit_resources(None, share(MOST_TRIALS)).concurrency
        return Resources(
            min(concurrency or most, most), 1, 1.0, lambda trials: _packed(concurrency, trials, cpus, int(gpus))
        )
    wanted = (1.0 if gpus >= 1 else 0.0) if gpus_per_trial in (None, "auto") else float(gpus_per_trial)
    if wanted > gpus:
        has = f"has {gpus:g}" if gpus else "has none"
        raise UserError("--gpus-per-trial", f"the cluster {has}", got=wanted, fix="leave it out, or give 0")
    if wanted > 1 and not float(wanted).is_integer():
        raise UserError("--gpus-per-trial", "must be a whole number above 1", got=wanted)
    if cpus < 1:
        raise UserError("--ray-address", "the cluster has no CPU to give a trial")
    fit = cpus
    if wanted:
        per_gpu = int(1 / wanted + 1e-9) if wanted < 1 else 0
        fit = min(fit, int(gpus) * per_gpu if per_gpu else int(gpus / wanted))
    if concurrency is not None and concurrency > fit:
        each = f"1 CPU and {wanted:g} GPUs" if wanted else "1 CPU"
        raise UserError(
            "--concurrency", f"at most {fit} trials of {each} fit at a time", got=concurrency, fix="leave it out"
        )
    return Resources(concurrency=concurrency or fit, cpus=1, gpus=wanted)


def _packed(concurrency: int | None, trials: int, cpus: int, gpus: int) -> Resources:
    """Return what trials get of which so many share a GPU, no more at a time than asked for, or than have a CPU."""
    fit = min(cpus, gpus * trials)
    return Resources(min(concurrency or fit, fit), 1, share(trials))

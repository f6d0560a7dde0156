"""Who else reaches the Ray of a study on this machine: nobody from the network, no other user from the machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
from ray._private import services

from ammpl.errors import UserError
from ammpl.study.engine import ray_cluster
from tests.integration.test_resume import ROOT

ASKS = """\
import os, sys
from ray._raylet import GcsClient
if len(sys.argv) > 2 and os.geteuid() == 0:  # else the same user, without the token
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print("jobs:", len(GcsClient(address=sys.argv[1]).get_all_job_info()))
"""


STUDY = """\
import json, os, sys
import ray
from ammpl.study.engine.ray_cluster import connected
with connected(None):
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()  # a worker is there, too
    session = ray._private.worker._global_node.get_session_dir_path()
    print(json.dumps([ray.get_runtime_context().gcs_address, session]), flush=True)
    sys.stdin.read()
"""


class Cluster(NamedTuple):
    """The Ray of a study: the driver's process, its address, its folder."""

    pid: int
    gcs: str
    session: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """As a study starts it, in a process of its own: here one may be connected already."""
    with subprocess.Popen(
        [sys.executable, "-c", STUDY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        gcs, session = json.loads(driver.stdout.readline())
        yield Cluster(driver.pid, gcs, Path(session))
        driver.communicate("", timeout=60)


def listening(pid: int) -> set[str]:
    """Return the addresses, in hexadecimal, on which a process and those that it started listen."""
    inodes, pids = set(), [pid]
    while pids:
        process = Path("/proc", str(pids.pop()))
        for descriptor in (process / "fd").iterdir():
            if descriptor.is_symlink() and (target := str(descriptor.readlink())).startswith("socket:["):
                inodes.add(target[8:-1])
        for task in (process / "task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # a state: listening
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_a_local_study_listens_on_the_loopback_address_only(cluster: Cluster) -> None:
    assert cluster.gcs.startswith("127.0.0.1:")
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert listening(cluster.pid) and listening(cluster.pid) <= loopback
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))  # sends nothing; tells the address that the network sees
        own = outward.getsockname()[0]
    if own != "127.0.0.1":
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((own, int(cluster.gcs.rpartition(":")[2])), timeout=10)


def test_what_ray_keeps_on_the_disk_is_closed_to_other_users(cluster: Cluster) -> None:
    assert (cluster.session / "sockets").is_dir()
    assert cluster.session.parents[1].stat().st_mode & 0o777 == 0o700


def test_another_user_of_the_machine_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    def ask(*words: str, **others: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ASKS, cluster.gcs, *words]
        return subprocess.run(
            command, env=os.environ | others, cwd="/", capture_output=True, text=True, timeout=100, check=False
        )

    assert "jobs: 1" in ask().stdout
    tmp_path.chmod(0o777)
    done = ask("stranger", HOME=str(tmp_path), RAY_AUTH_TOKEN="")
    assert done.returncode != 0 and "jobs:" not in done.stdout
    assert "token" in (done.stdout + done.stderr).lower(), done.stderr


@pytest.mark.parametrize("reached", ["from this machine alone", "without an answer"])
def test_a_head_that_is_reached_half_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], reached: str
) -> None:
    """Both greet as a head does; Ray tried for minutes, with lines of its C++ parts on the terminal."""
    own = services.resolve_ip_for_localhost("127.0.0.1")
    alone = reached == "from this machine alone"
    if alone and own == "127.0.0.1":
        pytest.skip("this machine has no other address")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # here one may be
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_cluster, "SECONDS", 2.0)
    if not alone:
        monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=greet, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        rule = "no head of a Ray cluster answers there within 2 s"
        if alone:
            rule = f"Ray takes {own}:{port} for it, and nothing answers there"
        with pytest.raises(UserError, match=f"^--ray-address: {rule}"), ray_cluster.connected(f"127.0.0.1:{port}"):
            pass
    assert capfd.readouterr().err == ""


def greet(server: socket.socket) -> None:
    """Answer each connection with an empty SETTINGS frame, and with nothing more."""
    with contextlib.suppress(OSError):  # closed
        while True:
            connection, _ = server.accept()
            connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            KEPT.append(connection)


KEPT: list[socket.socket] = []

"""Processes of Ray that are killed while trials run: the study ends with a reason, and can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ammpl.study.study import Options, resume_study
from ammpl.study.trial import Trial
from tests.integration.test_resume import ROOT
from tests.study.fakes import small_space

DRIVER = """\
import sys
from pathlib import Path
from ammpl.commands.ending import exit_code, show
from ammpl.study.study import Options, run_study
from rich.console import Console
from ammpl.api import Study
from tests.integration.test_study_ray_dies import slow, space
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    summary = run_study(space(), Options(folder, concurrency=2, tracking=False, quiet=True), execute=slow)
    study = Study(folder, summary)
    show(study, Console())
    sys.exit(exit_code(study))
"""


def space():
    return small_space(budget={"trials": 4}, confirm=None, pruner={"name": "none"}, sampler={"name": "random"})


def slow(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Evaluate once, then never end."""
    yield 10, {"validation/accuracy": 0.5}
    while True:
        time.sleep(0.1)


def quick(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    for step in (10, 20):
        yield step, {"validation/accuracy": 0.5}


def descendants(pid: int) -> dict[int, str]:
    """Return the processes that one has started, with their command lines."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                waiting.append(child)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait(until, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("killed", ["gcs_server", "both", "ray::"])  # the last takes the raylet along
def test_the_study_ends_with_a_reason_and_goes_on_later(killed: str, tmp_path: Path, ray_cluster: None) -> None:
    folder = tmp_path / "study"
    command = [sys.executable, "-c", DRIVER, str(folder)]
    driver = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    log = folder / "events.jsonl"
    wait(lambda: log.exists() and log.read_text().count('"reported"') == 2)
    started = descendants(driver.pid)
    names = ("raylet", "gcs_server") if killed == "both" else (killed,)
    chosen = [pid for pid, line in started.items() if line.split(" ")[0].endswith(names) or line.startswith(names)]
    assert len(chosen) == {"both": 2, "ray::": 4}.get(killed, 1), started
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    text = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2, text
    died = "gcs_server" if killed in ("gcs_server", "both") else "raylet"
    assert f"Ray's process {died} has died. Fix: mend that, then go on with: python tune.py resume {folder}" in text
    wait(lambda: not any(map(is_alive, started)))
    summary = resume_study(folder, Options(concurrency=2, tracking=False, quiet=True), execute=quick)
    assert summary is not None and summary.counts == {"search": {"COMPLETE": 4}}

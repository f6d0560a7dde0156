"""Take a study's MLflow server away for a minute while it runs, and compare with the study that nobody disturbed.

    python -m tests.campaigns.mlflow_outage --seconds 60

Real Ray, a real server on SQLite; trials sleep, so that the study takes a fixed time. The server is killed
(connections are refused) or frozen (they hang), and once its study's driver and writer are killed meanwhile. Prints a
table; exit code 1 if a study took more than 1.1 times as long, or MLflow has not everything once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import ray

from ammpl.study.study import Options, resume_study, run_study
from ammpl.study.trial import Trial
from tests.integration.mlflow_store import Server, mlflow_server
from tests.integration.test_resume import ROOT, check_mlflow
from tests.study.fakes import accuracy, small_space

REPORTS, PAUSE = 5, 0.2  # a trial's reports, and the seconds between them

DRIVER = """
import sys
from pathlib import Path
from tests.campaigns.mlflow_outage import study
study(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Pretend to train for a second."""
    for step in range(1, REPORTS + 1):
        time.sleep(PAUSE)
        yield step, {"validation/accuracy": accuracy(trial.params, step), "train/loss": 1.0 / step}
    (folder / "learnables.safetensors").write_bytes(b"")


def study(folder: Path, uri: str, trials: int) -> Any:
    """Run the study, or go on with it."""
    options = Options(folder, concurrency=2, tracking_uri=uri, quiet=True)
    if folder.exists():
        return resume_study(folder, options, execute=execute)
    space = small_space(budget={"trials": trials}, seed=3, confirm=None, pruner={"name": "none"})
    return run_study(space, options, execute=execute)


@contextlib.contextmanager
def away(server: Server, how: str, after: float, seconds: float) -> Iterator[None]:
    """Take the server away for a while, on a thread."""
    steps: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "killed": (server.kill, server.start),
        "frozen": (lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT)),
    }

    def act() -> None:
        time.sleep(after)
        steps[how][0]()
        time.sleep(seconds)
        steps[how][1]()

    thread = threading.Thread(target=act)
    if how in steps:
        thread.start()
    yield
    if how in steps:
        thread.join()


def trials_seconds(folder: Path) -> float:
    """Return the time from the first trial's begin to the last one's end."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    times = [datetime.fromisoformat(event["time"]) for event in events if "key" in event]
    return (max(times) - min(times)).total_seconds()


def verdict(uri: str, folder: Path) -> str:
    """Return whether MLflow has everything once."""
    try:
        check_mlflow(uri, folder)
    except AssertionError as error:
        return f"differs: {str(error)[:200]}"
    return "each once"


def killed_driver(folder: Path, server: Server, trials: int, seconds: float) -> None:
    """Kill driver and writer while the server is away, bring the server back, and resume."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), server.uri, str(trials)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder.parent,
    )
    log = folder / "events.jsonl"
    while not log.exists() or log.read_bytes().count(b'"finished"') < trials // 4:
        time.sleep(0.1)
    server.kill()
    time.sleep(seconds / 2)
    writers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if f" {driver.pid} " in path.read_text().rpartition(")")[2][:40]
        and b"ammpl.study.views.mlflow_writer" in (path.parent / "cmdline").read_bytes()
    ]
    for process in (driver.pid, *writers):
        os.kill(process, signal.SIGKILL)
    driver.wait()
    server.start()
    study(folder, server.uri, trials)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long the server is away (default: 60)")
    parser.add_argument("--trials", type=int, default=200, help="of a second each, two at a time (default: 200)")
    arguments = parser.parse_args()
    bad, undisturbed = 0, (0.0, 0.0)
    print("| server | trials, s | with MLflow drained, s | MLflow |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="ammpl-campaign-") as name, mlflow_server(Path(name)) as server:
        root = Path(name)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        for how in ("there", "killed", "frozen"):
            folder, began = root / how, time.monotonic()
            with away(server, how, 10.0, arguments.seconds):
                summary = study(folder, server.uri, arguments.trials)
                seconds = trials_seconds(folder), time.monotonic() - began
            found = verdict(server.uri, folder)
            undisturbed = seconds if how == "there" else undisturbed
            slower = any(took > 1.1 * then for took, then in zip(seconds, undisturbed, strict=True))
            bad += slower or found != "each once" or bool(summary.problems)
            print(f"| {how} | {seconds[0]:.1f} | {seconds[1]:.1f} | {found} |", flush=True)
        ray.shutdown()
        folder = root / "driver"
        killed_driver(folder, server, arguments.trials // 4, arguments.seconds)
        found = verdict(server.uri, folder)
        bad += found != "each once"
        print(f"| killed, and driver and writer too; resumed | | | {found} |")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Remove or freeze a node of a Ray cluster in the middle of a study, and see what becomes of its trials.

    python -m tests.campaigns.lose_nodes --removals 3 --freezes 2

A real cluster of several raylets on this machine: a head without CPUs and three nodes with one each, of which two
work. Training is made up: 30 steps of a tenth of a second, with a checkpoint each. A removed node's processes are
killed (``kill -9``); a frozen one's are stopped (``SIGSTOP``), for some seconds, or until its trial has ended
elsewhere, and then go on. Prints a table; exit code 1 if anything was lost or came twice, or a removed node's trial
began again only after more than ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ammpl.study.study import Options, run_study
from ammpl.study.trial import Trial
from tests.study.fakes import small_space

LONGEST = 10.0  # seconds until the trial of a removed node begins again


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Pretend to train, with a checkpoint after each step; leave a note of where and when.

    As training does, tell what the checkpoint has again: its last step may not have reached the driver.
    """
    node = ray.get_runtime_context().get_node_id()
    (folder / f"begun-{time.time():.3f}-{node}").touch()
    checkpoint = folder / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(1, 31):
        if step > done:
            time.sleep(0.1)
            draft = folder / f"checkpoint.{node}"
            draft.write_text(str(step))
            draft.replace(checkpoint)
        yield step, {"validation/accuracy": step / 100}


@dataclass
class Fault:
    """What was done to which trial's node, and when."""

    key: str = ""
    at: float = 0.0
    error: str = ""


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the log of a study, that is perhaps being written, but for a last line without its end."""
    log = folder / "events.jsonl"
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def begun(folder: Path, key: str) -> list[tuple[float, str]]:
    """Return when and on which node a trial began, and began again."""
    names = [path.name.split("-") for path in (folder / "checkpoints" / key).glob("begun-*")]
    return sorted((float(at), node) for _, at, node in names)


def sabotage(folder: Path, cluster: Cluster, act: Callable[[Any, str], None], fault: Fault) -> None:
    """Wait until both nodes are at work, then act on that of the trial that began last."""
    try:
        while sum(event["event"] == "reported" for event in events(folder)) < 20:
            time.sleep(0.02)
        log = events(folder)
        ended = {event["key"] for event in log if event["event"] == "finished"}
        running = [e["key"] for e in log if e["event"] == "started" and e["key"] not in ended]
        fault.key = next(key for key in reversed(running) if begun(folder, key))
        node = next(n for n in cluster.worker_nodes if n.node_id == begun(folder, fault.key)[-1][1])
        fault.at = time.time()
        act(node, fault.key)
    except Exception as error:  # of a thread: told at the end
        fault.error = f"{type(error).__name__}: {error}"


def remove(cluster: Cluster) -> Callable[[Any, str], None]:
    """Return what kills a node."""
    return lambda node, key: cluster.remove_node(node, allow_graceful=False)


def family(pid: int) -> list[int]:
    """Return a process and all that it started, itself or through others."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found += [inner for child in path.read_text().split() for inner in family(int(child))]
    return found


def freeze(folder: Path, seconds: float | None) -> Callable[[Any, str], None]:
    """Return what stops a node's processes for so long; None is until its trial has ended elsewhere."""

    def act(node: Any, key: str) -> None:
        raylets = [process.process.pid for of_kind in node.all_processes.values() for process in of_kind]
        processes = [pid for raylet in raylets for pid in family(raylet)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        since = time.monotonic()
        while (
            time.monotonic() - since < seconds
            if seconds is not None
            else not any(e["event"] == "finished" and e["key"] == key for e in events(folder))
        ):
            time.sleep(0.1)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return act


def run(what: str, seconds: float | None = None, trials: int = 6) -> dict[str, Any]:
    """Run a study, do something to one of its nodes (``remove`` or ``freeze``), and count what came out."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    fault = Fault()
    with tempfile.TemporaryDirectory(prefix="ammpl-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "study"
        # In a directory of its own: any Ray that is started meanwhile would join a cluster in the usual one.
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": f"{name}/ray"}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(3):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, **quiet)
            act = remove(cluster) if what == "remove" else freeze(folder, seconds)
            thread = threading.Thread(target=sabotage, args=(folder, cluster, act, fault), daemon=True)
            thread.start()
            space = small_space(budget={"trials": trials}, confirm=None, pruner={"name": "none"})
            since = time.monotonic()
            run_study(space, Options(folder, concurrency=2, tracking=False, quiet=True), execute=execute)
            took = time.monotonic() - since
            thread.join(60)
        finally:
            ray.shutdown()
            cluster.shutdown()
        log = events(folder)
        again = [at - fault.at for at, _ in begun(folder, fault.key) if at > fault.at]
    ends = [event for event in log if event["event"] == "finished"]
    steps = Counter((event["key"], event["step"]) for event in log if event["event"] == "reported")
    return {
        "error": fault.error,
        "lost": trials - len({end["key"] for end in ends if end["state"] == "COMPLETE"}),
        "ended twice": len(ends) - len({end["key"] for end in ends}),
        "steps missing": 30 * trials - len(steps),
        "steps twice": sum(steps.values()) - len(steps),
        "began again after, s": again[0] if again else None,
        "study, s": took,
    }


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--removals", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--freezes", type=int, default=2, help="how many, until the trial ended (default: 2)")
    parser.add_argument("--short-freezes", type=int, default=1, help="how many, of ten seconds (default: 1)")
    arguments = parser.parse_args()
    campaign: list[tuple[str, str, float | None]] = [("node removed", "remove", None)] * arguments.removals
    campaign += [("node frozen for 10 s", "freeze", 10.0)] * arguments.short_freezes
    campaign += [("node frozen until its trial had ended", "freeze", None)] * arguments.freezes
    bad = 0
    print("| what | lost | ended twice | steps missing | steps twice | began again after, s | study, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for title, what, seconds in campaign:
        found = run(what, seconds)
        error, again = found.pop("error"), found["began again after, s"]
        late = what == "remove" and (again is None or again > LONGEST)
        bad += bool(error or late or any(found[name] for name in list(found)[:4]))
        texts = ["–" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in found.values()]
        print(f"| {title} | {' | '.join(texts)} |" + (f" {error}" if error else ""), flush=True)
    print(f"\n{bad} of them left something to mend")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

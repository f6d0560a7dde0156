"""How long a study takes from its command to the first step of its first trial, and where the time goes.

``python tune.py`` is run in an empty folder and interrupted after the first step. When each process reaches what is
marked from outside (:mod:`tests.benchmarks.start_marks.sitecustomize`), so a copy of another commit, named by
``AMMPL_START_REFERENCE``, takes turns with this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.benchmarks.record import Record

REPEATS = int(os.environ.get("AMMPL_START_REPEATS", "3"))
HERE = Path(__file__).resolve().parents[2]
MARKS = HERE / "tests" / "benchmarks" / "start_marks"
LONGEST = 120.0  # seconds of a start
LAST = "first step ends"
PHASES = {
    "imports of the driver": ("driver starts", "driver imported"),
    "Ray": ("driver init begins", "driver init ends"),
    "worker": ("driver run_plan begins", "prepare begins"),
    "imports of the worker, backbone, data": ("prepare begins", "prepare ends"),
    "MLflow store, records": ("driver open begins", "driver open ends"),
    "first trial up to its first step": ("driver open ends", LAST),
}
"""Phase -> the first occurrences of the marks that it lies between."""


def benchmark() -> Iterator[Record]:
    """Yield the whole and its phases."""
    named = os.environ.get("AMMPL_START_REFERENCE")
    sides = {"ours": HERE, **({"reference": Path(named).resolve()} if named else {})}
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(REPEATS + 1):
        for side, root in sides.items():
            times = _start(root)
            print(f"    {side}: {times['command to the first step']:.1f} s", flush=True)
            if turn:  # the first one fills the cache of files
                taken[side].append(times)
    for case in ("command to the first step", *PHASES):
        ours, reference = (
            median(times[case] for times in taken[side]) if side in taken else None for side in ("ours", "reference")
        )
        assert ours is not None
        yield Record("start", case, ours, reference, "s")


def _start(root: Path) -> dict[str, float]:
    """Start a study of a copy of the project; return the seconds of each phase."""
    with tempfile.TemporaryDirectory(prefix="ammpl-start-", ignore_cleanup_errors=True) as folder:
        marks = Path(folder) / "marks"
        marks.touch()
        more = os.environ.get("PYTHONPATH", "").removeprefix(str(HERE))  # packages that are not installed here
        environment = {**os.environ, "PYTHONPATH": f"{root}:{MARKS}:{more}", "AMMPL_MARKS": str(marks)}
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, str(root / "tune.py"), "--trials", "2", "--quiet"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while LAST not in marks.read_text(encoding="utf-8"):
                if process.poll() is not None or time.time() - began > LONGEST:
                    raise RuntimeError(f"a study of {root} made no step")
                time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            process.wait()
        lines = sorted(map(json.loads, marks.read_text(encoding="utf-8").splitlines()), key=lambda line: line["at"])
    first: dict[str, float] = {}
    for line in lines:
        for name in (line["mark"], f"{line['process']} {line['mark']}"):
            first.setdefault(name, line["at"])
    seconds = {phase: first[end] - first[begin] for phase, (begin, end) in PHASES.items()}
    return {"command to the first step": first[LAST] - began, **seconds}

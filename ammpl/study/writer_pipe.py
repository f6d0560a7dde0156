"""A writer process's end of the pipes: events from stdin, answers on stdout, one JSON object a line.

The driver's end is :class:`ammpl.study.writer_process.WriterProcess`. A writer is started for each study that runs, so
what it needs at once is the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

Event = dict[str, Any]
Events = SimpleQueue[Event | None]
"""What the driver tells, in order; None when nothing more can come."""

LOCK_SECONDS = 100.0  # that a writer waits for one of an earlier session to end


def connect(serve: Callable[[Events, Callable[..., None]], int]) -> int:
    """Run a writer on this process's pipes; return its exit code.

    Args:
        serve: takes the events and a function that answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle; it drains this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    events: Events = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            events.put(json.loads(line))
        events.put(None)

    def reply(**message: Any) -> None:
        with contextlib.suppress(OSError):  # the driver is gone: finish what it told
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    threading.Thread(target=read, daemon=True).start()
    return serve(events, reply)


def available(events: Events, seconds: float) -> Iterator[Event | None]:
    """Yield everything that is there; wait for the first at most so long."""
    with contextlib.suppress(Empty):
        yield events.get(timeout=seconds)
        while True:
            yield events.get_nowait()


def hold(path: Path) -> Any:
    """Return a lock, which is dropped with the process; wait for the writer of a driver that died.

    That one still stores what it was told, and ends soon. None where there is no folder to keep others from.
    """
    from filelock import FileLock

    if not path.parent.is_dir():
        return None
    lock = FileLock(path, timeout=LOCK_SECONDS)
    lock.acquire()
    return lock


def first_line(error: BaseException) -> str:
    """Return what went wrong in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"

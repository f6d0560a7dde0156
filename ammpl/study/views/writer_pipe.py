"""A writer process's end of the pipes: events from stdin, answers on stdout, one JSON object a line.

The driver's end is :class:`ammpl.study.views.writer_process.WriterProcess`. A writer is started for each study that
runs, so what it needs at once is the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ammpl.redaction import redacted

Event = dict[str, Any]
Events = SimpleQueue[Event | None]
"""What the driver tells, in order; None when nothing more can come."""

LOCK_SECONDS = 100.0  # that a writer waits for one of an earlier session to end
FIRST_DELAY, LONGEST_DELAY = 0.25, 10.0  # seconds between attempts at a failing store
GIVE_UP_SECONDS = 10.0  # after the end: how long a failing store is tried without any progress


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


def hold(folder: str, store: str) -> Any:
    """Return a lock, which is dropped with the process; wait for the writer of a driver that died.

    That one still stores what it was told, and ends soon. None where there is no folder to keep others from.
    """
    from filelock import FileLock

    path = Path(folder, f".{store}.lock")
    if not path.parent.is_dir():
        return None
    lock = FileLock(path, timeout=LOCK_SECONDS)
    lock.acquire()
    return lock


class Retries:
    """When a store that fails is tried again, and for how long.

    Attributes:
        stored: trials brought up to date, as a measure of progress; the steps count.
        retry_at: until then a store that has failed is left alone, on the monotonic clock.
        last_error: of the last attempt that failed.
    """

    def __init__(self) -> None:
        self.stored, self.retry_at, self.last_error = 0, 0.0, ""
        self._delay = FIRST_DELAY

    def attempt(self, step: Callable[[], None]) -> bool:
        """Take a step, unless the store is to be left alone; return whether that went through."""
        if time.monotonic() < self.retry_at:
            return False
        stored = self.stored
        try:
            step()
        except Exception as error:
            self._delay = FIRST_DELAY if self.stored > stored else min(2 * self._delay, LONGEST_DELAY)
            self.retry_at = time.monotonic() + self._delay
            self.last_error = first_line(error)
            return False
        return True

    def insist(self, step: Callable[[], None], *, once: bool = False) -> bool:
        """Repeat a step until it goes through; return False when nothing gets through for too long."""
        deadline = time.monotonic() + (0.0 if once else GIVE_UP_SECONDS)
        stored = self.stored
        while True:
            self.retry_at = 0.0
            if self.attempt(step):
                return True
            if self.stored > stored:
                stored, deadline = self.stored, time.monotonic() + GIVE_UP_SECONDS
            if time.monotonic() > deadline:
                return False
            time.sleep(min(1.0, max(0.1, self.retry_at - time.monotonic())))


def first_line(error: BaseException) -> str:
    """Return what went wrong in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {redacted(lines[0])[:200]}"

"""A process that writes to a store, seen from the driver: a pipe to it, its answers, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ammpl
from ammpl.redaction import redacted

# -P: nothing of the working directory is imported; this package is found where the driver has it.
_PROGRAM = """\
import importlib, sys
module, root = sys.argv[1:3]
if root not in sys.path:
    sys.path.insert(0, root)
sys.exit(importlib.import_module(module).main())
"""


def command(module: str) -> list[str]:
    """Return the command of a process of its own that runs a module's ``main``."""
    return [sys.executable, "-P", "-c", _PROGRAM, module, str(Path(ammpl.__file__).resolve().parents[1])]


class WriterProcess:
    """A running writer. What is sent to it returns at once, whatever its store does; it ends with its driver.

    Args:
        module: its ``main`` is a :func:`ammpl.study.views.writer_pipe.connect`.
        environment: beside the driver's.

    Attributes:
        answers: what the writer has said so far, by kind (``re``); see the writer.
        answered: set when it is ``ready``, or has ``refused``, or has ended.
        ended: set when it has nothing more to say.
        broken: whether what is sent cannot arrive any more.
        heard_at: time of the last sign of life, on the monotonic clock.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.answered, self.ended = threading.Event(), threading.Event()
        self.broken = False
        self.heard_at = time.monotonic()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = self._start(module, environment)
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._feed, name=f"{module}-feed", daemon=True).start()
        threading.Thread(target=self._listen, name=f"{module}-listen", daemon=True).start()

    def _start(self, module: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        # In its own session: Ctrl-C reaches the driver alone, which drains the writer.
        return subprocess.Popen(
            command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, event: dict[str, Any]) -> None:
        """Queue an event, with the time of now unless it has one; returns at once."""
        if not self.broken:  # else nobody would ever read it
            self._queue.put({"time": int(time.time() * 1000), **event})

    def drain(self, patience: float) -> str | None:
        """Say that nothing more comes and wait until the writer has ended; return why it had to be ended, if so.

        Args:
            patience: seconds without any sign of progress after which it is given up.
        """
        self._queue.put(None)
        began = time.monotonic()
        try:
            while not self.ended.wait(0.1):
                if time.monotonic() - max(began, self.heard_at) > patience:
                    return f"no progress for {patience:g} s"
            return None
        finally:
            self.end()

    def end(self) -> int:
        """End the process, by force if it has not ended, and return its exit code."""
        self._queue.put(None)
        if not self.ended.is_set():
            self._process.kill()
        return self._process.wait()

    def failure(self) -> str:
        """Return why the writer has ended, where it was not done: what it said, else the last line that it printed."""
        if refused := self.answers.get("refused"):
            return str(refused[0]["text"])
        code, printed = self.end(), self.errors().split("\n")
        last = next((line.strip() for line in reversed(printed) if line.strip()), "it printed nothing")
        return f"the writer process ended with exit code {code}: {redacted(last)[:200]}"

    def errors(self) -> str:
        """Return what the process has printed to stderr; call it after :meth:`end`."""
        self._errors.seek(0)
        return self._errors.read()

    def _feed(self) -> None:
        """Write the queue to the pipe; a full pipe blocks this thread and nobody else."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (event := self._queue.get()) is not None:
                pipe.write(json.dumps(event, default=float) + "\n")
                pipe.flush()
            pipe.close()
        except (OSError, ValueError):
            self.broken = True

    def _listen(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        for line in pipe:
            answer = json.loads(line)
            self.heard_at = time.monotonic()
            self.answers.setdefault(answer["re"], []).append(answer)
            if answer["re"] in ("ready", "refused"):
                self.answered.set()
        self.ended.set()
        self.answered.set()

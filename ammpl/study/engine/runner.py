"""Where a worker's trials run, one after the other: in the worker's own process, or in one forked from a warm process.

A worker is a process that Ray starts. To import PyTorch and all that training needs takes each of them seconds, while
Ray itself takes seconds to start: so the driver starts a process that imports it all meanwhile
(:mod:`ammpl.study.engine.warm_process`), and a worker on the driver's machine has its trials run in a fork of that.
Memory that imports have filled is shared. A fork dies with its worker and the worker with its fork.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ammpl.errors import UserError
from ammpl.study.engine.worker import THREAD_VARIABLES, Attempt, End, Evaluation, Ready
from ammpl.study.trial import Execute, Trial
from ammpl.study.views.writer_process import command

CAN_FORK = hasattr(os, "pidfd_open")
"""Whether this system can tell a process of another one's end; else each worker imports for itself."""

ENVIRONMENT = {
    # Ray gives a trial one CPU; what a fork sets later, libraries do not read.
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    # CUDA cannot be used in a fork of a process that has called it: whether there is a GPU is asked of NVML.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Of the warm process, beside the driver's."""


class Runner(Protocol):
    """Runs trials one after the other."""

    def prepare(self, prepare: Callable[[], None]) -> Ready:
        """Load what trials need."""

    def begin(self, execute: Execute, trial: Trial, folder: Path) -> None:
        """Take a trial."""

    def next(self) -> Evaluation | End:
        """Run it to its next evaluation or its end."""

    def close(self) -> None:
        """Stop it, if it runs."""


class OwnRunner:
    """Runs trials in this process.

    Args:
        cpus: threads of each numerical library.
    """

    def __init__(self, cpus: int):
        self._attempt: Attempt | None = None
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(cpus)
        if torch := sys.modules.get("torch"):  # which has read them
            torch.set_num_threads(cpus)

    def prepare(self, prepare: Callable[[], None]) -> Ready:
        """Load what trials need; what is raised is returned."""
        try:
            prepare()
        except UserError as error:
            return Ready(error)
        except Exception:  # which may not survive the way to the driver
            return Ready(RuntimeError(f"a worker could not load what trials need:\n{traceback.format_exc()}"))
        return Ready()

    def begin(self, execute: Execute, trial: Trial, folder: Path) -> None:
        """Take a trial; the one before has been closed."""
        self._attempt = Attempt(execute, trial, folder)

    def next(self) -> Evaluation | End:
        """Run the trial to its next evaluation or its end."""
        assert self._attempt is not None
        return self._attempt.next()

    def close(self) -> None:
        """Stop the trial, if one runs."""
        if self._attempt:
            self._attempt.close()
            self._attempt = None


class ForkedRunner:
    """Runs trials in a process that has forked from the warm one.

    Args:
        connection: to the process; ends with it.
        cpus: threads of each numerical library.

    Raises:
        EOFError: from any call: the process has died.
        ConnectionError: likewise.
    """

    def __init__(self, connection: Connection, cpus: int):
        self._connection = connection
        self._call("start", dict(os.environ), list(sys.path), str(Path.cwd()), cpus)

    def prepare(self, prepare: Callable[[], None]) -> Ready:
        """Load what trials need; what is raised is returned."""
        ready: Ready = self._call("prepare", prepare)
        return ready

    def begin(self, execute: Execute, trial: Trial, folder: Path) -> None:
        """Take a trial; the one before has been closed."""
        self._call("begin", execute, trial, folder)

    def next(self) -> Evaluation | End:
        """Run the trial to its next evaluation or its end."""
        news: Evaluation | End = self._call("next")
        return news

    def close(self) -> None:
        """Stop the trial, if one runs."""
        self._call("close")

    def _call(self, name: str, *values: Any) -> Any:
        self._connection.send((name, values))
        return self._connection.recv()


def serve(connection: Connection) -> None:
    """Answer the calls of a :class:`ForkedRunner` until it is gone."""
    runner: OwnRunner | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, values = connection.recv()
            if name == "start":
                environment, path, directory, cpus = values
                os.environ.clear()
                os.environ.update(environment)
                sys.path[:] = path
                os.chdir(directory)
                runner = OwnRunner(cpus)
                connection.send(None)
            else:
                connection.send(getattr(runner, name)(*values))


def runner(address: str | None, cpus: int) -> Runner:
    """Return what runs a worker's trials.

    Args:
        address: of the warm process; None where there is none. Where it does not answer, this process does the work.
        cpus: threads of each numerical library.
    """
    if address is not None:
        with contextlib.suppress(OSError, EOFError):
            warm = socket.socket(socket.AF_UNIX)
            warm.connect(address)
            return ForkedRunner(Connection(warm.detach()), cpus)
    return OwnRunner(cpus)


@contextlib.contextmanager
def warm_process(wanted: bool) -> Iterator[str | None]:
    """Start the warm process for the length of the block; yield its address, None without one.

    Args:
        wanted: whether workers of this machine will train.
    """
    if not (wanted and CAN_FORK):
        yield None
        return
    # Only this user gets to a socket below it, whose path may have 107 characters at most.
    root = tempfile.mkdtemp(prefix="ammpl-warm-", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        address = f"{root}/workers"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen(128)  # who connects before it has imported everything waits
            process = subprocess.Popen(
                [*command("ammpl.study.engine.warm_process"), str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,  # it ends when this does
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        try:
            yield address
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()  # it may still import; later it goes by its stdin
            process.wait()
    finally:
        shutil.rmtree(root, ignore_errors=True)

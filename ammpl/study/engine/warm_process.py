"""The process that imports what training needs while Ray starts, and forks for each worker that connects.

It holds a second handle of each worker's connection: when the worker is gone, killed perhaps in the middle of a step,
its fork is killed. It ends, and all forks with it, when its stdin does, which is the driver's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ammpl.study.engine.runner import serve

GONE = select.POLLHUP | select.POLLRDHUP | select.POLLERR


@dataclass(frozen=True)
class _Fork:
    pid: int
    ended: int  # a descriptor that is readable once it has
    worker: socket.socket

    def close(self) -> None:
        """Kill it, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.ended)
        self.worker.close()


def main() -> int:
    """Import, then fork for each connection to the socket whose descriptor is the last argument."""
    import ammpl.training.run  # noqa: F401  # with PyTorch: seconds

    gc.collect()
    gc.freeze()  # a collection in a fork would write to all objects, and unshare their memory
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from now on forks are to be ended first
    listening = socket.socket(fileno=int(sys.argv[-1]))
    poll = select.poll()
    poll.register(0, GONE)
    poll.register(listening, select.POLLIN)
    forks: dict[int, _Fork] = {}  # by both of their descriptors
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == 0:
                for fork in set(forks.values()):
                    fork.close()
                return 0
            if descriptor == listening.fileno():
                fork = _fork(listening, set(forks.values()))
                for number, events in ((fork.ended, select.POLLIN), (fork.worker.fileno(), select.POLLRDHUP)):
                    poll.register(number, events)
                    forks[number] = fork
            elif descriptor in forks:  # else told twice in a round
                fork = forks[descriptor]
                for number in (fork.ended, fork.worker.fileno()):
                    poll.unregister(number)
                    del forks[number]
                fork.close()


def _fork(listening: socket.socket, others: set[_Fork]) -> _Fork:
    """Fork for the worker that has connected; return in the warm process alone."""
    worker, _ = listening.accept()
    if pid := os.fork():
        return _Fork(pid, os.pidfd_open(pid), worker)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the driver's end, which this process is not to hold
    listening.close()
    for other in others:
        other.worker.close()
    try:
        serve(Connection(worker.detach()))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

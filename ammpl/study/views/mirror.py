"""The copy of a study's folder at an address, written behind by a thread of the driver.

The log refers to files that were written before it. So its length is noted first, the other files are copied next,
then the log up to there, and only then goes what is no longer needed. Whatever of this is missing, what is there is a
study that can be resumed: as if its driver had died a little earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from ammpl.errors import UserError
from ammpl.study.record.event_log import FILE
from ammpl.study.record.folder import STOP, is_locked, request_stop, write_text
from ammpl.study.views.remote import (
    LEASE,
    LEASE_SECONDS,
    LINK,
    LONGEST_PAUSE,
    Remote,
    UnreachableError,
    answer,
    line,
    own_address,
    owner_of,
    remembered_address,
    remote_at,
)

PAUSE = 5.0
"""Seconds between two looks at what has changed; ten times as long as the last copying took, if that is more."""

_LIVE = "optuna.sqlite3"  # a database that another process writes to: copied once that has ended
_WAITS = (0.0, 1.0, 5.0)  # seconds before each try to copy the end

_TAKEN = "another driver has taken the study over"
_AHEAD = "another driver has gone on from it"

Stamp = tuple[int, int]
"""Size and time of a file here, of the log the size alone: tells whether it has changed since it was copied."""


class Mirror:
    """Copies a study's folder to an address while it runs. What cannot be copied is tried again, and holds up nothing.

    Args:
        address: of the copy.
        folder: of a study that goes on, whose copy may be away for a while, and may have nothing that the folder
            lacks. None for one that begins now: nothing may be there, and it must be possible to write there.

    Attributes:
        address: of the copy.
        warnings: after :meth:`close`, what the copy lacks and why; empty when it has everything.

    Raises:
        UserError: another driver runs the study or has gone on from the copy; or the place of a new one cannot be
            used, or is taken.
    """

    def __init__(self, address: str, folder: Path | None = None):
        self.warnings: tuple[str, ...] = ()
        self.address = address
        self._remote: Remote | None = None  # once it has answered
        self._lease = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._is_owner = False
        self._copied: dict[str, Stamp] | None = None  # not known yet
        self._problem: str | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            answer(address, lambda: self._take(folder))
        except UnreachableError:
            if folder is None:
                raise

    def open(self, folder: Path) -> None:
        """Begin to copy a folder."""
        self._folder = folder
        if remembered_address(folder) is None:
            write_text(folder / LINK, json.dumps({"address": self.address}, indent=2) + "\n")
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def close(self, seconds: float = 60.0) -> None:
        """Copy what is left, and say so in :attr:`warnings` if that cannot be done in time."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is None:  # nothing began
            if self._remote is not None:
                with contextlib.suppress(OSError, pa.ArrowException):
                    self._remote.delete(LEASE)
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._problem = f"no answer within {seconds:g} s"
        if self._problem is not None:
            fix = f"python tune.py resume {self._folder}"
            self.warnings = (f"{self.address} lacks the end of the study ({self._problem}). Fix: {fix}",)

    def _take(self, folder: Path | None) -> None:
        remote = Remote(self.address)
        if folder is None and remote.read("study.yaml") is not None:
            fix = f"go on with it: python tune.py resume {self.address}; or name another"
            raise UserError("--output", "has a study, and none is ever overwritten", got=self.address, fix=fix)
        if (owner := owner_of(remote)) is not None:
            fix = f"wait for it ({LEASE_SECONDS:g} s if it has died), or stop it: python tune.py stop {self.address}"
            raise UserError(self.address, f"is being run by {owner}", fix=fix)
        if folder is not None and is_ahead(remote, folder):
            fix = f"python tune.py resume {self.address}"
            raise UserError(self.address, f"has what {folder} lacks: {_AHEAD}", fix=fix)
        self._beat(remote)
        self._remote = remote

    def _beat(self, remote: Remote) -> None:
        """Tell the store that this driver lives."""
        lease = json.dumps(self._lease).encode()
        if remote.read(LEASE) not in (None, lease) if self._is_owner else owner_of(remote) is not None:
            raise OSError(_TAKEN)
        remote.write(LEASE, lease)
        self._is_owner = True

    def _run(self) -> None:
        pause = PAUSE
        while self._problem not in (_TAKEN, _AHEAD) and not self._closing.wait(pause):
            began = time.monotonic()
            self._copy(ended=False)
            pause = min(max(PAUSE, 10 * (time.monotonic() - began)), LONGEST_PAUSE)
        for wait in _WAITS:
            if self._problem in (_TAKEN, _AHEAD):
                return
            time.sleep(wait)
            self._copy(ended=True)
            if self._problem is None:
                return

    def _copy(self, ended: bool) -> None:
        folder = self._folder
        try:
            remote = self._remote = self._remote or Remote(self.address)
            self._beat(remote)
            if self._copied is None and is_ahead(remote, folder):  # it was away when the study went on
                remote.delete(LEASE)
                raise OSError(_AHEAD)
            if remote.time(STOP) is not None:
                request_stop(folder)
                remote.delete(STOP)
            if self._copied is None:
                self._copied = known(remote, folder)
            for act in copying(remote, folder, self._copied, ended):
                act()
            if ended:
                remote.delete(LEASE)
            self._problem = None
        except (OSError, ValueError, UserError, pa.ArrowException) as error:
            self._problem = line(error)


def is_ahead(remote: Remote, folder: Path) -> bool:
    """Return whether a copy's log has what the folder's has not: each driver writes a line of its own."""
    log = folder / FILE
    return not (log.read_bytes() if log.exists() else b"").startswith(remote.read(FILE) or b"")


def known(remote: Remote, folder: Path) -> dict[str, Stamp]:
    """Return the stamps of a copy's files that are as they are here; others have one that no file has."""
    found: dict[str, Stamp] = {}
    for name, (size, at) in remote.times().items():
        if Path(name).name.startswith(".") or name in (FILE, STOP):
            continue
        found[name] = (-1, 0)
        with contextlib.suppress(OSError):
            status = (folder / name).stat()
            if status.st_size == size and status.st_mtime_ns / 1e9 <= at:
                found[name] = (size, status.st_mtime_ns)
    return found


def copying(remote: Remote, folder: Path, copied: dict[str, Stamp], ended: bool) -> Iterator[Callable[[], None]]:
    """Yield what is to be done, in order, so that a study's copy is as the folder is now.

    Args:
        remote: the copy.
        folder: the study's.
        copied: stamps of what was copied before; brought up to date.
        ended: also what another process wrote to while the study ran.
    """
    log = _whole_lines(folder / FILE)
    here = dict(_files(folder, ended))
    for name, stamp in here.items():
        if copied.get(name) != stamp:
            yield partial(_copy_file, remote, folder, copied, name, stamp)
    if log and copied.get(FILE) != (log, 0):
        yield partial(_copy_file, remote, folder, copied, FILE, (log, 0))
    for name in copied.keys() - here.keys() - {FILE, _LIVE}:
        yield partial(_delete_file, remote, copied, name)


def _copy_file(remote: Remote, folder: Path, copied: dict[str, Stamp], name: str, stamp: Stamp) -> None:
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:  # it has gone meanwhile
        return
    remote.write(name, data[: stamp[0]] if name == FILE else data)
    copied[name] = stamp


def _delete_file(remote: Remote, copied: dict[str, Stamp], name: str) -> None:
    remote.delete(name)
    del copied[name]


def _whole_lines(log: Path) -> int:
    """Return the size of a log up to its last whole line, in bytes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            while size > 0:
                start = max(0, size - 65536)
                file.seek(start)
                if (end := file.read(size - start).rfind(b"\n")) >= 0:
                    return start + end + 1
                size = start
    except FileNotFoundError:
        pass
    return 0


def _files(folder: Path, ended: bool) -> Iterator[tuple[str, Stamp]]:
    """Yield path and stamp of each file of a study but its log, without drafts, locks and requests."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or path.suffix == ".partial" or name in (FILE, STOP):
            continue
        if name.startswith(_LIVE) and not ended:
            continue
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                status = path.stat()
                yield name, (status.st_size, status.st_mtime_ns)


def update(folder: Path) -> str | None:
    """Copy what was written after a study's end, as its report; return why it could not be, None if it was.

    Only to an address that this user has given to the study on this machine.
    """
    address = own_address(folder)
    if address is None or is_locked(folder):
        return None
    try:
        remote = remote_at(address)

        def copy() -> None:
            if (owner := owner_of(remote)) is not None:
                raise OSError(f"{owner} runs the study, and copies")
            if is_ahead(remote, folder):
                raise OSError(_AHEAD)
            for act in copying(remote, folder, known(remote, folder), ended=True):
                act()

        answer(address, copy, 60.0)
    except UserError as error:
        return str(error)
    return None

"""A study's folder at an address of an object store: what is there, and how it is fetched to go on elsewhere.

A log to which lines are added, each safe on the disk, cannot lie in an object store: there, objects are written whole.
So a study runs in a folder here, and :mod:`ammpl.study.views.mirror` writes its copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ammpl.errors import UserError
from ammpl.redaction import is_redacted, redacted
from ammpl.study.addresses import is_remote
from ammpl.study.reachable import SECONDS
from ammpl.study.record.event_log import FILE, read_history
from ammpl.study.record.folder import STOP, is_locked
from ammpl.study.record.own_addresses import is_own, remember

LINK = "remote.json"
"""In the study folder: at which address its copy is."""

LONGEST_PAUSE = 30.0
"""Seconds within which a driver looks at the store again."""

LEASE = ".lease.json"
LEASE_SECONDS = 90.0
"""For so long after its last sign of life nobody else takes a driver's study over."""

Value = TypeVar("Value")


class UnreachableError(UserError):
    """A store does not answer, or answers with an error."""


class Remote:
    """A folder in an object store, or wherever else pyarrow can write: ``s3://``, ``gs://``, ``abfs://``, ``file://``.

    Args:
        address: as ``pyarrow.fs.FileSystem.from_uri`` reads it, options in the query included.

    Raises:
        UserError: it is no such address, or has a password in it.
        OSError: the store does not say where the bucket is.
    """

    def __init__(self, address: str):
        self.address = address
        parts = urlsplit(address)
        if is_redacted(redacted(address)):
            fix = "give them as the store's own tools take them, as in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise UserError(f"{parts.scheme}://…", "holds credentials, and is written down", fix=fix)
        try:
            self._files, path = pafs.FileSystem.from_uri(address)
        except (pa.ArrowException, ValueError) as error:
            fix = "s3://bucket/studies/mine, or gs://, abfs://, file://"
            raise UserError(address, f"cannot be used ({line(error)})", fix=fix) from None
        self._base = path.rstrip("/")
        self._has_folders = self._files.type_name in ("local", "hdfs")

    def times(self) -> dict[str, tuple[int, float]]:
        """Return size and time of each file, by its path from here."""
        found = self._files.get_file_info(pafs.FileSelector(self._base, recursive=True, allow_not_found=True))
        return {
            info.path[len(self._base) + 1 :]: (info.size, (info.mtime_ns or 0) / 1e9)
            for info in found
            if info.type == pafs.FileType.File
        }

    def time(self, name: str) -> float | None:
        """Return when a file was written by the store's clock, None if there is none."""
        (info,) = self._files.get_file_info([self._path(name)])
        return (info.mtime_ns or 0) / 1e9 if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """Return what is in a file, None if there is none."""
        try:
            with self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which appears whole or not at all."""
        path = self._path(name)
        if not self._has_folders:  # an object is there once it is complete
            with self._files.open_output_stream(path) as stream:
                stream.write(data)
            return
        folder, _, last = path.rpartition("/")
        self._files.create_dir(folder, recursive=True)
        draft = f"{folder}/.{last}.tmp"
        with self._files.open_output_stream(draft) as stream:
            stream.write(data)
        self._files.move(draft, path)

    def delete(self, name: str) -> None:
        """Delete a file that may not be there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"


def local_folder(address: str) -> Path:
    """Return where a study at an address runs: in ``studies``, by the last part of the address.

    Raises:
        UserError: there is none.
    """
    name = urlsplit(address).path.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise UserError(address, "names no folder", fix="s3://bucket/studies/mine")
    return Path("studies") / name


def remote_at(address: str) -> Remote:
    """Return the place at an address; raises UserError as :class:`Remote`, also if it does not answer."""
    return answer(address, lambda: Remote(address))  # that of a bucket is asked for its region


def remembered_address(folder: Path) -> str | None:
    """Return where a study's copy is, None if it has none."""
    try:
        return str(json.loads((folder / LINK).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def own_address(folder: Path) -> str | None:
    """Return where a study's copy is, None if it has none, or this user has not given the address on this machine."""
    address = remembered_address(folder)
    return address if address is not None and is_own(folder, LINK, address) else None


def brought_here(study: str | Path) -> Path:
    """Return a study's folder; one at an address is fetched, unless the folder here is as far or is being run.

    Raises:
        UserError: nothing is there, it cannot be reached, or the folder here is another study, or went another way.
    """
    if not is_remote(study):
        return Path(study)
    address = str(study)
    folder, remote = local_folder(address), remote_at(address)
    if folder.exists():
        if remembered_address(folder) != address:
            rule = f"is there already, and not the study at {address}"
            raise UserError(str(folder), rule, fix="move it, or work in another directory")
        if is_locked(folder):
            return folder
    theirs = answer(address, lambda: remote.read(FILE) if remote.read("study.yaml") else None)
    if theirs is None:
        raise UserError(address, "has no study that has begun", fix="name the folder of a study")
    if folder.exists():
        log = folder / FILE
        ours = log.read_bytes()[: read_history(log).size] if log.exists() else b""
        if ours.startswith(theirs):
            remember(folder, {LINK: address})
            return folder
        if not theirs.startswith(ours):
            rule = f"has gone on without its copy at {address}, and that without it"
            raise UserError(str(folder), rule, fix="move one of them, or work in another directory")
    try:
        _fetch(remote, theirs, folder)
    except OSError as error:
        raise UserError(address, f"cannot be fetched to {folder} ({line(error)})") from None
    remember(folder, {LINK: address})
    return folder


def _fetch(remote: Remote, log: bytes, folder: Path) -> None:
    """Fetch what the log refers to: files as they are now, which are as new as it, or newer."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    draft = scratch / "study"
    draft.mkdir()
    try:
        for name, (_, written) in remote.times().items():
            data = log if name == FILE else remote.read(name)
            if data is None or Path(name).name.startswith("."):  # gone meanwhile; the lease is not the study's
                continue
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise UserError(remote.address, "has a file whose path leads out of the study", got=name)
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (written, written))
        if not folder.exists():
            draft.rename(folder)
            return
        # File by file, the log last: what else lies in the folder is not the study's to remove.
        fetched = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
        for path in sorted(fetched, key=lambda path: path == Path(FILE)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).replace(folder / path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ask_to_stop(address: str) -> str:
    """Ask the driver of a study at an address to begin no more trials; return what to tell the user.

    Raises:
        UserError: it cannot be reached, or nobody runs it.
    """
    remote = remote_at(address)
    owner = answer(address, lambda: owner_of(remote))
    if owner is None:
        raise UserError(address, "is not running", fix=f"it goes on with: python tune.py resume {address}")
    answer(address, lambda: remote.write(STOP, b""))
    return f"{address}: asked {owner} to stop: no more trials begin within {LONGEST_PAUSE:g} s"


def run_by(address: str) -> str | None:
    """Return who else runs the study at an address, None for nobody, or if it cannot be reached. It is only read."""
    try:
        remote = remote_at(address)
        return answer(address, lambda: owner_of(remote, writes=False))
    except UserError:
        return None


def owner_of(remote: Remote, writes: bool = True) -> str | None:
    """Return who else runs a study and has been heard of, as far as the store knows; None for nobody.

    Args:
        remote: the copy.
        writes: a file, which tells the store's own time; else this machine's is taken for it.

    Raises:
        ValueError: what is there is no lease.
    """
    data, beat = remote.read(LEASE), remote.time(LEASE)
    if data is None or beat is None:
        return None
    try:
        lease = json.loads(data)
        host, pid = str(lease["host"]), int(lease["pid"])
        is_gone = host == socket.gethostname() and (pid == os.getpid() or not _is_alive(pid))
    except (LookupError, TypeError, OverflowError):
        raise ValueError(f"{LEASE} is damaged") from None
    if is_gone:
        return None  # this driver's, from before; it has the folder's lock
    now = time.time()
    if writes:
        probe = f".{uuid.uuid4().hex}"
        remote.write(probe, b"")
        now = remote.time(probe) or 0.0
        remote.delete(probe)
    return f"process {pid} on {host}" if now - beat < LEASE_SECONDS else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def answer(address: str, ask: Callable[[], Value], seconds: float | None = None) -> Value:
    """Return what a store answers within seconds; its own clients try for minutes.

    Raises:
        UnreachableError: it does not, or what it answers is an error.
    """
    seconds = SECONDS if seconds is None else seconds
    told: list[Value] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            told.append(ask())
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, name="remote", daemon=True)
    thread.start()
    thread.join(seconds)
    if told:
        return told[0]
    if problems and not isinstance(problems[0], OSError | ValueError | pa.ArrowException):
        raise problems[0]
    reason = line(problems[0]) if problems else f"no answer within {seconds:g} s"
    raise UnreachableError(
        address, f"cannot be reached ({reason})", fix="check the address, the network and the credentials"
    )


def line(error: BaseException) -> str:
    """Return an error's text on one line, without the store's headers."""
    return redacted((str(error).splitlines() or [type(error).__name__])[0])[:200]

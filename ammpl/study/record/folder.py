"""The folder of a study: made once, for one study, never overwritten; files in it appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ammpl.errors import UserError
from ammpl.study.record.event_log import FILE, read_history

ELSEWHERE = "free some space, or name a folder elsewhere with --output"
STOP = "stop-requested"  # a file that asks the driver to begin no more trials
_TAKEN = "exists already, and a study never overwrites"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other drivers away from a study folder for the length of the block. Requests to stop are for one driver.

    The operating system holds the lock for this process and drops it with the process, however that ends.

    Raises:
        UserError: another process has it, the folder cannot be written to, or what is written would change a file
            outside it.
    """
    check_links(folder, writes=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        session = read_history(folder / FILE).session
        who = f" (process {session['pid']} on {session['host']})" if session else ""
        raise UserError(
            str(folder),
            f"is being run by another process{who}",
            fix=f"wait for it, or stop it: python tune.py stop {folder}",
        ) from None
    except OSError as error:
        raise UserError(str(folder), f"cannot be written to ({error.strerror})") from None
    withdraw_stop(folder)
    try:
        yield
    finally:
        withdraw_stop(folder)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a driver runs the study; False where that cannot be known. Nothing is written."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # there is none, or it is somebody else's folder
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.ENOSYS:  # a lock file of a file system without locks: its content says who has it
            return os.fstat(lock).st_size > 0
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(lock)
    return False


def check_links(folder: Path, writes: bool = False) -> None:
    """Raise UserError where a study's folder leads out of itself: what is done to it could be done to other files.

    Args:
        folder: the study's; it may itself be a link, which is the user's own.
        writes: whether files in it are written to: then none may have another name outside (a hard link).
    """
    inside = Path(os.path.realpath(folder))
    names: Counter[tuple[int, int, int]] = Counter()
    linked: dict[tuple[int, int, int], Path] = {}
    for root, folders, files in os.walk(inside):
        for path in (Path(root, name) for name in (*folders, *files)):
            try:
                status = path.lstat()
            except FileNotFoundError:  # a running study's draft, which has its name by now
                continue
            if stat.S_ISLNK(status.st_mode):
                if not (target := Path(os.path.realpath(path))).is_relative_to(inside):
                    fix = "put the file itself in its place, or remove it"
                    raise UserError(str(path), "is a link that leads out of the study", got=str(target), fix=fix)
            elif stat.S_ISREG(status.st_mode):
                if writes and status.st_nlink > 1:
                    file = (status.st_dev, status.st_ino, status.st_nlink)
                    names[file] += 1
                    linked[file] = path
            elif not stat.S_ISDIR(status.st_mode):
                raise UserError(str(path), "is neither a file nor a folder", fix="remove it")
    for file, path in linked.items():
        if names[file] < file[2]:
            rule = "has another name outside the study (a hard link), where it would be changed too"
            raise UserError(str(path), rule, fix=f"copy the folder, cp -r {folder} COPY, and use the copy")


def request_stop(folder: Path) -> bool:
    """Ask the driver that runs a study to begin no more trials; return whether it had not been asked before.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        (folder / STOP).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(str(folder), f"cannot be written to ({error.strerror})") from None
    return True


def is_asked_to_stop(folder: Path) -> bool:
    """Return whether the driver that runs a study has been asked to begin no more trials."""
    return (folder / STOP).exists()


def withdraw_stop(folder: Path) -> None:
    """Forget a request to stop."""
    with contextlib.suppress(OSError):
        (folder / STOP).unlink(missing_ok=True)


def _fix(output: Path) -> str:
    """Return what can be done about a folder that is taken."""
    if not (output / "study.yaml").is_file():
        return "name another"
    if read_history(output / FILE).has_ended:
        return f"that study has ended; add to it: python tune.py extend {output} --trials +50; or name another"
    return f"go on with that study: python tune.py resume {output}; or name another"


def check_output(output: Path | None) -> Path:
    """Return the nearest folder that is there already, for :func:`remove_folder`.

    Args:
        output: the study folder; None means one below ``studies``.

    Raises:
        UserError: it exists already and is not empty (none is ever overwritten), or cannot be created.
    """
    given, output = output, output or Path("studies")
    try:
        if given is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError("--output", _TAKEN, got=str(output), fix=_fix(output))
        there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UserError("--output", f"cannot be used ({error.strerror})", got=str(output), fix=ELSEWHERE) from None
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "it may not be written to" if there.is_dir() else "it is a file"
        raise UserError("--output", f"cannot be created below {there} ({problem})", got=str(output), fix=ELSEWHERE)
    return there


def create_folder(name: str, output: Path | None, now: Callable[[], datetime] = datetime.now) -> Path:
    """Create and return the study folder, of which no other process gets the same.

    Args:
        name: of the study.
        output: the folder, new or empty; None makes ``studies/<name>-<time>``, with a number where that exists.
        now: for tests.

    Raises:
        UserError: it exists already, or cannot be created.
    """
    check_output(output)
    stamp = f"{name}-{now():%Y%m%d-%H%M%S}"
    folder = output or Path("studies") / stamp
    try:
        if output is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # Of two studies with the same empty folder, the first has it.
            (folder / "study.yaml").touch(exist_ok=False)
            return folder
        for number in itertools.count(2):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:  # another study of that name, in the same second
                folder = folder.with_name(f"{stamp}-{number}")
    except FileExistsError:
        raise UserError("--output", _TAKEN, got=str(folder), fix=_fix(folder)) from None
    except OSError as error:
        raise UserError("--output", f"cannot be created ({error.strerror})", got=str(folder), fix=ELSEWHERE) from None
    return folder


def remove_folder(folder: Path, there: Path) -> None:
    """Remove the folder of a study that did not begin, and the folders above it that were made for it.

    Args:
        there: what was there before, as :func:`check_output` says.
    """
    for _ in range(50):  # workers that are being ended may still write to it
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)
    for parent in folder.absolute().parents:
        if parent == there or not parent.is_relative_to(there):
            break
        with contextlib.suppress(OSError):  # another study is in it
            parent.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all, and is on the disk then.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        with contextlib.suppress(OSError):  # not every system lets a folder be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # its entry, too
            finally:
                os.close(folder)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(str(path), f"cannot be written ({error.strerror})", fix=ELSEWHERE) from None

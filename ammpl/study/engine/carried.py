"""A trial's files on nodes that do not see the study folder: they travel with the trial, and with what it reports.

A worker is on such a node if it does not find the driver's mark in the folder. It then works in a folder of its own.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from ammpl.errors import UserError
from ammpl.study.record.folder import ELSEWHERE, write_text

MARK = ".driver"
"""A file in the study folder, there while the study runs."""

Files = dict[str, bytes | None]
"""Contents by path within a trial's folder; None for a file that is there no more."""


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[str]:
    """Leave a mark in a study folder for the length of the block; return what :func:`sees` looks for.

    Raises:
        UserError: the folder cannot be written to.
    """
    token = uuid.uuid4().hex
    write_text(folder / MARK, token)
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            (folder / MARK).unlink(missing_ok=True)


def sees(folder: Path, token: str) -> bool:
    """Return whether a folder is the driver's own, and not merely one of the same name."""
    try:
        return (folder / MARK).read_text(encoding="utf-8") == token
    except OSError:
        return False


def read_files(folder: Path) -> Files:
    """Return all files of a trial's folder; none where there is no folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_files(folder: Path, files: Files) -> None:
    """Bring a trial's folder to where another one is. Each file appears whole or not at all.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    for name, content in files.items():
        path = folder / name
        try:
            if content is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.tmp")
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            raise UserError(str(path), f"cannot be written ({error.strerror})", fix=ELSEWHERE) from None


class Outbox:
    """What changes in a folder.

    Args:
        folder: a trial's; what it has now is no news.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._sent = self._seen()

    def changes(self) -> Files:
        """Return what is new, or gone, since this was asked last."""
        seen = self._seen()
        news: Files = dict.fromkeys(self._sent.keys() - seen.keys())
        news |= {name: (self._folder / name).read_bytes() for name in seen if seen[name] != self._sent.get(name)}
        self._sent = seen
        return news

    def _seen(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for path in self._folder.rglob("*"):
            if path.is_file():
                stat = path.stat()
                found[path.relative_to(self._folder).as_posix()] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return found

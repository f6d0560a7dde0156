"""Archives from elsewhere, unpacked without trust: nothing is written outside the target."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ammpl.errors import UserError

_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that Python lacks
    RuntimeError,  # a password
)


class _Member(NamedTuple):
    name: str
    is_folder: bool
    stream: IO[bytes] | None


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar (any compression) or zip file into a new folder.

    Only folders and plain files with relative paths are unpacked; owners and permissions are not taken over. The
    archive is refused at the first member that is anything else: by then nothing is outside the target.

    Args:
        archive: the file.
        target: made here; left as it is at an error.

    Raises:
        UserError: no archive, a broken one, or one with a member that is refused.
        OSError: the target cannot be written.
    """
    target.mkdir(parents=True)
    root = target.resolve()
    try:
        for member in _members(archive):
            path = _inside(archive, root, member.name)
            if member.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            if member.stream is None:
                rule = "holds a link or a device, which no data set needs; nothing of it is kept"
                raise UserError(str(archive), rule, got=member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(member.stream, file, 1 << 20)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise UserError(str(archive), f"cannot be unpacked ({reason})", fix="download it again") from error


def _inside(archive: Path, root: Path, name: str) -> Path:
    """Return where a member goes, once every "." and doubled slash is resolved; refuse what is not below ``root``."""
    parts = name.split("/")
    path = root.joinpath(*(part for part in parts if part not in ("", ".")))
    first = next((part for part in parts if part != "."), "")  # of "/x" and ".//x" it is empty
    if (
        (not first and name.strip("./"))
        or ".." in parts
        or "\\" in name
        or ":" in parts[0]
        or "\0" in name
        or not _is_below(path, root)
    ):
        raise UserError(str(archive), "holds a path that leads out of it; nothing of it is kept", got=name)
    return path


def _is_below(path: Path, root: Path) -> bool:
    # realpath follows links, of which there should be none: the folder is new, and links are not unpacked.
    return Path(os.path.realpath(path)).is_relative_to(root)


def _members(archive: Path) -> Iterator[_Member]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = info.external_attr >> 28  # Unix file type: 0 if not told, 4 folder, 8 plain file
                if info.is_dir():
                    yield _Member(info.filename, True, None)
                elif kind not in (0, 8):
                    yield _Member(info.filename, False, None)
                else:
                    with zipped.open(info) as stream:
                        yield _Member(info.filename, False, stream)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            yield _Member(member.name, member.isdir(), tarred.extractfile(member) if member.isreg() else None)

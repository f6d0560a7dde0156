"""Archives from elsewhere, unpacked without trust: nothing is written outside the target."""

from __future__ import annotations

import gzip
import lzma
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


def unpack(archive: Path, target: Path, limit: int) -> None:
    """Unpack a tar (any compression) or zip file into a new folder.

    Only folders and plain files with relative paths are unpacked; owners and permissions are not taken over. The
    archive is refused at the first member that is anything else: by then nothing is outside the target.

    Args:
        archive: the file.
        target: made here; left as it is at an error.
        limit: bytes that all files may have together.

    Raises:
        UserError: no archive, a broken one, one with a member that is refused, or one beyond the limit.
        OSError: the target cannot be written.
    """
    left = limit
    target.mkdir(parents=True)
    root = target.resolve()
    try:
        for member in _members(archive, root):
            path = _inside(archive, root, member.name)
            if member.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            if member.stream is None:
                rule = "holds a link or a device, which no data set needs; nothing of it is kept"
                raise UserError(str(archive), rule, got=member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while block := member.stream.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        rule = f"holds more than the {limit:,} bytes allowed for it; nothing of it is kept"
                        raise UserError(str(archive), rule, fix="check where it comes from, and download it again")
                    file.write(block)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        rule = "holds a file and a folder of the same name; nothing of it is kept"
        raise UserError(str(archive), rule, fix="download it again") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise UserError(str(archive), f"cannot be unpacked ({reason})", fix="download it again") from error


def _inside(archive: Path, root: Path, name: str) -> Path:
    """Return where a member goes; its name is normalised before it is checked, so that ``.//x`` is ``x``."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    unsafe = name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in "".join(parts[:1])
    path = root.joinpath(*parts)
    if unsafe or not path.resolve().is_relative_to(root):
        raise _leads_out(archive, name)
    return path


def _leads_out(archive: Path, name: str) -> UserError:
    return UserError(str(archive), "holds a path that leads out of it; nothing of it is kept", got=name)


def _members(archive: Path, root: Path) -> Iterator[_Member]:
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
            if (member.isreg() or member.isdir()) and hasattr(tarfile, "data_filter"):  # Python 3.11.4 has it
                try:
                    tarfile.data_filter(member, str(root))
                except tarfile.FilterError as error:
                    raise _leads_out(archive, member.name) from error
            yield _Member(member.name, member.isdir(), tarred.extractfile(member) if member.isreg() else None)

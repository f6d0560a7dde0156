"""Which of the addresses that a study's folder names this user has given to that study, on this machine.

A study's folder may have come from anywhere, so an address in it is data. What tells is not in the folder: each time
that a study is begun, continued or fetched here, a small file in the user's state folder notes its path and the
addresses that it uses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from ammpl.errors import UserError

TRUST = "--trust-addresses"

_noted: dict[str, dict[str, str]] = {}  # by this process, for where nothing can be written


def remember(folder: Path, addresses: Mapping[str, str]) -> None:
    """Note that this user has given addresses to a study; those of other files stay as they are noted.

    Where no place can be written to, this process alone remembers it.

    Args:
        folder: the study's.
        addresses: without passwords, by the name of the file in the folder that keeps each.
    """
    path = os.path.realpath(folder)
    known = _noted[path] = {**_read(path), **addresses}
    for place in _places():
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(place):
                continue
            draft = place / f".{uuid.uuid4().hex}"
            text = json.dumps({"folder": path, "addresses": known}, indent=2) + "\n"
            draft.touch(mode=0o600, exist_ok=False)
            draft.write_text(text, encoding="utf-8")
            draft.replace(place / _name(path))
            return


def is_own(folder: Path, file: str, address: str) -> bool:
    """Return whether this user has given an address to a study; ``file`` of the folder names it."""
    return _read(os.path.realpath(folder)).get(file) == address


def check_own(folder: Path, file: str, address: str, fix: str, trusted: bool | None = None) -> None:
    """Raise UserError for an address that this user has not given to a study.

    Args:
        folder: the study's.
        file: in the folder, that names the address.
        address: without a password.
        fix: how to give it.
        trusted: whether the user has said that the folder's addresses are to be used; None where that cannot be said.
    """
    if not trusted and not is_own(folder, file, address):
        rule = "names an address that you have not given to this study on this machine"
        other = "" if trusted is None else f", or give {TRUST} if the folder is yours"
        raise UserError(str(folder / file), rule, got=address, fix=fix + other)


def _read(path: str) -> dict[str, str]:
    if path in _noted:
        return _noted[path]
    for place in _places():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if _is_ours(place):
                saved = json.loads((place / _name(path)).read_text(encoding="utf-8"))
                return {str(file): str(address) for file, address in dict(saved["addresses"]).items()}
    return {}


def _name(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + ".json"


def _places() -> Iterator[Path]:
    """Yield where notes may lie: in the user's state folder, or where there is no home, in the temporary one."""
    with contextlib.suppress(RuntimeError):  # this user has no home
        yield Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ammpl" / "studies"
    yield Path(tempfile.gettempdir()) / f"ammpl-studies-{os.getuid()}"


def _is_ours(place: Path) -> bool:
    """Return whether a folder is one that no other user can have written to."""
    status = place.lstat()
    return not place.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022

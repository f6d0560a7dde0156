"""Where data lie on this machine: nothing here decides a number, so it is no part of a trial's configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ammpl.errors import UserError

EMBEDDED = (
    "digits",
    "digits-distractor",
    "digits-distractor-right",
    "digits-distractor-noise",
    "digits-distractor-noise-right",
)
"""Data sets that come with a package: they need neither folder."""


def is_path(name: str) -> bool:
    """Return whether a data set is named by a folder or manifest rather than by a registered name."""
    try:
        return bool(name.strip()) and ("/" in name or os.sep in name or Path(name).exists())
    except OSError:  # longer than a file's name may be
        return False


def is_passed_over(name: str, home: DataHome) -> bool:
    """Return whether a folder of a registered name is in the working directory, and is not the data set itself."""
    try:
        return Path(name).name == name and Path(name).is_dir() and Path(name).resolve() != (home.root / name).resolve()
    except OSError:  # as above
        return False


def replaced(path: str | Path) -> Path:
    """Return a path with ``~`` and ``$VARIABLES`` replaced as a shell does, which not every flag or file passes.

    Raises:
        UserError: it names the home of a user who does not exist.
    """
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError:
        raise UserError(
            str(path), "names the home of a user who does not exist", fix="write the path in full"
        ) from None


def expanded(path: str | Path) -> Path:
    """Return a path in full; see :func:`replaced`."""
    return replaced(path).absolute()


def _from_environment(variable: str, default: Path) -> Path:
    return expanded(Path(os.environ.get(variable) or default))


@dataclass(frozen=True)
class DataHome:
    """The two folders that data sets need.

    Attributes:
        root: holds one folder a data set, in the community's layout (docs/data.md); only read. Default:
            ``AMMPL_DATA_ROOT``, else ``data``.
        store: gets the prepared files, gigabytes; better on a local disk. Default: ``AMMPL_STORE``, else
            ``ammpl`` in the user's cache folder.
    """

    root: Path = field(default_factory=lambda: _from_environment("AMMPL_DATA_ROOT", Path("data")))
    store: Path = field(
        default_factory=lambda: _from_environment(
            "AMMPL_STORE", Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ammpl"
        )
    )

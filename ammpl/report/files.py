"""The files of a report in its folder: a list of them lies beside the page, and only those are ever replaced."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ammpl.errors import UserError

PAGE = "report.html"
LIST = ".ammpl-report.json"
SUBFOLDERS = ("tables", "figures")

# What a report can consist of: whatever a list says, no other file is touched.
_REPORT_FILE = re.compile(r"report\.html|tables/[^/]+\.(csv|md|tex)|figures/[^/]+\.(svg|png)")


def listed(target: Path) -> set[str] | None:
    """Return the files, relative to it, of the report in a folder; None where the folder has no list of them."""
    try:
        names = json.loads((target / LIST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    return {name for name in names if isinstance(name, str) and _REPORT_FILE.fullmatch(name)}


def replaceable(target: Path, studies: Sequence[Path], where: str) -> set[str]:
    """Return the files that a new report may replace in a folder, relative to it.

    Args:
        target: the folder, which need not exist.
        studies: whose own ``report`` folders may hold a report of a version that wrote no list.
        where: what named the folder, for errors.

    Raises:
        UserError: the folder holds something else and no list, or leads elsewhere.
    """
    if not os.path.lexists(target):
        return set()
    if not target.is_dir():
        raise UserError(where, "must be a folder", got=str(target), fix="name a new folder")
    own = any(target.resolve() == study.resolve() / "report" for study in studies)
    for name in SUBFOLDERS:
        if (target / name).is_symlink() or ((target / name).exists() and not (target / name).is_dir()):
            rule = f"has something else than a folder of a report as {name}, and is left as it is"
            raise UserError(where, rule, got=str(target), fix="name a new folder")
    names = listed(target)
    if names is None and own:
        inside = (path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
        return {name for name in inside if _REPORT_FILE.fullmatch(name)}
    if names is None and any(target.iterdir()):
        rule = f"has files in it and no list ({LIST}) of a report's, and only a report's files are replaced"
        raise UserError(where, rule, got=str(target), fix="name a new or empty folder")
    return names or set()


def put(draft: Path, target: Path, former: set[str], where: str) -> None:
    """Move a report's files from a draft into its folder, and remove what only the former report had.

    The list names both until that is done, so that a report that was cut short is replaced like any other.

    Raises:
        UserError: a file of the report would replace one that is not the former report's.
        OSError: the folder cannot be written.
    """
    paths = (path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
    new = sorted(paths, key=lambda name: (name == PAGE, name))  # the page last: what it tells of is there
    for name in new:
        if name not in former and os.path.lexists(target / name):
            rule = f"has a file {name} that is not the former report's, and is left as it is"
            raise UserError(where, rule, got=str(target), fix="move that file, or name a new folder")
    for subfolder in (target, *(target / name for name in SUBFOLDERS)):
        subfolder.mkdir(parents=True, exist_ok=True)
    _write_list(draft, target, former.union(new))
    for name in new:
        (draft / name).replace(target / name)
    for name in former.difference(new):
        (target / name).unlink(missing_ok=True)
    _write_list(draft, target, new)


def _write_list(draft: Path, target: Path, names: Iterable[str]) -> None:
    (draft / LIST).write_text(json.dumps({"files": sorted(names)}, indent=1) + "\n", encoding="utf-8")
    (draft / LIST).replace(target / LIST)

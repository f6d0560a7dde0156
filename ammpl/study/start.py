"""A study that starts from another one's winner."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ammpl.config import Scalar
from ammpl.errors import UserError
from ammpl.study.plan.replay import check_study
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import StudySpace, read_space

CARRIED = ("model.", "training.")
"""The winner's fields that another space takes over; data and backbone are its own."""


def from_best(folder: Path, space: StudySpace | None, overridden: Collection[str]) -> StudySpace:
    """Return a space that starts from a search's winner.

    What the space does not search or vary has the winner's value; of what it searches, the winner's values are tried
    first.

    Args:
        folder: of the search.
        space: what is to be run; None takes the search's own, of whose parameters the overridden ones are fixed.
        overridden: names that are set afterwards, on the command line.

    Raises:
        UserError: the folder's study has no winner, is of another method, or leaves nothing to search.
    """
    origin, params = _winner(folder)
    if space is None:
        kept = {name: parameter for name, parameter in origin.parameters.items() if name not in overridden}
        space = origin.model_copy(update={"parameters": kept})
    if space.method != origin.method:
        raise UserError("--from", f"is a study of {origin.method}, and this one is of {space.method}", got=str(folder))
    config = origin.config(params, origin.repeats[0]).flat()
    varied = set(space.parameters)
    values = {name: value for name, value in config.items() if name.startswith(CARRIED) and name not in varied}
    update: dict[str, Any] = {"fixed": {**space.fixed, **values}}
    if isinstance(space, SearchSpace):
        update["first"] = {n: config[n] for n, parameter in space.parameters.items() if parameter.can_be(config[n])}
    started = space.model_copy(update=update)
    started.check(f"--from {folder}", f"--from {folder}")
    return started


def _winner(folder: Path) -> tuple[SearchSpace, dict[str, Scalar]]:
    """Return a search's space and the parameters of its winner, or of its best trial where nothing was confirmed."""
    check_study(folder)
    space = read_space(folder / "study.yaml")
    if not isinstance(space, SearchSpace):
        raise UserError("--from", "is an ablation, which chooses nothing", got=str(folder), fix="name a search")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = {row["candidate"]: row["params"] for row in summary["rows"]}
        params = rows[summary["winner"]] if summary["winner"] is not None else summary["best"]["params"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError("--from", "has no winner", got=str(folder), fix="name a search that has ended") from None
    if space.second_objective is not None:
        raise UserError("--from", "has two objectives: a front, and no winner", got=str(folder))
    return space, dict(params)

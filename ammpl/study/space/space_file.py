"""Space files of either kind: a search or an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammpl.errors import UserError, did_you_mean
from ammpl.study.space.ablation_space import AblationSpace, parse_ablation
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.yaml_file import read_yaml

StudySpace = SearchSpace | AblationSpace

KINDS = ("search", "ablation")


def read_space(path: Path) -> StudySpace:
    """Read a space file of any kind.

    Raises:
        UserError: the file is unreadable, no YAML, or breaks a rule; names file, field, rule, value and fix.
    """
    return parse_study_space(read_yaml(path), path.name)


def parse_study_space(raw: Any, where: str) -> StudySpace:
    """Build a space of any kind from plain data; ``where`` names it in errors. Raises UserError as above."""
    if not isinstance(raw, Mapping):
        return parse_space(raw, where)
    kind = raw.get("kind", "search")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: kind", "is unknown", got=kind, fix=did_you_mean(str(kind), KINDS))
    if "kind" not in raw and {"variants", "reference"} & raw.keys():
        raise UserError(where, "has variants, as an ablation does, but no 'kind'", fix="write 'kind: ablation'")
    return parse_ablation(raw, where) if kind == "ablation" else parse_space(raw, where)

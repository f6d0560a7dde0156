"""Every saved space is valid, says in its head how it is run, and can start where its data are embedded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.home import EMBEDDED
from ammpl.data.task import target_names
from ammpl.study.engine.work import configurations
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import parse_study_space, read_space
from ammpl.training.run import preflight

SPACES = sorted((Path(__file__).resolve().parents[2] / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_saved_space(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf-8").split("version:")[0].splitlines() if line]
    assert all(line.startswith("# ") for line in head)
    command = f"#   python tune.py search_spaces/{path.name}"
    assert any(line.startswith(command) for line in head) or path.stem == "default"
    space = read_space(path)
    assert space.name.replace("-", "_") == path.stem
    assert space.description
    again = parse_study_space(space.resolved(), path.name)
    assert again.resolved() == space.resolved()
    configs = configurations(space)
    for config in configs:
        assert {config.data.name, *target_names(config.data)} <= {*EMBEDDED, *DESCRIPTIONS}
        if config.data.name in EMBEDDED:
            preflight(config)
    if not isinstance(space, AblationSpace):
        assert space.search_size is not None
    else:
        cells = list(space.cells())
        assert len({(cell.variant, cell.setting, cell.repeat) for cell in cells}) == len(cells)
        trials = int(next(line for line in head if " trials" in line).split()[1])
        assert trials == len(cells)

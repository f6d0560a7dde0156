"""What a study would run, before it does: its trials and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ammpl.config import TrialConfig
from ammpl.data.dataset import Dataset
from ammpl.data.home import DataHome
from ammpl.data.task import check_tests
from ammpl.study.plan.ablation_plan import AblationPlan, StudyPlan
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.observers import Observers
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import StudySpace

MOST_CLASSES = 20
"""That are listed one by one; of more, the fewest and the most pictures a class are told."""


def preview(space: StudySpace, configs: Sequence[TrialConfig], home: DataHome) -> list[str]:
    """Return lines on how many trials there are at most, and how many pictures each class has.

    Args:
        space: the study's.
        configs: one of each kind that it runs.
        home: where data lie.
    """
    folder, nobody = Path(space.name), Observers([])
    plan: StudyPlan
    if isinstance(space, AblationSpace):
        plan = AblationPlan(space, folder, nobody)
    else:
        plan = Plan(space, space.name, folder, nobody)
    counts = [f"{phase} {'as time allows' if n is None else n}" for phase, n in plan.totals.items() if n != 0]
    lines = [f"study {space.name}; trials at most: {', '.join(counts)}"]
    datasets = {name: found for config in configs for name, found in check_tests(config.data, home).items()}
    for dataset in datasets.values():
        lines += ["", *_pictures(dataset)]
    shots = sorted({config.data.shots for config in configs})
    steps = sorted({steps for config in configs if (steps := config.training.steps)})  # else epochs, or zero-shot CLIP
    takes = f"; a trial takes {_range(steps)} steps" if steps else ""
    return [*lines, "", f"{_range(shots)} training pictures a class are drawn{takes}"]


def _pictures(dataset: Dataset) -> list[str]:
    """Return a table of the pictures of each class in each list."""
    lists = {"train": dataset.train, "validation": dataset.validation, "test": dataset.open_test()}
    count = len(dataset.class_names)
    counts = {name: torch.bincount(found.labels, minlength=count).tolist() for name, found in lists.items()}
    rows = list(zip(dataset.class_names, *counts.values(), strict=True))
    if count > MOST_CLASSES:
        rows = [("a class", *(_range(sorted(counts[name])) for name in lists))]
    rows.append(("all", *(sum(counts[name]) for name in lists)))
    head = f"{dataset.name}, {count} classes"
    width = max(len(head), *(len(str(row[0])) + 2 for row in rows))
    lines = [f"{head:{width}}" + "".join(f"{name:>12}" for name in lists)]
    return lines + [f"  {row[0]:{width - 2}}" + "".join(f"{value:>12}" for value in row[1:]) for row in rows]


def _range(values: Sequence[int]) -> str:
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"

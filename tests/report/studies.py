"""Studies for reports, made in this process: made-up curves or real training, no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ammpl.study.plan.ablation_plan import AblationPlan
from ammpl.study.plan.search_plan import Plan
from ammpl.study.record.environment import describe_environment
from ammpl.study.record.event_log import FILE, end_log
from ammpl.study.record.observers import Observers
from ammpl.study.record.records import Records
from ammpl.study.result.ablation_summary import summarize_study
from ammpl.study.space.ablation_space import AblationSpace, parse_ablation
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Execute
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import execute as made_up
from tests.study.fakes import run_inline

ABLATION: dict[str, Any] = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "description": "What the mask is worth.",
    "fixed": {"model.mask.scope": "task", "training.steps": 30},
    "reference": "learned",
    "variants": {"none": {"model.mask.kind": "none"}, "random": {"model.mask.kind": "random"}, "learned": {}},
    "repeats": list(range(1, 11)),
    "smallest_effect": 0.01,
}


def ablation(**changes: Any) -> AblationSpace:
    """The space of an ablation with three variants and ten repeats."""
    return parse_ablation({**ABLATION, **changes}, "masks.yaml")


def make(folder: Path, space: StudySpace, execute: Execute = made_up, *, ends: bool = True) -> Path:
    """Run a study to its end and leave a folder as a study does."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(dump_yaml(space.resolved()), encoding="utf-8")
    environment = describe_environment({"CPU": 2.0}, ["tune.py", "masks.yaml"])
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    records = Records(folder, space)
    records.begin()
    observers = Observers([], records)
    plan: Plan | AblationPlan
    if isinstance(space, AblationSpace):
        plan = AblationPlan(space, folder, observers)
    else:
        plan = Plan(space, space.name, folder, observers)
    run_inline(plan, folder, execute)
    summary = summarize_study(plan, folder, interrupted=False, seconds=1.0)
    (folder / "summary.json").write_text(json.dumps(summary.as_dict()), encoding="utf-8")
    observers.close()
    if ends:
        end_log(folder / FILE)
    return folder

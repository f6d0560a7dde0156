"""Writes when a process of a study reaches what: found by Python's start where its folder is on ``PYTHONPATH``.

Each line of the file ``AMMPL_MARKS`` is a JSON object: ``process`` (``driver``, ``worker``, ``mlflow``, ``optuna``),
``pid``, ``mark``, ``at`` in seconds since 1970, ``cpu``: processor seconds of the process so far. The program measured
is not changed, so that one of another commit is measured in the same way.
"""

from __future__ import annotations

import functools
import importlib.abc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def _process() -> str:
    words = " ".join(sys.orig_argv)
    names = {
        "default_worker.py": "worker",
        "mlflow_writer": "mlflow",
        "optuna_writer": "optuna",
        "warm_process": "warm",
        "tune.py": "driver",
    }
    return next((name for word, name in names.items() if word in words), "")


def mark(name: str) -> None:
    """Write a line."""
    line = {"process": PROCESS, "pid": os.getpid(), "mark": name, "at": time.time(), "cpu": time.process_time()}
    with Path(os.environ["AMMPL_MARKS"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _around(module: ModuleType, function: str) -> None:
    wrapped = getattr(module, function, None)
    if wrapped is None:  # of another commit
        return

    @functools.wraps(wrapped)
    def timed(*args: Any, **kwargs: Any) -> Any:
        mark(f"{function} begins")
        try:
            return wrapped(*args, **kwargs)
        finally:
            mark(f"{function} ends")

    setattr(module, function, timed)


def _first_step(module: ModuleType) -> None:
    def ended(*_: Any) -> None:
        mark("first step ends")
        handle.remove()

    handle = module.register_optimizer_step_post_hook(ended)


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "ray": lambda module: _around(module, "init"),
    "ammpl.study.study": lambda module: mark("imported"),
    "ammpl.study.engine.ray_engine": lambda module: _around(module, "run_plan"),
    "ammpl.study.engine.ray_worker": lambda module: _around(module.TrialWorker, "setup"),
    "ammpl.study.engine.worker": lambda module: _around(module, "prepare"),
    "ammpl.study.views.stores": lambda module: _around(module.Views, "open"),
    "ammpl.training.run": lambda module: [_around(module, name) for name in ("load_backbone", "load_task", "train")],
    "mlflow.tracking": lambda module: mark("imported"),
    "torch.optim.optimizer": _first_step,
}
"""Module -> what is done with it once it is loaded."""


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in AFTER or (spec := PathFinder.find_spec(name, path, target)) is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            AFTER[name](module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if "AMMPL_MARKS" in os.environ and (PROCESS := _process()):
    mark("starts")
    sys.meta_path.insert(0, _Finder())

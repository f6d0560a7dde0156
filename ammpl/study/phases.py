"""How long each part of a study's start takes on this machine, one at a time."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ammpl
from ammpl.config import BackboneConfig, DataConfig
from ammpl.study.engine.runner import runner, warm_process
from ammpl.study.engine.worker import Ready

STORE = """\
import sys
from pathlib import Path
from ammpl.study.views.mlflow_writer import drafted
drafted("sqlite:///" + sys.argv[1] + "/new.db", Path(sys.argv[1]))
"""


def phases(backbone: BackboneConfig) -> Iterator[tuple[str, float]]:
    """Yield (phase, seconds): imports, MLflow store, worker, backbone, data. Ray's start is not among them.

    Each process is a new one, as in a study, and files are read as this machine's cache has them.

    Args:
        backbone: what a worker loads; the data are the embedded digits.

    Raises:
        RuntimeError: a part cannot be done; with its reason.
    """
    yield "imports", _process("import ammpl.study.study")
    with tempfile.TemporaryDirectory(prefix="ammpl-doctor-") as folder:
        yield "MLflow store", _process(STORE, folder)
    with warm_process(True) as address:
        if address is None:
            yield "worker", _process("import ammpl.training.run")
            return
        began = time.monotonic()
        worker = runner(address, 1)
        yield "worker", time.monotonic() - began
        yield "backbone", _seconds(worker.prepare, functools.partial(_backbone, backbone))
        yield "data", _seconds(worker.prepare, functools.partial(_data, backbone))


def _process(code: str, *words: str) -> float:
    """Return the seconds of a Python process of its own."""
    root = str(Path(ammpl.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return time.monotonic() - began


def _seconds(prepare: Callable[[Callable[[], None]], Ready], load: Callable[[], None]) -> float:
    """Return the seconds that a worker takes to load something."""
    began = time.monotonic()
    if (error := prepare(load).error) is not None:
        raise RuntimeError(str(error).strip().splitlines()[-1])
    return time.monotonic() - began


def _backbone(config: BackboneConfig) -> None:
    from ammpl.model.backbone import load_backbone
    from ammpl.training.device import set_up

    load_backbone(config, set_up(config))


def _data(config: BackboneConfig) -> None:
    from ammpl.data.home import DataHome
    from ammpl.data.task import load_task
    from ammpl.model.backbone import load_backbone
    from ammpl.training.device import set_up
    from ammpl.training.run import image_transform

    transform = image_transform(load_backbone(config, set_up(config)).preprocessing)  # it is loaded
    load_task(DataConfig(), 1, transform, DataHome())

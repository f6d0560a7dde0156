"""The Ray actor in which trials run, one after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ray import tune

from ammpl.study.engine.carried import Files, Outbox, sees, write_files
from ammpl.study.engine.runner import runner
from ammpl.study.engine.worker import Evaluation, Ready
from ammpl.study.trial import Execute, Trial


@dataclass(frozen=True)
class Resources:
    """What one trial gets, and how many run at a time.

    Attributes:
        concurrency: trials at a time.
        cpus: CPUs a trial, its thread count.
        gpus: GPUs a trial; fractions share a device; 0 on a cluster without any.
        repack: given how many trials fit on a GPU, returns the resources of all but the first, which is measured; None
            where they are what they are.
    """

    concurrency: int
    cpus: int = 1
    gpus: float = 0.0
    repack: Callable[[int], Resources] | None = None

    @property
    def trials_a_gpu(self) -> int:
        """How many trials share a GPU, at most as many as run at a time; 1 without GPUs or with whole ones."""
        return min(self.concurrency, int(1 / self.gpus + 1e-9)) if 0 < self.gpus < 1 else 1

    def bundle(self, gpus: float) -> tune.PlacementGroupFactory:
        """Return, in Ray's words, what a trial with so many GPUs gets."""
        return tune.PlacementGroupFactory([{"CPU": self.cpus, "GPU": gpus} if gpus else {"CPU": self.cpus}])


class Parcel:
    """A trial on its way to a worker, with what that needs if it does not see the study folder.

    Ray copies a configuration for each of its own trials, prints it into a name, and keeps all of that for as long as
    the study runs: so here are no copies, and a short name.
    """

    def __init__(self, trial: Trial, files: Files, learnables: bytes | None):
        self.trial = trial
        self.files = files
        self.learnables = learnables

    def __deepcopy__(self, memo: dict[int, Any]) -> Parcel:
        return self

    def __repr__(self) -> str:
        return self.trial.key


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # untyped in Ray
    """An actor that has one trial run after the other; what a trial leaves in its modules' caches serves the next."""

    execute: ClassVar[Execute]
    prepare: ClassVar[Callable[[], None] | None]
    study_folder: ClassVar[Path]
    token: ClassVar[str]
    directory: ClassVar[str]
    resources: ClassVar[Resources]
    warm: ClassVar[str | None]

    def setup(self, config: dict[str, Any]) -> None:
        """Keep to the CPUs and GPUs that a trial is given, and take the first trial."""
        if not self.resources.gpus:  # Ray hides the GPUs of others only from those that have one
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Ray moves each trial to a directory of its own; relative paths in a configuration are the driver's.
        if Path(self.directory).is_dir():
            os.chdir(self.directory)
        self._runner = runner(self.warm, self.resources.cpus)
        shares = sees(self.study_folder, self.token)
        self._scratch = None if shares else Path(tempfile.mkdtemp(prefix="ammpl-trials-"))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the one before was stopped or has ended."""
        try:
            self._runner.close()
        except (EOFError, ConnectionError):  # it has died over that: the next trial has not begun
            self._runner = runner(self.warm, self.resources.cpus)
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        if Path(self.directory).is_dir():
            os.chdir(self.directory)
        # A configuration without a trial asks the worker to make itself ready.
        parcel: Parcel | None = config["trial"]
        self._outbox = None
        self._has_trial = parcel is not None
        if parcel is None:
            return
        trial = parcel.trial
        folder = trial.folder(self.study_folder)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)  # of the trial before
            folder = trial.folder(self._scratch)
            folder.mkdir(parents=True)
            write_files(folder, parcel.files)
            if parcel.learnables is not None:
                trial = replace(trial, learnables=self._scratch / "learnables.safetensors")
                write_files(self._scratch, {"learnables.safetensors": parcel.learnables})
            self._outbox = Outbox(folder)
        self._runner.begin(type(self).execute, trial, folder)

    def step(self) -> dict[str, Any]:
        """Run to the next evaluation or the end."""
        # Ray only carries this; its keys are flattened on the way, so the metrics travel as one value.
        news = self._runner.next() if self._has_trial else self._make_ready()
        if self._outbox and not isinstance(news, Ready):
            news = replace(news, files=self._outbox.changes())
        return {"done": not isinstance(news, Evaluation), "news": news}

    def _make_ready(self) -> Ready:
        prepare = type(self).prepare
        return Ready() if prepare is None else self._runner.prepare(prepare)

    def cleanup(self) -> None:
        """Stop what runs."""
        with contextlib.suppress(EOFError, ConnectionError):
            self._runner.close()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return nothing: Ray needs none of it, and would keep the trial and statistics of each number with it."""
        return {}


def worker_class(
    execute: Execute,
    prepare: Callable[[], None] | None,
    folder: Path,
    resources: Resources,
    token: str,
    warm: str | None = None,
) -> type[TrialWorker]:
    """Return the trainable of one study.

    Args:
        execute: what to do with a trial; must be picklable.
        prepare: what to do before the first trial.
        folder: the study's.
        resources: what a trial gets; its CPUs are the threads of each numerical library.
        token: by which a worker finds out whether it sees the folder.
        warm: the address of a process that workers fork from (:mod:`ammpl.study.engine.runner`).
    """
    attributes = {
        "execute": staticmethod(execute),
        "prepare": staticmethod(prepare) if prepare else None,
        "study_folder": folder.absolute(),
        "token": token,
        "directory": str(Path.cwd()),
        "resources": replace(resources, repack=None),  # the driver's own
        "warm": warm,
    }
    return type("StudyWorker", (TrialWorker,), attributes)

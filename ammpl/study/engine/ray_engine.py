"""Ray Tune runs the plan's trials: a searcher hands them out, a scheduler stops them, a trainable does the work.

All phases of a study are one ``Tuner.fit``, so the actors, and the backbone and data they hold, stay warm throughout.
Ray's own storage, loggers and search algorithms are not used: what is decided is decided by the plan, on the
driver, and a worker that dies costs its trial a repetition under the same key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ammpl.study.engine.carried import marked
from ammpl.study.engine.ray_bridge import Bridge
from ammpl.study.engine.ray_worker import Resources, worker_class
from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.trial import INTERRUPTED, Execute, MachineError

VITAL = ("raylet", "gcs_server")
"""Processes of Ray without which nothing runs; of a cluster that was joined they are not this machine's to watch."""
WATCH_SECONDS = 1.0


class _RayGoneError(BaseException):
    """Leaves Tune's loop where its clean-up would ask a process that has died; so it is no Exception."""


class _PlanSearcher(Searcher):  # type: ignore[misc]  # untyped in Ray
    """Hands out the plan's trials. Ray copies and pickles its searcher; the bridge must stay the one it is."""

    def __init__(self, bridge: Bridge | None):
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        assert self._bridge is not None
        return self._bridge.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        assert self._bridge is not None
        if error or result is None or "news" not in result:
            self._bridge.lose(trial_id)
        else:
            self._bridge.complete(trial_id, result["news"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the event log is what a study goes on from."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _PlanSearcher:
        return self

    def __reduce__(self) -> Any:
        return _PlanSearcher, (None,)


class _Silence(tune.ProgressReporter):  # type: ignore[misc]  # untyped in Ray
    """Shows nothing: in a notebook Tune would, whatever its verbosity."""

    def should_report(self, trials: Any, done: bool = False) -> bool:
        return False

    def report(self, trials: Any, done: bool, *sys_info: str) -> None:
        """Nothing: the study has its own view."""


class _PlanScheduler(TrialScheduler):  # type: ignore[misc]  # untyped in Ray
    """Stops a trial when the plan says so. Ray asks it before the searcher, and not on the last result."""

    def __init__(self, bridge: Bridge | None):
        super().__init__()
        self._bridge = bridge
        self._kept = Resources(0)  # how many idle workers of which kind
        self._killed = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: the searcher has just made it."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        assert self._bridge is not None
        return self._bridge.report(trial.trial_id, result["news"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: the searcher hears of it too."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the searcher hears of it too."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: trials are never removed before they run."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave the order to Ray: first come, first served. Called at each of Ray's steps, ten times a second or more.

        Kills workers that cannot be waited for: all at the end on request, one whose trial takes too long.
        """
        assert self._bridge is not None
        if self._bridge.gone is not None:
            raise _RayGoneError
        # Ray keeps at most one idle actor; between phases all of them idle for a moment, and a new one costs seconds.
        kept = self._bridge.resources
        if self._bridge.waits_for_gpu:
            kept = replace(kept, concurrency=0)
        if kept != self._kept:
            tune_controller._actor_cache.decrease_max(self._kept.bundle(self._kept.gpus), self._kept.concurrency)
            tune_controller._actor_cache.increase_max(kept.bundle(kept.gpus), kept.concurrency)
            self._kept = kept
        ending = self._bridge.stopping.is_set()
        if self._killed:
            return
        self._killed = ending  # Ray would let each worker finish its step, which may take minutes
        for trial in tune_controller.get_live_trials():
            actor = trial.temporary_state.ray_actor
            if actor is not None and (ending or self._bridge.has_worker(trial.trial_id)):
                ray.kill(actor)

    def debug_string(self) -> str:
        return "the study's plan"

    def __deepcopy__(self, memo: dict[int, Any]) -> _PlanScheduler:
        return self

    def __reduce__(self) -> Any:
        return _PlanScheduler, (None,)


class _StopOnRequest(tune.Stopper):  # type: ignore[misc]  # untyped in Ray
    """Ends the run at Ray's next step once asked to."""

    def __init__(self, stopping: threading.Event | None):
        self._stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    def __deepcopy__(self, memo: dict[int, Any]) -> _StopOnRequest:
        return self

    def __reduce__(self) -> Any:
        return _StopOnRequest, (None,)


def run_plan(
    start: Callable[[], StudyPlan],
    execute: Execute,
    folder: Path,
    resources: Resources,
    prepare: Callable[[], None] | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = lambda text: None,
    warm: str | None = None,
) -> bool:
    """Run a plan to its end on the connected Ray cluster.

    The first SIGINT or SIGTERM ends it cleanly: running trials are LOST with the reason ``interrupted``.

    Args:
        start: called once, when the first worker is ready; returns the plan.
        execute: what a worker does with a trial; must be picklable.
        folder: the study folder.
        prepare: what each first worker does before it takes a trial; what it raises ends the run and is raised here.
        asked_to_stop: returns whether no more trials are to be handed out; those that run are let end.
        notice: is told what people should know.
        warm: the address of a process that workers fork from.

    Returns:
        Whether the plan ran to its end, rather than being interrupted or stopped.
    """
    bridge = Bridge(start, resources, folder, prepare is not None, asked_to_stop=asked_to_stop, notice=notice)
    with (
        marked(folder) as token,
        tempfile.TemporaryDirectory(prefix="ammpl-tune-", ignore_cleanup_errors=True) as scratch,
        _tune_settings(resources.concurrency),
    ):
        worker = worker_class(execute, prepare, folder, resources, token, warm)
        tuner = tune.Tuner(
            tune.with_resources(worker, _bundle(resources)),
            tune_config=tune.TuneConfig(
                search_alg=_PlanSearcher(bridge),
                scheduler=_PlanScheduler(bridge),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                trial_name_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="study",
                verbose=0,
                progress_reporter=_Silence(),
                stop=_StopOnRequest(bridge.stopping),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        with _first_interrupt(bridge.stopping) as interrupted, _watched(bridge):
            tuner.fit()
    if bridge.crash is not None:
        raise bridge.crash
    completed = not (interrupted.is_set() or bridge.stopped)
    if not completed and bridge.plan is not None:
        bridge.plan.interrupt(INTERRUPTED)
    return completed


def _bundle(resources: Resources) -> Callable[[dict[str, Any]], tune.PlacementGroupFactory]:
    return lambda config: resources.bundle(config["gpus"])


@contextlib.contextmanager
def _first_interrupt(stopping: threading.Event) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into ``stopping``; a second one acts as it did before."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupt(number: int, frame: Any) -> None:
        interrupted.set()
        stopping.set()
        restore()

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield interrupted
    finally:
        restore()


@contextlib.contextmanager
def _watched(bridge: Bridge) -> Iterator[None]:
    """Notice that a process of the Ray on this machine has died without which nothing goes on: Tune would wait."""
    node, over = ray._private.worker._global_node, threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if dead := [name for name, _ in node.dead_processes() if name in VITAL]:
                bridge.gone = MachineError(f"Ray's process {dead[0]} has died")
                return

    watching = threading.Thread(target=watch, daemon=True)
    if node is not None:
        watching.start()
    try:
        yield
    except _RayGoneError:
        assert bridge.gone is not None
        raise bridge.gone from None
    finally:
        over.set()


@contextlib.contextmanager
def _tune_settings(concurrency: int) -> Iterator[None]:
    """Switch off what Tune writes, prints and catches by itself, and let all actors start at once."""
    ours = {
        # By default one after the other; Tune drops an actor that still starts when another one becomes idle, so
        # that with trials shorter than a process's start only one actor would ever work.
        "TUNE_MAX_PENDING_TRIALS_PG": str(concurrency),
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints even at verbosity 0
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    }
    before = {name: os.environ.get(name) for name in ours}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(ours)
    logger.setLevel(logging.CRITICAL)  # a worker that died is an error to Tune, and a repetition to the plan
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

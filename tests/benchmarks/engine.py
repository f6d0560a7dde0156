"""What the engine adds to each trial: trials of no work, 5 reports each, 2 at a time, one local Ray for all runs.

Each figure is a median over interleaved runs, in milliseconds a trial. Both sides are timed alike: from the first
report of the first trial, when the first worker process is there, to the end of the last trial (or until MLflow has
everything); and from call to return, with all starts and ends. Beside wall time stands the CPU time of the driver,
which work elsewhere on the machine stretches less; with MLflow, its writer's is in it, import and new tables included.
Ours has Parquet and the event log switched on; a pruner is asked at each report, and never prunes. Bare Ray Tune is a
class trainable on reused actors without loggers and without a search algorithm.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune

from ammpl.study.engine import ray_engine
from ammpl.study.plan.optuna_search import OptunaSearch
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.study.study import Options, run_study
from ammpl.study.trial import Trial
from tests.benchmarks.record import Record

REPORTS, SLOTS = 5, 2
REPEATS = {100: 5, 500: 3, 2000: 1}
STOCK_TRIALS = 20  # the stack of the documentation takes seconds a trial

PARAMETERS: dict[str, Any] = {
    "model.mask.temperature": {"type": "float", "low": 0.1, "high": 2.0, "log": True},
    "model.padding.depth": {"type": "int", "low": 1, "high": 4},
    "model.interaction.width": {"type": "categorical", "choices": [4, 8, 16, 32]},
    "training.learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
}


def _space(trials: int) -> SearchSpace:
    raw = {"version": 1, "name": "engine", "parameters": PARAMETERS, "budget": {"trials": trials}, "confirm": None}
    return parse_space({**raw, "pruner": {"name": "none"}}, "engine.yaml")  # all trials give all their reports


def _quality(temperature: float, step: int) -> float:
    return (1 - abs(temperature - 0.7) / 2) * (1 - 0.5**step)


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Report five times and do nothing."""
    for step in range(1, REPORTS + 1):
        yield step, {"validation/accuracy": _quality(float(trial.params["model.mask.temperature"]), step)}


@dataclass(frozen=True)
class Cost:
    """What a run took, in seconds or, divided by its trials, in milliseconds a trial.

    Attributes:
        wall: from the first report to the end.
        cpu: of the driver and of processes of its own that ended, in that time.
        whole: wall time from call to return.
    """

    wall: float
    cpu: float
    whole: float


class Watch:
    """Notes the times of a run: its making, the first report, the end of the last trial."""

    def __init__(self) -> None:
        self._made = time.perf_counter()
        self._first: tuple[float, float] | None = None
        self._last = 0.0, 0.0

    def report(self) -> None:
        """Take a report of any trial."""
        self._first = self._first or _now()

    def end(self) -> None:
        """Take the end of any trial, or of something later that belongs to the run."""
        self._last = _now()

    def cost(self) -> Cost:
        """Return the seconds; call it right after the run has returned."""
        assert self._first is not None
        wall, cpu = (end - begin for begin, end in zip(self._first, self._last, strict=True))
        return Cost(wall, cpu, time.perf_counter() - self._made)


def _now() -> tuple[float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # MLflow's writer, once it has ended; Ray's are not ours
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


class _Observer:
    def __init__(self, watch: Watch):
        self._watch = watch

    def trial_started(self, trial: Trial) -> None:
        pass

    def trial_reported(self, *told: object) -> None:
        self._watch.report()

    def trial_finished(self, *told: object) -> None:
        self._watch.end()

    def close(self) -> None:
        pass


def ours(trials: int, tracking: bool = False, watch: Watch | None = None) -> Cost:
    """Run our engine up to the last trial's end; with tracking, until MLflow has everything."""
    watch = watch or Watch()
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        options = Options(Path(folder) / "study", concurrency=SLOTS, tracking=tracking, tracking_uri=uri, quiet=True)
        run_study(_space(trials), options, execute=execute, observers=[_Observer(watch)])
        if tracking:
            watch.end()
        return watch.cost()


class _Bare(tune.Trainable):  # type: ignore[misc]  # untyped in Ray
    def setup(self, config: dict[str, Any]) -> None:
        self._config, self._done = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def step(self) -> dict[str, Any]:
        self._done += 1
        done = self._done == REPORTS
        return {"accuracy": _quality(self._config["temperature"], self._done), "done": done}


class _Callback(tune.Callback):  # type: ignore[misc]  # untyped in Ray
    def __init__(self, watch: Watch):
        self._watch = watch

    def on_trial_result(self, **told: Any) -> None:
        self._watch.report()

    def on_trial_complete(self, **told: Any) -> None:
        self._watch.end()


def _tuner(
    trainable: Any, trials: int, folder: str, callbacks: list[Any], reuse: bool, search: Any, space: Any
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=trials,
            metric="accuracy",
            mode="max",
            max_concurrent_trials=SLOTS,
            reuse_actors=reuse,
            search_alg=search,
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            name="study",
            verbose=0,
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)
            if reuse
            else None,
        ),
    )


def bare(trials: int, watch: Watch | None = None) -> Cost:
    """Run the same trials on Ray Tune alone, its own settings as quiet as ours."""
    watch = watch or Watch()
    with tempfile.TemporaryDirectory() as folder, ray_engine._tune_settings(SLOTS):
        space = {"temperature": tune.uniform(0.1, 2.0)}
        results = _tuner(_Bare, trials, folder, [_Callback(watch)], True, None, space).fit()
    if results.errors:
        raise results.errors[0]
    return watch.cost()


def _function(config: dict[str, Any]) -> None:
    for step in range(1, REPORTS + 1):
        tune.report({"accuracy": _quality(config["temperature"], step)})


def _stock(trials: int) -> Cost:
    """Run the stack as its documentation shows it: function, OptunaSearch, MLflowLoggerCallback."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch as StockSearch

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        logger = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="stock")
        space = {"temperature": tune.uniform(0.1, 2.0)}
        _tuner(_function, trials, folder, [_Callback(watch), logger], False, StockSearch(), space).fit()
    return watch.cost()


def _plain_optuna(trials: int) -> Cost:
    """Run the same search in plain Optuna, two threads, no scheduler, nothing kept."""
    watch, space = Watch(), _space(trials)
    study = OptunaSearch("plain", ["maximize"], space.sampler, space.pruner, seed=0).study

    def objective(trial: optuna.Trial) -> float:
        temperature = float(space.suggest(trial)["model.mask.temperature"])  # type: ignore[arg-type]
        for step in range(1, REPORTS + 1):
            watch.report()
            trial.report(_quality(temperature, step), step)
        return _quality(temperature, REPORTS)

    study.optimize(objective, n_trials=trials, n_jobs=SLOTS)
    watch.end()
    return watch.cost()


def _medians(runs: dict[str, Callable[[int], Cost]], trials: int, repeats: int) -> dict[str, Cost]:
    """Return the median of each, in milliseconds a trial, run in turn so that a busy spell hits all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            costs[name].append(run(trials))

    def median(name: str, what: str) -> float:
        return 1000 * statistics.median(getattr(cost, what) for cost in costs[name]) / trials

    return {name: Cost(median(name, "wall"), median(name, "cpu"), median(name, "whole")) for name in runs}


def connect() -> None:
    """Start Ray, and run a little, so that the first figures have no imports in them."""
    warnings.simplefilter("ignore")
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init("local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    bare(4)


def benchmark() -> Iterator[Record]:
    """Yield time a trial and time added to bare Ray Tune."""
    unit, name = "ms/trial", "engine"
    runs = {"bare": bare, "ours": ours, "mlflow": lambda trials: ours(trials, tracking=True), "optuna": _plain_optuna}
    connect()
    try:
        ours(4)
        for trials, repeats in REPEATS.items():
            ms = _medians(runs, trials, repeats)
            base, what = ms["bare"], f"{trials} trials, median of {repeats}"
            yield Record(name, f"{what}: against bare Ray Tune", ms["ours"].wall, base.wall, unit)
            yield Record(name, f"{what}: the driver's CPU time", ms["ours"].cpu, base.cpu, unit)
            yield Record(name, f"{what}: against plain Optuna, no Ray", ms["ours"].wall, ms["optuna"].wall, unit)
            for key, words in (("ours", "added"), ("mlflow", "added, MLflow's queue drained")):
                yield Record(name, f"{what}: {words}", ms[key].wall - base.wall, None, unit)
                yield Record(name, f"{what}: {words}: CPU", ms[key].cpu - base.cpu, None, unit)
                yield Record(name, f"{what}: {words}: from call to return", ms[key].whole - base.whole, None, unit)
        ends = _medians({"stock": _stock, "ours": runs["mlflow"]}, STOCK_TRIALS, 1)
        case = f"{STOCK_TRIALS} trials, MLflow drained: against the documented stack"
        note = "Ray Tune + OptunaSearch + MLflowLoggerCallback"
        yield Record(name, case, ends["ours"].wall, ends["stock"].wall, unit, note)
    finally:
        ray.shutdown()

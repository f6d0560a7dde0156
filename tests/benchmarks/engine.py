"""What the engine adds to each trial: trials of no work, 5 reports each, 2 at a time, one local Ray for all runs.

Each figure is a median over interleaved runs, in milliseconds of wall time a trial, the start of Ray, of the workers
and of MLflow left out: the clock starts with the first trial handed out. Ours has Parquet, the event log and pruning
switched on. Bare Ray Tune is a class trainable on reused actors without loggers and without a search algorithm.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune

from ammpl.study import ray_engine
from ammpl.study.optuna_search import OptunaSearch
from ammpl.study.space import SearchSpace, parse_space
from ammpl.study.study import Options, run_study
from ammpl.study.trial import Trial
from tests.benchmarks.record import Record

REPORTS, SLOTS, REPEATS = 5, 2, 3
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


class _First:
    """Observer that notes when the first trial began and the last one ended, and nothing else."""

    began: float | None = None
    ended = 0.0

    def trial_started(self, trial: Trial) -> None:
        self.began = self.began or time.perf_counter()

    def trial_reported(self, *told: object) -> None:
        pass

    def trial_finished(self, *told: object) -> None:
        self.ended = time.perf_counter()

    def close(self) -> None:
        pass


def _ours(trials: int, tracking: bool = False) -> float:
    """Return seconds from the first trial to the last one's end; with tracking, until MLflow has everything."""
    first = _First()
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        options = Options(Path(folder) / "study", concurrency=SLOTS, tracking=tracking, tracking_uri=uri, quiet=True)
        run_study(_space(trials), options, execute=execute, observers=[first])
        ended = time.perf_counter() if tracking else first.ended
    assert first.began is not None
    return ended - first.began


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


class _Clock(tune.Callback):  # type: ignore[misc]  # untyped in Ray
    began: float | None = None
    ended = 0.0

    def on_trial_start(self, **told: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_trial_complete(self, **told: Any) -> None:
        self.ended = time.perf_counter()


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


def _bare(trials: int) -> float:
    """Return seconds of the same trials on Ray Tune alone, its own settings as quiet as ours."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, ray_engine._tune_settings(SLOTS):
        space = {"temperature": tune.uniform(0.1, 2.0)}
        results = _tuner(_Bare, trials, folder, [clock], True, None, space).fit()
    if results.errors:
        raise results.errors[0]
    assert clock.began is not None
    return clock.ended - clock.began


def _function(config: dict[str, Any]) -> None:
    for step in range(1, REPORTS + 1):
        tune.report({"accuracy": _quality(config["temperature"], step)})


def _stock(trials: int) -> float:
    """Return seconds of the stack as its documentation shows it: function, OptunaSearch, MLflowLoggerCallback."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch as StockSearch

    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        logger = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="stock")
        space = {"temperature": tune.uniform(0.1, 2.0)}
        _tuner(_function, trials, folder, [clock, logger], False, StockSearch(), space).fit()
    assert clock.began is not None
    return clock.ended - clock.began


def _plain_optuna(trials: int) -> float:
    """Return seconds of the same search in plain Optuna, two threads, no scheduler, nothing kept."""
    space = _space(trials)
    study = OptunaSearch("plain", "maximize", space.sampler, space.pruner, seed=0).study

    def objective(trial: optuna.Trial) -> float:
        temperature = float(space.suggest(trial)["model.mask.temperature"])  # type: ignore[arg-type]
        for step in range(1, REPORTS + 1):
            trial.report(_quality(temperature, step), step)
        return _quality(temperature, REPORTS)

    began = time.perf_counter()
    study.optimize(objective, n_trials=trials, n_jobs=SLOTS)
    return time.perf_counter() - began


def _medians(runs: dict[str, Callable[[], float]], trials: int, repeats: int = REPEATS) -> dict[str, float]:
    """Return the median of each, in milliseconds a trial, run in turn so that a busy spell hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    return {name: 1000 * statistics.median(values) / trials for name, values in seconds.items()}


def benchmark() -> Iterator[Record]:
    """Yield time a trial and time added to bare Ray Tune, at 100 and 500 trials."""
    warnings.simplefilter("ignore")
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    unit, name = "ms/trial", "engine"
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        _bare(4)  # Ray's first workers, imports
        for trials, repeats in ((100, REPEATS), (500, 1)):
            runs: dict[str, Callable[[], float]] = {
                "bare": lambda n=trials: _bare(n),
                "ours": lambda n=trials: _ours(n),
                "mlflow": lambda n=trials: _ours(n, tracking=True),
                "optuna": lambda n=trials: _plain_optuna(n),
            }
            ms = _medians(runs, trials, repeats)
            what = f"{trials} trials, median of {repeats}"
            yield Record(name, f"{what}: against bare Ray Tune", ms["ours"], ms["bare"], unit)
            yield Record(name, f"{what}: added to bare Ray Tune", ms["ours"] - ms["bare"], None, unit)
            yield Record(name, f"{what}: added, MLflow's queue drained", ms["mlflow"] - ms["bare"], None, unit)
            yield Record(name, f"{what}: against plain Optuna, no Ray", ms["ours"], ms["optuna"], unit)
        stock = _medians({"stock": lambda: _stock(STOCK_TRIALS), "ours": lambda: _ours(STOCK_TRIALS, True)}, 20, 1)
        case = f"{STOCK_TRIALS} trials, MLflow drained: against the documented stack"
        yield Record(name, case, stock["ours"], stock["stock"], unit, "Ray Tune + OptunaSearch + MLflowLoggerCallback")
    finally:
        ray.shutdown()

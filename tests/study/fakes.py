"""Stand-ins for training: deterministic curves in microseconds, and a plain loop instead of Ray."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna

from ammpl.config import Scalar
from ammpl.study.engine.worker import Attempt, End
from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.record.event_log import FILE
from ammpl.study.space.ablation_space import AblationSpace, parse_ablation
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.study.trial import Execute, Outcome, State, Trial

TEMPERATURE, DEPTH, WIDTH = "model.mask.temperature", "model.padding.depth", "model.interaction.width"
MULTIPLIER = "training.mask_lr_multiplier"
EVALUATIONS = 8


def small_space(**changes: Any) -> SearchSpace:
    """A space over four kinds of parameter, one of them conditional on another."""
    raw: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "fixed": {"model.mask.scope": "task", "training.steps": 60},
        "parameters": {
            TEMPERATURE: {"type": "float", "low": 0.1, "high": 2.0, "log": True},
            DEPTH: {"type": "int", "low": 1, "high": 4},
            WIDTH: {"type": "categorical", "choices": [4, 8, 16]},
            MULTIPLIER: {"type": "float", "low": 5, "high": 50, "when": {WIDTH: [8, 16]}},
        },
        "sampler": {"name": "tpe", "startup_trials": 5},
        "pruner": {"name": "median", "startup_trials": 3},
        "budget": {"trials": 12},
    }
    return parse_space({**raw, **changes}, "small.yaml")


def accuracy(params: Mapping[str, Scalar], step: int, repeat: int = 1) -> float:
    """A made-up validation curve with an optimum, a slope and something that looks like noise."""
    temperature, depth = float(params.get(TEMPERATURE, 1.0)), int(params.get(DEPTH, 1))
    quality = 0.9 - 0.1 * abs(math.log(temperature / 0.5)) - 0.03 * abs(depth - 2) + 0.002 * int(params.get(WIDTH, 4))
    noise = math.sin(1000.0 * temperature + 37.0 * step + 11.0 * depth + 5.0 * repeat)
    return quality * (1 - math.exp(-step / 25)) + 0.05 * noise


def fails(params: Mapping[str, Scalar]) -> bool:
    """Some configurations cannot be trained."""
    return params.get(DEPTH) == 4 and params.get(WIDTH) == 16


def execute(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Pretend to train, or to test from what training left."""
    if trial.phase == "test":
        if trial.learnables is not None and not trial.learnables.is_file():
            raise FileNotFoundError(trial.learnables)
        yield 0, {"test/accuracy": accuracy(trial.params, 60, trial.repeat) - 0.01}
        return
    for index in range(1, EVALUATIONS + 1):
        step = 10 * index
        if index == 3 and fails(trial.params):
            raise RuntimeError(f"loss is nan at step {step}")
        value = accuracy(trial.params, step, trial.repeat)
        yield step, {"validation/accuracy": value, "train/loss": 1 - value, "mask/keep_rate": 0.9}
    (folder / "learnables.safetensors").write_bytes(b"")


def objective(space: SearchSpace) -> Any:
    """The same trial as Optuna's documentation would have it, for ``study.optimize``."""

    def run(trial: optuna.Trial) -> float:
        params = space.suggest(trial)
        value = math.nan
        for index in range(1, EVALUATIONS + 1):
            step = 10 * index
            if index == 3 and fails(params):
                raise RuntimeError(f"loss is nan at step {step}")
            value = accuracy(params, step)
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    return run


def run_inline(plan: StudyPlan, folder: Path, execute: Execute = execute) -> None:
    """Run a plan one trial after the other, in this process; first what had begun before."""
    begun = plan.running
    while isinstance(trial := begun.pop(0) if begun else plan.next(), Trial):
        attempt = Attempt(execute, trial, trial.folder(folder))
        while not isinstance(news := attempt.next(), End):
            if plan.report(trial, news.step, news.metrics, news.seconds):
                break
        attempt.close()
        if isinstance(news, End) and news.failure:
            plan.finish(trial, news.seconds, state=State.FAILED, reason=news.failure)
        else:
            plan.finish(trial, news.seconds)
    assert trial is not None, "a plan that waits with nothing running would wait for ever"


class Recorder:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.started: list[Trial] = []
        self.curves: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.closed = False

    def trial_started(self, trial: Trial) -> None:
        self.started.append(trial)
        self.curves[trial.key] = []

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        self.curves[trial.key].append((step, dict(metrics)))

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes[trial.key] = outcome

    def close(self) -> None:
        self.closed = True


class Pipe:
    """In place of a writer's process: keeps what the driver sends, for a test to hand it to a store as it likes."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, event: dict[str, Any]) -> None:
        self.sent.append(event)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    """What two Optuna studies must agree on, trial by trial."""
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.distributions)
        for t in study.get_trials(deepcopy=False)
    ]


PRUNERS: dict[str, tuple[dict[str, Any], Callable[[], optuna.pruners.BasePruner]]] = {
    "none": ({"name": "none"}, optuna.pruners.NopPruner),
    "median": ({"name": "median", "startup_trials": 3}, lambda: optuna.pruners.MedianPruner(n_startup_trials=3)),
    "percentile": (
        {"name": "percentile", "percentile": 30.0, "startup_trials": 3, "warmup_steps": 20},
        lambda: optuna.pruners.PercentilePruner(30.0, n_startup_trials=3, n_warmup_steps=20),
    ),
    "successive_halving": (
        {"name": "successive_halving", "min_resource": 10, "reduction_factor": 2},
        lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=2),
    ),
    "threshold": (
        {"name": "threshold", "lower": 0.2, "interval_steps": 20},
        lambda: optuna.pruners.ThresholdPruner(lower=0.2, interval_steps=20),
    ),
    "hyperband": (
        {"name": "hyperband", "min_resource": 10},
        lambda: optuna.pruners.HyperbandPruner(min_resource=10),
    ),
    "wilcoxon": (
        {"name": "wilcoxon", "p_threshold": 0.2},
        lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.2),
    ),
    "patient": (
        {"name": "patient", "patience": 1, "inner": {"name": "median", "startup_trials": 3}},
        lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=3), patience=1),
    ),
}
"""By name: the space file's section, and what Optuna's user would write (anew for each study: Hyperband has state)."""


SAMPLERS: dict[str, tuple[dict[str, Any], Callable[[int], optuna.samplers.BaseSampler]]] = {
    "tpe": (
        {"name": "tpe", "startup_trials": 5},
        lambda seed: optuna.samplers.TPESampler(
            n_startup_trials=5, multivariate=True, constant_liar=True, warn_independent_sampling=False, seed=seed
        ),
    ),
    "random": ({"name": "random"}, lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "grid": ({"name": "grid"}, lambda seed: optuna.samplers.BruteForceSampler(seed=seed)),
    "qmc": ({"name": "qmc"}, lambda seed: optuna.samplers.QMCSampler(scramble=True, seed=seed)),
    "gp": (
        {"name": "gp", "startup_trials": 6},
        lambda seed: optuna.samplers.GPSampler(n_startup_trials=6, seed=seed),
    ),
    "cmaes": (
        {"name": "cmaes", "population_size": 5},
        lambda seed: optuna.samplers.CmaEsSampler(popsize=5, seed=seed),
    ),
    "nsga2": (
        {"name": "nsga2", "population_size": 6},
        lambda seed: optuna.samplers.NSGAIISampler(population_size=6, seed=seed),
    ),
}
"""By name: the space file's section, and what Optuna's user would write, given the seed."""


def optimized(space: SearchSpace, pruner: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """The study that plain Optuna makes of the search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        study_name=space.name, direction="maximize", sampler=sampler, pruner=PRUNERS[pruner][1]()
    )
    study.optimize(objective(space), n_trials=space.budget.trials, catch=(RuntimeError,))
    return study


KIND, RATE = "model.mask.kind", "model.mask.keep_rate"

ABLATION: dict[str, Any] = {
    "version": 1,
    "kind": "ablation",
    "name": "masks",
    "fixed": {"model.mask.scope": "task", "training.steps": 30},
    "reference": "learned",
    "variants": {"none": {KIND: "none"}, "random": {KIND: "random", RATE: 0.5}, "learned": {}},
    "repeats": [1, 2, 3],
}
"""The space file of an ablation of masks, as plain data."""


def ablation_space(**changes: Any) -> AblationSpace:
    """Return that space, with other keys."""
    return parse_ablation({**ABLATION, **changes}, "masks.yaml")


def log_to_change(folder: Path) -> str:
    """Return a study's log as an earlier version wrote it: lines that a test changes, not their checksums."""
    return re.sub(',"chain":"[0-9a-f]{16}"', "", (folder / FILE).read_text(encoding="utf-8"))

"""A study read back from its folder: what ran, what was measured, what was selected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ammpl.config import Scalar
from ammpl.report.statistics import Values
from ammpl.study.plan.base_plan import TEST_METRICS
from ammpl.study.plan.replay import beyond_log, check_study, read_present_space
from ammpl.study.record.event_log import FILE, Event, Line, read_history
from ammpl.study.result.labels import params_text
from ammpl.study.result.statistics import Estimate, estimate
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.search_space import Objective
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Direction, Phase, State


@dataclass(frozen=True)
class TrialResult:
    """A trial as the log has it.

    Attributes:
        config: the complete configuration by dotted name, seeds included.
        params: the searched parameters, or what the variants set.
        state: None while it has not ended.
        curve: (step, metrics) of each evaluation.
    """

    key: str
    phase: Phase
    candidate: str
    number: int | None
    repeat: int
    config: Mapping[str, Scalar]
    params: Mapping[str, Scalar]
    state: State | None = None
    value: float | None = None
    step: int | None = None
    reason: str | None = None
    duplicate_of: str | None = None
    seconds: float = 0.0
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        """Those of the last evaluation."""
        return self.curve[-1][1] if self.curve else {}

    @property
    def setting(self) -> tuple[str, int]:
        """The data set and the shots."""
        return str(self.config["data.name"]), int(self.config["data.shots"] or 0)

    @property
    def tip(self) -> str:
        """What a figure tells of it, a line each."""
        lines = [self.key, params_text(self.params), f"{self.state or 'not ended'} at step {self.step}"]
        if self.value is not None:
            lines.insert(2, f"{self.value:.4f}")
        return "\n".join(filter(None, lines))


@dataclass(frozen=True)
class Row:
    """A candidate that is compared: the winner, another finalist, a baseline, or a variant.

    Attributes:
        label: how tables call it.
        tuned: whether its hyperparameters were searched in this study; None where nothing was.
        measured: by metric and shots, the value of each (data set, repeat).
    """

    candidate: str
    label: str
    method: str
    tuned: bool | None
    params: Mapping[str, Scalar]
    measured: Mapping[str, Mapping[int, Values]]

    def values(self, metric: str, shots: int, data_set: str | None = None) -> Values:
        """Return the values of a metric at one number of shots, of all data sets or one; empty where there "
        "are none."""
        found = self.measured.get(metric, {}).get(shots, {})
        return found if data_set is None else {key: value for key, value in found.items() if key[0] == data_set}


@dataclass(frozen=True)
class StudyResult:
    """A study.

    Attributes:
        summary: ``summary.json``, empty for a study that did not come to its end.
        environments: one a session.
        test_openings: how often the test split was opened for new results: each time that tests began after something
            else had run.
        seconds: wall time of all sessions.
    """

    folder: Path
    space: StudySpace
    summary: Mapping[str, Any]
    environments: tuple[Mapping[str, Any], ...]
    trials: tuple[TrialResult, ...]
    test_openings: int
    seconds: float
    has_ended: bool

    @property
    def name(self) -> str:
        """The folder's, which tells studies of one space apart."""
        return self.folder.resolve().name

    @property
    def direction(self) -> Direction:
        """Of the objective."""
        return self.space.objective.direction

    @property
    def reference(self) -> str | None:
        """The candidate that the others are compared with: an ablation's reference, a search's winner."""
        return self.space.reference if isinstance(self.space, AblationSpace) else self.summary.get("winner")

    def of_phase(self, *phases: Phase) -> list[TrialResult]:
        """Return the trials of some phases, in the order in which they began."""
        return [trial for trial in self.trials if trial.phase in phases]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What is compared, the reference first in a search, in the order of the file in an ablation."""
        phase: Phase = "ablation" if isinstance(self.space, AblationSpace) else "confirm"
        trained = [trial for trial in self.of_phase(phase) if trial.state is State.COMPLETE]
        tested = [trial for trial in self.of_phase("test") if trial.state is State.COMPLETE]
        candidates = list(dict.fromkeys(trial.candidate for trial in trained))
        if isinstance(self.space, AblationSpace):
            candidates.sort(key=list(self.space.variants).index)
        else:
            candidates.sort(key=lambda candidate: candidate != self.reference)
        return tuple(self._row(candidate, trained, tested) for candidate in candidates)

    @cached_property
    def searched(self) -> tuple[TrialResult, ...]:
        """The search's configurations, a trial each: of several repeats the mean value, complete if all are."""
        by_number: dict[int, list[TrialResult]] = {}
        for trial in self.of_phase("search"):
            by_number.setdefault(trial.number or 0, []).append(trial)
        return tuple(self._configuration(trials) for _, trials in sorted(by_number.items()))

    @property
    def objectives(self) -> list[Objective]:
        """One, or of a trade-off two."""
        second = None if isinstance(self.space, AblationSpace) else self.space.second_objective
        return [self.space.objective, *([second] if second else [])]

    def _configuration(self, trials: list[TrialResult]) -> TrialResult:
        if len(self.space.repeats) == 1:
            return trials[0]
        values = [trial.value for trial in trials if trial.value is not None]
        states = [trial.state for trial in trials]
        whole = len(values) == len(self.space.repeats) and set(states) == {State.COMPLETE}
        ended = next((state for state in states if state is not State.COMPLETE), State.COMPLETE if whole else None)
        seconds = sum(trial.seconds for trial in trials)
        value = math.fsum(values) / len(values) if values else None
        names = set.intersection(*(set(trial.metrics) for trial in trials))
        means = {name: math.fsum(trial.metrics[name] for trial in trials) / len(trials) for name in names}
        key, curve = f"search-{trials[0].number:04d}", ((trials[-1].step or 0, means),)
        return replace(trials[-1], key=key, state=ended, value=value, seconds=seconds, curve=curve)

    def over_repeats(self, number: int | None, metric: str) -> Estimate | None:
        """Return the mean of a metric over a configuration's repeats in the search; None where one has no value."""
        trials = [trial for trial in self.of_phase("search") if trial.number == number]
        values = [trial.metrics[metric] for trial in trials if math.isfinite(trial.metrics.get(metric, math.nan))]
        return estimate(values) if values and len(values) == len(trials) else None

    @property
    def metrics(self) -> list[str]:
        """Accuracies of the rows: what the answer is about first, then the others; validation before test."""
        found = {metric for row in self.rows for metric in row.measured}
        return sorted(found, key=lambda metric: (metric != self.main_metric, metric.startswith("test/"), metric))

    @property
    def main_metric(self) -> str:
        """What the answer is about: the test metric where the test split was opened, else the objective."""
        found = {metric for row in self.rows for metric in row.measured}
        return next((metric for metric in TEST_METRICS if metric in found), self.space.objective.metric)

    @property
    def shots(self) -> list[int]:
        """The numbers of shots that the rows were run with."""
        return sorted({shots for row in self.rows for by_shots in row.measured.values() for shots in by_shots})

    @property
    def data_sets(self) -> list[str]:
        """The data sets that trials ran on."""
        return list(dict.fromkeys(trial.setting[0] for trial in self.trials))

    def of_candidate(self, candidate: str, *phases: Phase) -> list[TrialResult]:
        """Return a candidate's trials of some phases."""
        return [trial for trial in self.of_phase(*phases) if trial.candidate == candidate]

    def _row(self, candidate: str, trained: Iterable[TrialResult], tested: Iterable[TrialResult]) -> Row:
        measured: dict[str, dict[int, dict[tuple[str, int], float]]] = {}
        own = [trial for trial in trained if trial.candidate == candidate]
        for prefix, trials in (("validation/", own), ("test/", [t for t in tested if t.candidate == candidate])):
            for trial in trials:
                data_set, shots = trial.setting
                for metric, value in trial.metrics.items():
                    wanted = metric == self.space.objective.metric or not metric.endswith("loss")
                    if wanted and metric.startswith(prefix) and math.isfinite(value):
                        measured.setdefault(metric, {}).setdefault(shots, {})[data_set, trial.repeat] = value
        first, tuned = own[0], None
        method = str(first.config["method"])
        if isinstance(self.space, AblationSpace):
            methods = {trial.config["method"] for trial in self.trials} - {"zero_shot"}
            tuned = False if len(methods) > 1 and method != "zero_shot" else None
            words = ["reference"] * (candidate == self.reference) + ["untuned"] * (tuned is False)
            label = candidate + (f" ({', '.join(words)})" if words else "")
        elif first.params:
            label, tuned = f"{method}, trial {candidate}", True
            label += " (winner)" if candidate == self.reference else " (finalist)"
        else:
            tuned = False if method != "zero_shot" else None
            label = method if tuned is None else f"{method} (untuned)"
        return Row(candidate, label, method, tuned, first.params, measured)


def read_study(folder: Path) -> StudyResult:
    """Read a study's folder; the log is the truth, so that one that still runs, or died, is read too.

    Raises:
        UserError: it is no study's folder, or a file of it cannot be read.
    """
    check_study(folder)
    history = read_history(folder / FILE)
    space = read_present_space(folder, history)
    summary = _json(folder / "summary.json")
    if lacking := beyond_log(folder, history.states):
        summary = {**summary, "notes": [*summary.get("notes", ()), lacking]}
    environments = [folder / "environment.json", *sorted(folder.glob("environment-*.json"))]
    return StudyResult(
        folder,
        space,
        summary,
        tuple(filter(None, map(_json, environments))),
        tuple(_trials(history.told)),
        _openings(history.told),
        history.seconds,
        history.has_ended,
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Return nested settings by dotted name."""
    found: dict[str, Scalar] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _openings(lines: Iterable[Line]) -> int:
    """Count the looks at the test split: one for each winner of a search, or version of an ablation, with tests."""
    looks: set[object] = set()
    version, searched = 1, False
    for line in lines:
        event = line.event
        if event["event"] == "extended":
            version += 1
        elif event["event"] == "started":
            searched = searched or event["phase"] == "search"
            if event["phase"] == "test" and not searched:
                looks.add(version)
            elif event["phase"] == "test" and (event["params"] or not looks):
                looks.add(event["candidate"])
    return len(looks)


def _trials(lines: Iterable[Line]) -> Iterable[TrialResult]:
    begun: dict[str, Event] = {}
    curves: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    ended: dict[str, Event] = {}
    for line in lines:
        event = line.event
        if "key" not in event:
            continue
        key = event["key"]
        if event["event"] == "started":
            begun[key], curves[key] = event, []
        elif event["event"] == "reported":
            curves[key].append((event["step"], {name: float(value) for name, value in event["metrics"].items()}))
        else:
            ended[key] = event
    for key, event in begun.items():
        end, curve = ended.get(key, {}), tuple(curves[key])
        value = end.get("value")
        yield TrialResult(
            key=key,
            phase=event["phase"],
            candidate=event["candidate"],
            number=event["number"],
            repeat=event["repeat"],
            config=flat(event["config"]),
            params=event["params"],
            state=State(end["state"]) if end else None,
            value=None if value is None else float(value),
            step=end.get("step", curve[-1][0] if curve else None),
            reason=end.get("reason"),
            duplicate_of=end.get("duplicate_of"),
            seconds=end.get("seconds", 0.0),
            curve=curve,
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

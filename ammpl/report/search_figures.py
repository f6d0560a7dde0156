"""Figures of a search: how it went, which parameters matter, how they go together, what the pruner stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ammpl.config import Scalar
from ammpl.report.figures import GREY, WIDTH, Figure, color, draw, scaled, shade
from ammpl.report.results import TrialResult
from ammpl.study.result.labels import short_names, value_text
from ammpl.study.result.statistics import Estimate
from ammpl.study.space.parameters import Parameter
from ammpl.study.space.search_space import Objective
from ammpl.study.trial import Direction, State

Estimates = Callable[[int | None, str], Estimate | None]
"""A configuration's mean of a metric, by number."""


@dataclass(frozen=True)
class Point:
    """A configuration in a trade-off of two metrics."""

    trial: TrialResult
    first: Estimate
    second: Estimate


def history(metric: str, trials: Sequence[TrialResult], direction: Direction) -> Figure:
    """Draw each trial's last value by its number, and the best complete one so far."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        best: list[float] = []
        for trial in trials:
            if trial.value is None or not math.isfinite(trial.value):
                continue
            marker, tone = ("o", color(0)) if trial.state is State.COMPLETE else ("x", GREY)
            (dot,) = axes.plot([trial.number or 0], [trial.value], marker, color=tone, markersize=5)
            figure.mark(dot, trial.key, trial.tip)
        for trial in trials:
            known = [best[-1]] if best else []
            if trial.state is State.COMPLETE and trial.value is not None:
                known.append(trial.value)
            best.append((max if direction == "maximize" else min)(known) if known else math.nan)
        axes.step([t.number or 0 for t in trials], best, where="post", color=color(1), label="best complete so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel(metric)
        axes.legend(loc="best")

    caption = (
        "Dots are complete trials, crosses were pruned or failed at their last value. The best is a lucky draw until "
        "confirmed."
    )
    return draw("history", "The search, trial by trial", caption, paint)


def importance(weights: Mapping[str, Mapping[str, float]], trials: int) -> Figure:
    """Draw parameters' importance by several evaluators."""
    names = list(next(iter(weights.values())))
    short = short_names(names)

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        height = 0.8 / len(weights)
        for index, (evaluator, found) in enumerate(weights.items()):
            for place, name in enumerate(names):
                at = place + (index - (len(weights) - 1) / 2) * height
                (bar,) = axes.barh(at, found.get(name, 0.0), height * 0.92, color=color(index))
                if place == 0:
                    bar.set_label(evaluator)
                figure.mark(bar, f"parameter {name}", f"{name}\n{evaluator}: {found.get(name, 0.0):.3f}")
        axes.set_yticks(range(len(names)), [short[name] for name in names])
        axes.invert_yaxis()
        axes.set_xlabel("share of importance")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right")

    caption = (
        f"From {trials} complete trials. fANOVA: the share of the objective's variance over the space; PED-ANOVA: "
        "what tells the best trials from the others. With few trials both are rough."
    )
    return draw("importance", "Which parameters matter", caption, paint, (WIDTH, 1.2 + 0.42 * len(names)))


def parallel(metric: str, trials: Sequence[TrialResult], parameters: Mapping[str, Parameter]) -> Figure:
    """Draw each complete trial as a line through its parameters to its value."""
    short = short_names(parameters)
    values = [trial.value or 0.0 for trial in trials]
    quality = scaled(values)

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        for place, (name, parameter) in enumerate(parameters.items()):
            axes.plot([place, place], [0, 1], color="#5f6570", linewidth=1)
            for at, text in _ticks(parameter):
                axes.annotate(text, (place, at), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center")
            axes.annotate(short[name].replace("_", "\n", 1), (place, 1.05), fontsize=8, ha="center", va="bottom")
        last = len(parameters)
        axes.plot([last, last], [0, 1], color="#5f6570", linewidth=1)
        axes.annotate(metric.replace("/", "\n", 1), (last, 1.05), fontsize=8, ha="center", va="bottom", weight="bold")
        for at, text in ((0, f"{min(values):.3f}"), (1, f"{max(values):.3f}")):
            axes.annotate(text, (last, at), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center")
        for trial in sorted(trials, key=lambda trial: trial.value or 0.0):
            there = [(x, _place(p, trial.params.get(name))) for x, (name, p) in enumerate(parameters.items())]
            line = [(float(x), y) for x, y in there if y is not None]
            line.append((float(last), quality(trial.value or 0.0)))
            (drawn,) = axes.plot(*zip(*line, strict=True), color=shade(quality(trial.value or 0.0)), linewidth=1.3)
            figure.mark(drawn, trial.key, trial.tip)
        axes.set_xlim(-0.2, last + 0.45)
        axes.set_ylim(-0.06, 1.28)
        axes.axis("off")

    caption = "A line a complete trial, yellow is high; logarithmic parameters are drawn so."
    return draw("parallel", "Parameters together", caption, paint, (WIDTH, 3.4))


def slices(
    metrics: Sequence[str], trials: Sequence[TrialResult], parameters: Mapping[str, Parameter], estimate: Estimates
) -> Figure:
    """Draw the objective, or both, against each parameter alone; with several repeats their 95 % intervals."""
    short, columns = short_names(parameters), min(3, len(parameters))
    lines = math.ceil(len(parameters) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.drawing.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(parameters) :]:
            axes.set_axis_off()
        for axes, (name, parameter) in zip(grid.flat, parameters.items(), strict=False):
            for index, metric in enumerate(metrics):
                _slice(figure, axes, name, parameter, metric, trials, estimate, color(index))
            axes.set_xlabel(short[name])
        for axes in grid[:, 0]:
            axes.set_ylabel(" and ".join(metrics) if len(metrics) < 2 else "accuracy")
        if len(metrics) > 1:
            for index, metric in enumerate(metrics):
                grid[0, 0].plot([], [], "o", color=color(index), label=metric)
            grid[0, 0].legend(loc="best")

    caption = "A dot a complete configuration; what looks like a trend may be another parameter's."
    return draw("slices", "One parameter at a time", caption, paint, (WIDTH, 0.4 + 2.1 * lines))


def curves(metric: str, trials: Sequence[TrialResult], *, several: bool = False) -> Figure:
    """Draw the objective's curve of every trial, those that the pruner stopped in another colour."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        for trial in trials:
            points = [(step, metrics[metric]) for step, metrics in trial.curve if metric in metrics]
            if not points:
                continue
            stopped = trial.state is State.PRUNED
            tone = color(1) if stopped else color(0) if trial.state is State.COMPLETE else GREY
            (line,) = axes.plot(
                *zip(*points, strict=True), color=tone, linewidth=1, alpha=0.75, marker="o", markersize=2.5
            )
            figure.mark(line, trial.key, trial.tip)
            if stopped:
                axes.plot([points[-1][0]], [points[-1][1]], marker="x", color=tone, markersize=6)
        for tone, text in ((color(0), "complete"), (color(1), "pruned"), (GREY, "failed or lost")):
            axes.plot([], [], color=tone, label=text)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(metric)
        axes.legend(loc="lower right")

    told = "after which repeat" if several else "where"
    caption = f"A cross is {told} the pruner stopped a trial; stopped curves should lie below the others there."
    return draw("curves", "Training curves and pruning", caption, paint)


def pareto(first: Objective, second: Objective, points: Sequence[Point]) -> Figure:
    """Draw two metrics of every complete trial; those that no other beats in both are joined."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        front = {point.trial.key for point in pareto_front(first, second, points)}
        edge = sorted((p.first.mean, p.second.mean) for p in points if p.trial.key in front)
        axes.plot([x for x, _ in edge], [y for _, y in edge], color=color(1), linewidth=1.2, label="Pareto front")
        for point in points:
            x, y = point.first, point.second
            tone = color(1) if point.trial.key in front else color(0)
            if x.low is not None and x.high is not None and y.low is not None and y.high is not None:
                axes.plot([x.low, x.high], [y.mean, y.mean], color=tone, linewidth=0.7, alpha=0.5)
                axes.plot([x.mean, x.mean], [y.low, y.high], color=tone, linewidth=0.7, alpha=0.5)
            (dot,) = axes.plot([x.mean], [y.mean], "o", color=tone, markersize=5)
            tip = f"{point.trial.tip}\n{first.metric} {x.mean:.4f}\n{second.metric} {y.mean:.4f}, n = {x.n}"
            figure.mark(dot, point.trial.key, tip)
        axes.set_xlabel(first.metric)
        axes.set_ylabel(second.metric)
        axes.legend(loc="best")

    caption = (
        "A dot a complete configuration, with 95 % t-intervals where it has several repeats; no other one is "
        "at least as "
        "good in both as one on the front. Near the front chance decides who is on it."
    )
    return draw("pareto", f"{first.metric} against {second.metric}", caption, paint)


def pareto_front(first: Objective, second: Objective, points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one dominates: at least as good in both means, better in one."""

    def good(point: Point) -> tuple[float, float]:
        signs = [1 if objective.direction == "maximize" else -1 for objective in (first, second)]
        return signs[0] * point.first.mean, signs[1] * point.second.mean

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] >= other[0] and one[1] >= other[1]

    return [point for point in points if not any(beats(good(other), good(point)) for other in points)]


def _slice(
    figure: Figure,
    axes: Axes,
    name: str,
    parameter: Parameter,
    metric: str,
    trials: Sequence[TrialResult],
    estimate: Estimates,
    tone: str,
) -> None:
    choices = _choices(parameter)
    for trial in trials:
        found = estimate(trial.number, metric)
        if name not in trial.params or found is None:
            continue
        value = trial.params[name]
        x = choices.index(json.dumps(value)) if choices else float(str(value))
        if found.low is not None and found.high is not None:
            axes.plot([x, x], [found.low, found.high], color=tone, linewidth=0.7, alpha=0.4)
        (dot,) = axes.plot([x], [found.mean], "o", color=tone, markersize=4.5, alpha=0.8)
        figure.mark(dot, trial.key, f"{trial.tip}\n{metric} {found.mean:.4f}, n = {found.n}")
    if choices:
        axes.set_xticks(range(len(choices)), [value_text(json.loads(choice)) for choice in choices])
    elif getattr(parameter, "log", False):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _choices(parameter: Parameter) -> list[str]:
    """Return the values of a categorical parameter as JSON, of which 1 and true differ; none for a number."""
    return [json.dumps(value) for value in getattr(parameter, "choices", ())]


def _place(parameter: Parameter, value: Scalar) -> float | None:
    """Return where a value stands between a parameter's ends, 0 to 1; None without a value."""
    if choices := _choices(parameter):
        if json.dumps(value) not in choices:
            return None
        return choices.index(json.dumps(value)) / max(1, len(choices) - 1)
    if not isinstance(value, int | float):
        return None
    low, high = (float(str(end)) for end in (parameter.extremes()[0], parameter.extremes()[-1]))
    if getattr(parameter, "log", False):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return 0.5 if low == high else (value - low) / (high - low)


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if choices := _choices(parameter):
        return [(i / max(1, len(choices) - 1), value_text(json.loads(c))) for i, c in enumerate(choices)]
    return [(0, value_text(parameter.extremes()[0])), (1, value_text(parameter.extremes()[-1]))]

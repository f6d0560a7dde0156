"""Figures of candidates compared: differences, repeats, shots, base against new classes, ranks over data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from ammpl.report.figures import GREY, WIDTH, Figure, color, draw
from ammpl.report.results import Row
from ammpl.report.statistics import Comparison, Ranks, Values, summarize
from ammpl.study.trial import Direction


def forest(
    name: str,
    metric: str,
    labels: Mapping[str, str],
    reference: str,
    comparisons: Sequence[Comparison],
    smallest: float | None,
    direction: Direction,
) -> Figure:
    """Draw each candidate's difference to the reference with its 95 % interval."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        axes.axvline(0, color="#5f6570", linewidth=1)
        if smallest is not None:
            at = -smallest if direction == "maximize" else smallest
            axes.axvline(at, color=color(1), linewidth=1, linestyle=(0, (4, 3)))
        for place, found in enumerate(comparisons):
            d = found.difference
            low, high = (d.mean, d.mean) if d.low is None or d.high is None else (d.low, d.high)
            text = f"{labels[found.name]} − {reference}: {d.mean:+.4f}\n"
            text += f"95 % interval {low:+.4f} to {high:+.4f}\nn = {d.n} {found.unit}"
            (line,) = axes.plot([low, high], [place, place], color=color(0), linewidth=2.2, solid_capstyle="butt")
            (dot,) = axes.plot([d.mean], [place], marker="o", markersize=6.5, color=color(0))
            figure.mark(line, found.name, text)
            figure.mark(dot, found.name, text)
        axes.set_yticks(range(len(comparisons)), [labels[found.name] for found in comparisons])
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.set_xlabel(f"{metric}: difference to {reference}")
        axes.grid(axis="y", visible=False)

    beyond = "" if smallest is None else f" The dashed line is the smallest effect of interest, {smallest:g}."
    unit = comparisons[0].unit if comparisons else "repeats"
    caption = f"Mean paired difference and its 95 % t-interval over {unit}.{beyond}"
    title = f"Differences to {reference}, {metric}"
    return draw(name, title, caption, paint, (WIDTH, 1.1 + 0.36 * len(comparisons)))


def repeats(name: str, metric: str, candidates: Sequence[Row], shots: int) -> Figure:
    """Draw every repeat of every candidate, those of one repeat joined."""
    rows = [row for row in candidates if row.values(metric, shots)]
    measured = [row.values(metric, shots) for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        for instance in sorted({instance for values in measured for instance in values}):
            there = [(place, values[instance]) for place, values in enumerate(measured) if instance in values]
            axes.plot([x for x, _ in there], [y for _, y in there], color="#d4d8de", linewidth=0.8, zorder=1)
        for place, (row, values) in enumerate(zip(rows, measured, strict=True)):
            for (data_set, repeat), value in sorted(values.items()):
                (dot,) = axes.plot([place], [value], marker="o", markersize=4, color=color(0), alpha=0.6)
                figure.mark(dot, row.candidate, f"{row.label}\n{data_set}, repeat {repeat}: {value:.4f}")
            found = summarize(values)
            (line,) = axes.plot([place - 0.22, place + 0.22], [found.mean] * 2, color=color(1), linewidth=2.4)
            figure.mark(line, row.candidate, f"{row.label}\nmean {found.mean:.4f}, n = {found.n}")
        axes.set_xticks(range(len(rows)), [_wrapped(row.label) for row in rows])
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_ylabel(metric)
        axes.grid(axis="x", visible=False)

    caption = "A dot a repeat, grey lines join those on the same few-shot sample; orange bars are means."
    return draw(name, f"Every repeat, {metric}", caption, paint)


def by_shots(name: str, metric: str, rows: Sequence[Row], shots: Sequence[int]) -> Figure:
    """Draw mean accuracy against the number of shots, with 95 % intervals."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        for index, row in enumerate(rows):
            there = [(k, summarize(values)) for k in shots if (values := row.values(metric, k))]
            if not there:
                continue
            axes.plot([k for k, _ in there], [e.mean for _, e in there], color=color(index), label=row.label)
            for k, found in there:
                low = found.mean if found.low is None else found.low
                high = found.mean if found.high is None else found.high
                axes.plot([k, k], [low, high], color=color(index), linewidth=1)
                (dot,) = axes.plot([k], [found.mean], marker="o", markersize=5, color=color(index))
                tip = f"{row.label}, {k} shots\n{found.mean:.4f} [{low:.4f}, {high:.4f}], n = {found.n}"
                figure.mark(dot, row.candidate, tip)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(list(shots)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("shots")
        axes.set_ylabel(metric)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    caption = "Means with 95 % t-intervals, over repeats on one data set, over data sets on several."
    return draw(name, f"{metric} against shots", caption, paint)


def base_and_new(name: str, rows: Sequence[Row], base: Mapping[str, Values], new: Mapping[str, Values]) -> Figure:
    """Draw mean accuracy on base classes against that on new ones, with curves of equal harmonic mean."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        points = []
        for index, row in enumerate(rows):
            if not base.get(row.candidate) or not new.get(row.candidate):
                continue
            b, n = summarize(base[row.candidate]), summarize(new[row.candidate])
            points.append((b.mean, n.mean))
            if b.low is not None and b.high is not None:
                axes.plot([b.low, b.high], [n.mean] * 2, color=color(index), linewidth=0.9, alpha=0.7)
            if n.low is not None and n.high is not None:
                axes.plot([b.mean] * 2, [n.low, n.high], color=color(index), linewidth=0.9, alpha=0.7)
            (dot,) = axes.plot([b.mean], [n.mean], "o", markersize=7, color=color(index), label=row.label)
            figure.mark(dot, row.candidate, f"{row.label}\nbase {b.mean:.4f}, new {n.mean:.4f}, n = {b.n}")
        limits = axes.get_xlim(), axes.get_ylim()
        for h in (x / 20 for x in range(1, 20)):
            xs = [h / 2 + 0.001 + i * (1.0 - h / 2) / 200 for i in range(201)]
            axes.plot(xs, [h * x / (2 * x - h) for x in xs], color="#dfe3e8", linewidth=0.8, zorder=0)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
        axes.set_xlabel("accuracy on base classes")
        axes.set_ylabel("accuracy on new classes")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    caption = (
        "Means with 95 % t-intervals; along a grey curve the harmonic mean H is the same, .05 from one to the next."
    )
    return draw(name, "Base against new classes", caption, paint)


def critical_difference(name: str, metric: str, ranks: Ranks) -> Figure:
    """Draw mean ranks over data sets; bars join candidates that do not differ (Demšar 2006, figure 1)."""

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        k = len(ranks.mean_ranks)
        for place, (candidate, rank) in enumerate(ranks.mean_ranks.items()):
            axes.plot([rank, rank], [0, -1 - place], color=GREY, linewidth=0.8)
            (dot,) = axes.plot([rank], [0], "o", color=color(0))
            figure.mark(dot, candidate, f"{candidate}\nmean rank {rank:.2f} over {ranks.data_sets} data sets")
            axes.annotate(f" {candidate} ({rank:.2f})", (rank, -1 - place), va="center", fontsize=8)
        for level, group in enumerate(ranks.groups):
            ends = [ranks.mean_ranks[group[0]] - 0.04, ranks.mean_ranks[group[-1]] + 0.04]
            axes.plot(ends, [0.35 + 0.3 * level] * 2, color=color(1), linewidth=3, solid_capstyle="butt")
        top = 0.9 + 0.3 * len(ranks.groups)
        axes.plot([1, 1 + ranks.critical_difference], [top, top], color="black", linewidth=1.5)
        axes.annotate(f"critical difference {ranks.critical_difference:.2f}", (1, top + 0.15), fontsize=8)
        axes.set_xlim(0.8, k + 0.6)
        axes.set_ylim(-k - 0.7, top + 0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlabel("mean rank (1 is best)")

    caption = (
        f"Mean ranks over {ranks.data_sets} data sets (Friedman p = {ranks.p:.3g}); an orange bar joins "
        "candidates whose "
        "ranks differ by less than Nemenyi's critical difference at .05."
    )
    return draw(name, f"Ranks, {metric}", caption, paint, (WIDTH, 1.6 + 0.3 * len(ranks.mean_ranks)))


def _wrapped(label: str) -> str:
    return label.replace(" (", "\n(").replace(", ", ",\n")

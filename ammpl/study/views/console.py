"""A study in the terminal: a live view, or one line a trial where nobody is watching a screen."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ammpl.escaping import rich_text, terminal, terminal_line
from ammpl.study.result.labels import params_text
from ammpl.study.space.budget import duration_text, trials_text
from ammpl.study.trial import Outcome, State, Trial

_STYLES = {State.COMPLETE: "green", State.PRUNED: "yellow", State.FAILED: "red", State.LOST: "magenta"}
_MOST_RUNNING = 8  # rows of running trials; a cluster has more than a screen


@dataclass
class _Running:
    trial: Trial
    since: float
    step: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class _Finished:
    trial: Trial
    outcome: Outcome


@dataclass(frozen=True)
class _Best:
    """The best configuration of the search so far: its last trial, and its mean over the repeats."""

    trial: Trial
    value: float


class Console:
    """Observer that shows a study to a person.

    With a terminal: progress by phase, counts by state, the best configuration so far, the running trials and the time
    left.
    Otherwise plain lines without control codes: a head for each phase, a line for each trial that ended.

    Args:
        total_by_phase: how many trials each phase has, in the order of the phases; None where only time ends it.
        metric: the objective's name.
        direction: ``maximize`` or ``minimize``.
        quiet: show nothing at all.
        repeats: of a configuration in the search, whose value is the mean over them.
        budget_seconds: how long trials of the first phase begin; None without such a limit.
        elapsed: seconds of earlier sessions of the study.
        stream: where to; standard output.
        clock: seconds; for tests.

    Attributes:
        silent: print no lines for now, as while the view is told of earlier sessions.
    """

    def __init__(
        self,
        total_by_phase: Mapping[str, int | None],
        metric: str,
        direction: str,
        quiet: bool = False,
        *,
        repeats: int = 1,
        budget_seconds: float | None = None,
        elapsed: float = 0.0,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = dict(total_by_phase)
        self._metric = metric
        self._sign = -1.0 if direction == "minimize" else 1.0
        self._direction = direction
        self._quiet = quiet
        self._repeats = repeats
        self._values: dict[str, dict[int, float]] = {}  # of the search's complete trials, by candidate and repeat
        self._budget_seconds = budget_seconds
        self._stream = stream or sys.stdout
        self._clock = clock
        self._began = clock() - elapsed
        self.silent = False
        self._running: dict[str, _Running] = {}
        self._finished: dict[str, _Finished] = {}
        self._best: _Best | None = None
        self._most_at_once = 1
        self._headed: set[str] = set()
        self._lock = threading.RLock()  # the live view is drawn by a thread of its own
        self._rich = RichConsole(file=self._stream, highlight=False)
        self._live: Live | None = None
        if not quiet and _is_screen(self._stream):
            self._live = Live(get_renderable=self._frame, console=self._rich, refresh_per_second=4)
            with contextlib.suppress(Exception):  # a view that cannot be drawn must not end a study
                self._live.start()

    # -- Observer --

    def trial_started(self, trial: Trial) -> None:
        """Show the trial as running; one that was lost before is no longer counted as ended."""
        with self._lock:
            self._finished.pop(trial.key, None)
            self._running[trial.key] = _Running(trial, self._clock())
            self._most_at_once = max(self._most_at_once, len(self._running))
        if trial.phase not in self._headed:
            self._headed.add(trial.phase)
            total = self._totals.get(trial.phase)
            count = "trials" if total is None else trials_text(total)
            if self._budget_seconds is not None and trial.phase == next(iter(self._totals)):
                count += f" in {'' if total is None else 'at most '}{duration_text(self._budget_seconds)}"
            goal = f", {self._direction} {self._metric}" if trial.phase == "search" else ""
            self._line(terminal_line(f"{trial.phase}: {count}{goal}"))

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Show the trial's latest value."""
        with self._lock:
            running = self._running.setdefault(trial.key, _Running(trial, self._clock()))
            running.step, running.value = step, metrics.get(self._metric)

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """Count the trial, and say how it ended."""
        with self._lock:
            self._running.pop(trial.key, None)
            ended = self._finished[trial.key] = _Finished(trial, outcome)
            is_best = self._is_best(trial, outcome)
            done = sum(1 for other in self._finished.values() if other.trial.phase == trial.phase)
        self._line(
            f"[{_of(done, self._totals.get(trial.phase, 0))}] {terminal_line(_ending(ended))}"
            + (f"  ({self._best_so_far()})" if is_best else "")
        )

    def close(self) -> None:
        """Draw the view for the last time and give the terminal back."""
        live, self._live = self._live, None
        if live is not None:
            with self._lock:
                self._running.clear()
            with contextlib.suppress(Exception):
                live.stop()

    def notice(self, text: str) -> None:
        """Say something: above the live view, or as a line."""
        if self._live is not None:
            with contextlib.suppress(Exception):
                self._live.console.print(rich_text(text))
        else:
            self._line(text)

    # -- what is known --

    def _is_best(self, trial: Trial, outcome: Outcome) -> bool:
        """Take an ended trial; return whether it makes its configuration the best one."""
        value = outcome.value
        if trial.phase != "search" or outcome.state is not State.COMPLETE or value is None or math.isnan(value):
            return False
        values = self._values.setdefault(trial.candidate, {})
        values[trial.repeat] = value
        if len(values) < self._repeats:
            return False
        mean = statistics.fmean(values.values())
        if self._best is not None and self._sign * mean <= self._sign * self._best.value:
            return False
        self._best = _Best(trial, mean)
        return True

    def _best_so_far(self) -> str:
        if self._best is None or self._repeats == 1:
            return "best so far"
        return f"best so far: mean {_number(self._best.value)} of {self._repeats} repeats"

    def seconds_left(self) -> float | None:
        """Estimate the time to the end from the trials that ended, pruned and failed ones too.

        What a trial took is what its worker measured: the start of the first workers happens once and is no measure.
        Trials of a phase that has not begun are taken to last as long as complete trials of the search; for the test
        phase, which trains nothing, they are left out. None before the first trial has ended.
        """
        with self._lock:
            ended, running, now = list(self._finished.values()), list(self._running.values()), self._clock()
            work, most = 0.0, self._budget_seconds
            for index, (phase, total) in enumerate(self._totals.items()):
                of_phase = [other.outcome.seconds for other in ended if other.trial.phase == phase]
                like = of_phase or [
                    other.outcome.seconds
                    for other in ended
                    if phase != "test" and other.outcome.state is State.COMPLETE and other.trial.phase == "search"
                ]
                if not like:
                    continue
                mean = sum(like) / len(like)
                share = math.inf if total is None else max(0, total - len(of_phase)) * mean
                share -= sum(min(now - one.since, mean) for one in running if one.trial.phase == phase)
                if index == 0 and most is not None:
                    share = min(share, max(0.0, most - (now - self._began)) * self._most_at_once)
                work += share
            return max(0.0, work) / self._most_at_once if ended else None

    # -- showing it --

    def _line(self, text: str) -> None:
        if self._quiet or self.silent or self._live is not None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):  # nobody reads on; the study goes on
            print(terminal(text).encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)

    def _frame(self) -> RenderableType:
        with self._lock:
            return Group(*self._phases(), *self._best_and_running(), self._clock_line())

    def _phases(self) -> list[RenderableType]:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, max_width=40)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
        for phase, total in self._totals.items():
            states = Counter(other.outcome.state for other in self._finished.values() if other.trial.phase == phase)
            running = sum(1 for one in self._running.values() if one.trial.phase == phase)
            done = states.total()
            counts = Text(no_wrap=True, overflow="ellipsis")
            for state, count in sorted(states.items(), key=lambda pair: list(State).index(pair[0])):
                counts.append(f"{count} {state.lower()}  ", _STYLES[state])
            if running:
                counts.append(f"{running} running", "cyan")
            bar = ProgressBar(total=None if total is None else max(total, done, 1), completed=done)
            table.add_row(Text(terminal_line(phase), "bold"), bar, _of(done, total), counts)
        return [table]

    def _best_and_running(self) -> list[RenderableType]:
        lines: list[RenderableType] = []
        if self._best:
            value = terminal_line(f"{self._metric} {_number(self._best.value)}")
            line = Text.assemble(("best  ", "bold green"), f"{value}  ")
            key = self._best.trial.key
            if self._repeats > 1:
                key = key.removesuffix(f"-r{self._best.trial.repeat}") + f" (mean of {self._repeats})"
            line.append(terminal_line(f"{key}  {params_text(self._best.trial.params)}"))
            lines.append(line)
        for running in list(self._running.values())[:_MOST_RUNNING]:
            line = Text.assemble((terminal_line(f"  {running.trial.key}"), "cyan"))
            if running.step is not None:
                line.append(f"  step {running.step}  {_number(running.value)}")
            line.append(terminal_line(f"  {params_text(running.trial.params)}"), "dim")
            lines.append(line)
        if len(self._running) > _MOST_RUNNING:
            lines.append(Text(f"  and {len(self._running) - _MOST_RUNNING} more", "cyan"))
        for shown in lines:
            if isinstance(shown, Text):
                shown.no_wrap, shown.overflow = True, "ellipsis"
        return lines

    def _clock_line(self) -> Text:
        text = f"{_duration(self._clock() - self._began)} elapsed"
        left = self.seconds_left()
        if self._live is not None and left is not None and self._running:
            text += f", about {_duration(left)} left"
        return Text(text, "dim")


def _is_screen(stream: IO[str]) -> bool:
    """Whether a live view can be drawn: a terminal that moves its cursor and prints more than ASCII."""
    with contextlib.suppress(AttributeError, ValueError):
        encoding = (getattr(stream, "encoding", None) or "").lower()
        return stream.isatty() and encoding.startswith("utf") and not RichConsole(file=stream).is_dumb_terminal
    return False


def _ending(ended: _Finished) -> str:
    outcome = ended.outcome
    parts = [ended.trial.key, str(outcome.state)]
    if outcome.value is not None:
        parts.append(_number(outcome.value))
    if outcome.step is not None:
        parts.append(f"at step {outcome.step}")
    parts.append(f"in {outcome.seconds:.1f} s")
    text = " ".join(parts)
    if ended.trial.params:
        text += "  " + params_text(ended.trial.params)
    if outcome.reason:
        text += "  reason: " + " ".join(outcome.reason.split())
    return text


def _of(done: int, total: int | None) -> str:
    """Return how many of how many, where that is known."""
    most = None if total is None else max(total, done)
    return str(done) if most is None else f"{done:>{len(str(most))}}/{most}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

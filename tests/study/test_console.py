from __future__ import annotations

import io
import math
import os
import pty
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole

from ammpl.study.trial import State, Trial
from ammpl.study.views.console import Console
from tests.study.fakes import Clock
from tests.study.scripted import other_trial, outcome, trial

TOTALS = {"search": 12, "confirm": 2, "test": 2}
Make = Callable[..., tuple[Console, io.StringIO]]


def searched(number: int) -> Trial:
    return trial(number, mask__temperature=0.3 + number, padding__depth=2, interaction__width=16)


def run(console: Console, clock: Clock, number: int, seconds: float = 10.0, **how: object) -> None:
    console.trial_started(searched(number))
    console.trial_reported(searched(number), 20, {"validation/accuracy": 0.25})
    clock.now += seconds
    console.trial_finished(searched(number), outcome(**how))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Make:
    def build(
        direction: str = "maximize", quiet: bool = False, totals: Any = TOTALS, **more: Any
    ) -> tuple[Console, io.StringIO]:
        stream = io.StringIO()
        return Console(totals, "validation/accuracy", direction, quiet, stream=stream, clock=clock, **more), stream

    return build


def test_plain_lines_where_nobody_watches(make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # of a CI system: still no control codes
    console, stream = make()
    run(console, clock, 0, value=0.8125, step=100)
    run(console, clock, 1, state=State.PRUNED, value=0.9, step=20)
    run(console, clock, 2, state=State.FAILED, value=None, step=None, reason="loss is NaN\nat step 3")
    run(console, clock, 3, value=0.875, step=100)
    console.trial_started(other_trial("confirm", "3", 2))
    console.trial_finished(other_trial("confirm", "3", 2), outcome(value=0.9))
    console.notice("[MLflow] lacks nothing")
    console.close()
    assert stream.getvalue().splitlines() == [
        "search: 12 trials, maximize validation/accuracy",
        "[ 1/12] search-0000 COMPLETE 0.8125 at step 100 in 1.5 s  temperature=0.3 depth=2 width=16  (best so far)",
        "[ 2/12] search-0001 PRUNED 0.9000 at step 20 in 1.5 s  temperature=1.3 depth=2 width=16",
        "[ 3/12] search-0002 FAILED in 1.5 s  temperature=2.3 depth=2 width=16  reason: loss is NaN at step 3",
        "[ 4/12] search-0003 COMPLETE 0.8750 at step 100 in 1.5 s  temperature=3.3 depth=2 width=16  (best so far)",
        "confirm: 2 trials",
        "[1/2] confirm-3-r2 COMPLETE 0.9000 at step 40 in 1.5 s",
        "[MLflow] lacks nothing",
    ]


def test_quiet_is_silent(make: Make, clock: Clock) -> None:
    console, stream = make(quiet=True)
    run(console, clock, 0)
    console.notice("text")
    console.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("direction, best", [("maximize", "search-0001"), ("minimize", "search-0002")])
def test_the_best_is_a_complete_trial_of_the_search(make: Make, clock: Clock, direction: str, best: str) -> None:
    console, stream = make(direction)
    for number, value in enumerate((0.5, 0.75, 0.25, math.nan)):
        run(console, clock, number, value=value)
    run(console, clock, 4, state=State.PRUNED, value=0.0)
    run(console, clock, 5, state=State.PRUNED, value=1.0)
    marked = [line for line in stream.getvalue().splitlines() if line.endswith("(best so far)")]
    assert best in marked[-1]


def test_with_several_repeats_the_best_is_the_configuration_with_the_best_mean(make: Make, clock: Clock) -> None:
    console, stream = make(repeats=2)
    values = {0: (0.5, 0.7), 1: (0.9, 0.1), 2: (0.6, 0.8)}
    for repeat in (0, 1):  # side by side: a configuration's repeats need not follow each other
        for number, of_repeats in values.items():
            told = replace(searched(number), key=f"search-{number:04d}-r{repeat + 1}", repeat=repeat + 1)
            console.trial_started(told)
            console.trial_finished(told, outcome(value=of_repeats[repeat]))
    marked = [line.split("  (best") for line in stream.getvalue().splitlines() if "best so far" in line]
    assert [(line.split("] ")[1].split()[0], text) for line, text in marked] == [
        ("search-0000-r2", " so far: mean 0.6000 of 2 repeats)"),
        ("search-0002-r2", " so far: mean 0.7000 of 2 repeats)"),
    ]
    frame = RichConsole(width=200, record=True, file=io.StringIO())
    frame.print(console._frame())
    assert "best  validation/accuracy 0.7000  search-0002 (mean of 2)  temperature=2.3" in frame.export_text()


def test_a_trial_that_was_lost_and_begins_again_counts_once(make: Make, clock: Clock) -> None:
    console, stream = make()
    run(console, clock, 0, state=State.LOST, reason="worker died")
    run(console, clock, 0, value=0.5)
    run(console, clock, 1, value=0.5)
    assert [line[:8] for line in stream.getvalue().splitlines()[1:]] == ["[ 1/12] ", "[ 1/12] ", "[ 2/12] "]


def test_time_left_counts_what_is_to_come_at_the_pace_so_far(make: Make, clock: Clock) -> None:
    console, _ = make()
    assert console.seconds_left() is None
    console.trial_started(searched(0))
    console.trial_started(searched(1))  # two at once
    clock.now = 10.0
    console.trial_finished(searched(0), outcome(seconds=10.0))
    clock.now = 60.0
    console.trial_finished(searched(1), outcome(State.PRUNED, seconds=20.0))  # the rest was its worker's start
    # Ten search trials of 15 s on average, two confirmations of 10 s as a complete trial; two run at once.
    assert console.seconds_left() == (10 * 15 + 2 * 10) / 2
    console.trial_started(searched(2))
    clock.now = 65.0
    assert console.seconds_left() == (10 * 15 - 5 + 2 * 10) / 2
    clock.now = 500.0  # a trial that takes longer than any before is no reason for a negative time
    assert console.seconds_left() == (9 * 15 + 2 * 10) / 2


def test_a_time_budget_bounds_the_time_left_and_the_trials_may_have_no_number(make: Make, clock: Clock) -> None:
    console, stream = make(totals={**TOTALS, "search": None}, budget_seconds=90.0)
    run(console, clock, 0, value=0.5, seconds=10.0)  # 1.5 s of training, as the worker measured
    assert console.seconds_left() == 80 + 2 * 1.5
    assert [line[:29] for line in stream.getvalue().splitlines()] == [
        "search: trials in 1 min 30 s,",
        "[1] search-0000 COMPLETE 0.50",
    ]
    frame = RichConsole(width=100, record=True, file=io.StringIO())
    frame.print(console._frame())
    assert frame.export_text().splitlines()[0].split()[-3:] == ["1", "1", "complete"]
    clock.now = 500.0
    assert console.seconds_left() == 2 * 1.5
    both, stream = make(budget_seconds=90.0)
    run(both, clock, 0, value=0.5)
    assert stream.getvalue().startswith("search: 12 trials in at most 1 min 30 s, maximize")
    assert both.seconds_left() == (11 + 2) * 1.5  # the trials are done before the time is


@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_the_view_fits_any_width(make: Make, clock: Clock, width: int) -> None:
    console, _ = make()
    run(console, clock, 0, value=0.8125)
    run(console, clock, 1, state=State.PRUNED, value=0.5)
    run(console, clock, 2, state=State.FAILED, value=None)
    for number in range(3, 14):
        console.trial_started(searched(number))
    console.trial_reported(searched(3), 60, {"validation/accuracy": 0.75})
    recording = RichConsole(width=width, record=True, file=io.StringIO())
    recording.print(console._frame())
    text = recording.export_text()
    lines = text.splitlines()
    assert len(lines) == 3 + 1 + 8 + 1 + 1  # phases, best, running, how many more, time: nothing wraps
    assert all(cell_len(line) <= width for line in lines)
    assert "3/12" in lines[0] and "0/2" in lines[2]
    assert "and 3 more" in text and "0:30 elapsed" in text
    if width >= 100:
        assert "1 complete  1 pruned  1 failed  11 running" in lines[0]
        assert "validation/accuracy 0.8125  search-0000  temperature=0.3 depth=2 width=16" in lines[3]
        assert "search-0003  step 60  0.7500  temperature=3.3" in lines[4]


def test_a_terminal_is_drawn_on_and_given_back(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    main, side = pty.openpty()
    with os.fdopen(side, "w", encoding="utf-8") as screen:
        console = Console(TOTALS, "validation/accuracy", "maximize", stream=screen, clock=clock)
        run(console, clock, 0, value=0.8125)
        console.notice("a [notice] above the view")
        console.close()
        console.notice("after the end")
        screen.flush()
        shown = ""
        while "after the end" not in shown:  # a terminal hands out what it has, in pieces of its own
            shown += os.read(main, 1 << 16).decode()
    os.close(main)
    assert "\x1b[?25l" in shown  # cursor hidden
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # and shown again
    assert "a [notice] above the view" in shown
    assert "0.8125" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_odd_letters_never_break_a_study(clock: Clock, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(TOTALS, "validation/accuracy", "maximize", stream=stream, clock=clock)
    run(console, clock, 0, state=State.FAILED, reason="日本 ✓ cannot be read")
    assert b"?? ? cannot be read" in stream.buffer.getvalue()  # type: ignore[attr-defined]
    stream.close()
    run(console, clock, 1)
    console.close()

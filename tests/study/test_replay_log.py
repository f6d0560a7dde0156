"""Logs that a study cannot go on from are refused, and say where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ammpl.errors import UserError
from ammpl.study.record.event_log import FILE, read_history
from tests.study.fakes import (
    TEMPERATURE,
)
from tests.study.replaying import (
    events_of,
    open_session,
    result_of,
    run_session,
    space_of,
)

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("started", lambda e: e["params"].update({TEMPERATURE: 0.5}), rf"params\.{TEMPERATURE} does not come out"),
        ("started", lambda e: e["config"]["training"].update(steps=61), r"config\.training\.steps .* 61 then, 60 now"),
        ("started", lambda e: e.update(key="search-0009"), "started search-0009 then, started search-0000 now"),
        ("reported", lambda e: e.update(key="search-0009"), "reported search-0009 then, nothing now"),
        ("finished", lambda e: e.update(state="PRUNED"), "state does not .*: 'PRUNED' then, 'COMPLETE' now"),
        ("finished", lambda e: e.update(value=0.123), "value does not come out as it did: 0.123 then"),
    ],
)  # fmt: skip
def test_the_first_event_that_comes_out_otherwise_is_named(
    tmp_path: Path, name: str, change: Change, text: str
) -> None:
    space = space_of("tpe", "none")
    run_session(space, tmp_path)
    events = events_of(tmp_path)
    number, event = next((n, e) for n, e in enumerate(events, 1) if e["event"] == name)
    change(event)
    log = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / FILE).write_text(log)
    with pytest.raises(UserError, match=rf"events\.jsonl: line {number} \({name} {event['key']}\): .*{text}"):
        open_session(space, tmp_path)
    assert (tmp_path / FILE).read_text() == log


def test_another_space_comes_out_otherwise(tmp_path: Path) -> None:
    run_session(space_of("tpe", "none"), tmp_path)
    with pytest.raises(UserError, match=r"line 2 \(started search-0000\): .*then, .*now"):
        open_session(space_of("tpe", "none", seed=4), tmp_path)
    (tmp_path / "environment.json").write_text('{"packages": {"optuna": "1.2.3"}}')
    with pytest.raises(
        UserError, match=r"package versions that the study began with \(optuna 1\.2\.3 then, \S+ now\)"
    ):
        open_session(space_of("tpe", "none", seed=4), tmp_path)


def test_a_damaged_log_and_one_of_a_later_version_are_said(tmp_path: Path) -> None:
    path = tmp_path / FILE
    run_session(space_of("tpe", "none"), tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "\0\0\0\n", *lines[4:]]))
    with pytest.raises(UserError, match=r"events\.jsonl: line 5 is damaged\. Fix: put back a copy"):
        read_history(path)
    path.write_text(lines[0].replace('"format":2', '"format":3').replace('"version":"', '"version":"9.') + lines[1])
    with pytest.raises(UserError, match=r"line 1 was written by a later version, 9\.\S+ Fix: use that version"):
        read_history(path)
    path.write_text(lines[0] + '{"event": "moved", "time": "2026-01-01T00:00:00+00:00"}\n' + lines[1])
    with pytest.raises(UserError, match="line 2 was written by a later version"):
        read_history(path)


def test_a_log_that_was_changed_is_told_from_a_torn_one(tmp_path: Path) -> None:
    """Any digit of any line, and lines that are missing, added or in another order."""
    path = tmp_path / FILE
    run_session(space_of("tpe", "none"), tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    random = Random(0)
    changed = "was changed after it was written|is damaged|was written by a later version"
    for _ in range(60):
        number = random.randrange(len(lines) - 1)  # of the last one a torn end may be left
        place = random.choice([i for i, sign in enumerate(lines[number]) if sign.isdigit()])
        digit = random.choice("0123456789".replace(lines[number][place], ""))
        line = lines[number][:place] + digit + lines[number][place + 1 :]
        path.write_text("".join([*lines[:number], line, *lines[number + 1 :]]))
        with pytest.raises(UserError, match=changed):
            read_history(path)
    for other in ([*lines[:3], *lines[4:]], [*lines[:3], lines[4], lines[3], *lines[5:]], [*lines, lines[-1]]):
        path.write_text("".join(other))
        with pytest.raises(UserError, match=r"line \d+, or one before it, was changed after it was written"):
            read_history(path)


def test_a_log_of_an_earlier_version_goes_on_chained(tmp_path: Path) -> None:
    space, path = space_of("tpe", "none"), tmp_path / FILE
    run_session(space, tmp_path)
    path.write_text("".join(json.dumps(event) + "\n" for event in events_of(tmp_path)))
    session = open_session(space, tmp_path)
    session.records.close()
    lines = path.read_text().splitlines()
    assert "chain" not in json.loads(lines[-2]) and "chain" in json.loads(lines[-1])
    assert len(read_history(path).lines) == len(lines)
    path.write_text("\n".join([lines[0].replace("0", "1"), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="was changed after it was written"):
        read_history(path)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "finished", "key": "../x", "state": "COMPLETE"},
        {"event": "finished", "key": "/tmp/x", "state": "COMPLETE"},
        {"event": "finished", "key": "a\\b", "state": "COMPLETE"},
        {"event": "finished", "key": "..", "state": "COMPLETE"},
        {"event": "finished", "key": ["x"], "state": "COMPLETE"},
        {"event": "finished", "key": "x", "state": "GONE"},
        {"event": "reported", "key": "x", "step": "1", "metrics": {}},
        {"event": "reported", "key": "x", "step": 1, "metrics": {"a": [1]}},
        {"event": "reported", "key": "x", "step": 1, "metrics": 3},
        {"event": "started", "key": "x", "phase": 3, "repeat": 1, "params": {}},
        ["event"],
    ],
    ids=str,
)
def test_an_event_that_no_study_writes_is_damage(tmp_path: Path, event: object) -> None:
    whole = json.dumps({"event": "session", "time": "2026-01-01T00:00:00+00:00"}) + "\n"
    timed = event | {"time": "2026-01-01T00:00:00+00:00"} if isinstance(event, dict) else event
    (tmp_path / FILE).write_text(whole + json.dumps(timed) + "\n" + whole)
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_history(tmp_path / FILE)


@pytest.mark.parametrize(
    "tail", ['{"event":"repor', '{"event":"reported"}\n', "\0\0\0\0\n", "\n", '{"event":"reported",']
)
def test_a_last_line_that_was_not_written_to_its_end_is_cut_off(tmp_path: Path, tail: str) -> None:
    space = space_of("tpe", "none")
    expected = result_of(run_session(space, tmp_path), tmp_path)
    path = tmp_path / FILE
    whole = path.read_text()
    path.write_text(whole + tail)
    session = open_session(space, tmp_path)
    session.records.close()
    assert result_of(session, tmp_path) == expected
    assert path.read_text().startswith(whole)
    assert len(read_history(path).lines) == len(whole.splitlines()) + 1  # a session more

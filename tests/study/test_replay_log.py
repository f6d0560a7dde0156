"""Logs that a study cannot go on from are refused, and say where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
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
    path.write_text(lines[0].replace('"format":1', '"format":2').replace('"version":"', '"version":"9.') + lines[1])
    with pytest.raises(UserError, match=r"line 1 was written by a later version, 9\.\S+ Fix: use that version"):
        read_history(path)
    path.write_text(lines[0] + '{"event": "moved", "time": "2026-01-01T00:00:00+00:00"}\n' + lines[1])
    with pytest.raises(UserError, match="line 2 was written by a later version"):
        read_history(path)


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

"""Time in a resumed study: what earlier sessions took counts, and a clock that is set changes nothing."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ammpl.study.record import event_log, records
from ammpl.study.record.event_log import FILE, read_history
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Trial
from tests.study.fakes import (
    accuracy,
    run_inline,
    small_space,
)
from tests.study.replaying import (
    CONFIRM,
    Session,
    events_of,
    open_session,
    run_for,
    space_of,
)


@pytest.mark.parametrize(("seconds", "begun"), [(100.0, 8), (2.5, 3)])
def test_a_time_budget_counts_the_time_of_earlier_sessions(tmp_path: Path, seconds: float, begun: int) -> None:
    space = small_space(budget={"trials": 8, "time": f"{int(seconds)}s"}, confirm=None, seed=3)
    lines = _study_of_one_second_a_trial(space, tmp_path / "study", trials=3)
    (tmp_path / "study" / FILE).write_text("".join(lines))
    session = open_session(space, tmp_path / "study")
    assert session.records.log.clock() == pytest.approx(2.7, abs=0.3)
    run_inline(session.plan, tmp_path / "study", session.runs)
    keys = {trial.key for trial, _ in session.plan.finished}
    assert len(keys) == begun
    assert (session.plan.ended is None) == (begun == 8)


def _study_of_one_second_a_trial(space: StudySpace, folder: Path, trials: int) -> list[str]:
    """Return a log whose events are as far apart as if each trial took a second, with a night in between."""
    session = open_session(space, folder)
    for _ in range(trials):
        trial = session.plan.next()
        assert isinstance(trial, Trial)
        session.plan.report(trial, 80, {"validation/accuracy": accuracy(trial.params, 80)})
        session.plan.finish(trial, 1.0)
    session.records.close()
    lines, times = [], iter(range(100))
    for event in events_of(folder):
        at = 0.3 * next(times)
        hour = 10 if at < 1.2 else 22
        if at >= 1.2 and not any('"session"' in line for line in lines[1:]):  # the driver died; the next day
            lines.append(json.dumps({**json.loads(lines[0]), "time": f"2026-01-01T{hour}:00:{at:09.6f}+00:00"}) + "\n")
        lines.append(json.dumps({**event, "time": f"2026-01-01T{hour}:00:{at:09.6f}+00:00"}) + "\n")
    return lines


def test_a_clock_that_is_set_while_a_study_runs_changes_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter([timedelta(0), timedelta(hours=-5), timedelta(days=3)] * 100)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + next(jumps)

    monkeypatch.setattr(event_log, "datetime", Jumping)
    monkeypatch.setattr(records, "datetime", Jumping)
    space, began = space_of("tpe", "none", budget={"trials": 4, "time": "1h"}), time.monotonic()
    for evaluations in (20, 1000):
        session = open_session(space, tmp_path)
        if not run_for(session, tmp_path, evaluations):
            session.records.log.close()
    session.records.close()
    event_log.end_log(tmp_path / FILE)
    assert session.plan.ended is None
    assert 0 < read_history(tmp_path / FILE).seconds <= time.monotonic() - began
    rows = pq.read_table(tmp_path / "trials").to_pylist()
    assert {row["started"] <= row["ended"] for row in rows if row["key"] != "search-0002"} == {True}
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_study_whose_time_was_used_up_does_not_begin_more_trials(tmp_path: Path) -> None:
    space = small_space(budget={"time": "1h"}, confirm=CONFIRM, seed=3)
    folder = tmp_path / "study"
    session = open_session(space, folder)
    for _ in range(6):
        _finish_one(session)
    session.records.log._earlier = 3600.0
    _finish_one(session)  # the first of the baselines
    assert session.plan.ended is not None
    session.records.close()
    resumed = open_session(space, folder)  # by its wall time no second has passed
    assert resumed.plan.running == []
    run_inline(resumed.plan, folder, resumed.runs)
    assert not [key for key in resumed.runs.keys if key.startswith("search")]
    assert resumed.plan.ended == session.plan.ended == "time budget of 1 h used up after 6 trials"


def _finish_one(session: Session) -> None:
    trial = session.plan.next()
    assert isinstance(trial, Trial)
    session.plan.report(trial, 80, {"validation/accuracy": accuracy(trial.params, 80)})
    trial.folder(session.records._trials_file.parents[1]).mkdir(parents=True)
    (trial.folder(session.records._trials_file.parents[1]) / "learnables.safetensors").touch()
    session.plan.finish(trial, 1.0)

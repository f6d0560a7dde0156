"""A study on disk: the event log, which is the truth, and Parquet tables made of it.

docs/results.md has the schema of both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ammpl.config import Scalar
from ammpl.study.record.event_log import FILE, EventLog
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Outcome, Trial

LEAST_SECONDS = 3.0  # between two writings of the tables while a study runs,
LARGEST_SHARE = 0.02  # or more, so that they cost at most this share of the time

_TIME = pa.timestamp("us", tz="UTC")
_IDENTITY: dict[str, pa.DataType] = {
    "key": pa.string(),
    "phase": pa.string(),
    "candidate": pa.string(),
    "number": pa.int64(),
    "repeat": pa.int64(),
    "dataset": pa.string(),
    "shots": pa.int64(),
    "is_test": pa.bool_(),
}
_TRIAL_COLUMNS: dict[str, pa.DataType] = {
    **_IDENTITY,
    "state": pa.string(),
    "value": pa.float64(),
    "step": pa.int64(),
    "reason": pa.string(),
    "duplicate_of": pa.string(),
    "seconds": pa.float64(),
    "gpus": pa.float64(),
    "method": pa.string(),
    "config_sha256": pa.string(),
    "started": _TIME,
    "ended": _TIME,
}
_CURVE_SCHEMA = pa.schema({**_IDENTITY, "step": pa.int64(), "metric": pa.string(), "value": pa.float64()})


class Records:
    """Observer that keeps ``events.jsonl``, ``trials/trials.parquet`` and ``curves/curves.parquet``.

    Each event is with the operating system when the call returns, so that it survives the driver's death; the end of a
    trial, and with it all before, is on the disk, so that it survives the machine's. The tables are made anew at any
    time; they lag by seconds. In a folder that has a log the study has to be told from its begin: what the log has
    goes into the tables again, with its old times, and only what is new into the log.

    Args:
        folder: the study folder.
        spaces: of the study's versions, give the searched (or varied) parameters' columns their types.

    Attributes:
        log: the event log.
        now: the time of the last event.

    Raises:
        UserError: the folder's log cannot be read.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *spaces: StudySpace):
        self._trials_file = folder / "trials" / "trials.parquet"
        self._curves_file = folder / "curves" / "curves.parquet"
        for path in (self._trials_file, self._curves_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._params = {name: _param_type(spaces, name) for space in spaces for name in space.parameters}
        self._started: dict[str, datetime] = {}
        self._trials: list[dict[str, Any]] = []
        # A study has many points: those that have been written are kept as Arrow columns, a quarter of the size.
        self._points: list[dict[str, Any]] = []
        self._curves = _CURVE_SCHEMA.empty_table()
        self._metrics: dict[str, None] = {}
        self.log = EventLog(folder / FILE)
        self.now = datetime.now(UTC)
        self._written = time.monotonic()
        self._pause = LEAST_SECONDS

    def begin(self) -> None:
        """Begin a session of the study; what the log had is in the tables from now on."""
        self.log.begin()
        self.write()

    def trial_started(self, trial: Trial) -> None:
        """Log the trial with its whole configuration."""
        self.now = self._started[trial.key] = self.log.tell(
            "started",
            key=trial.key,
            phase=trial.phase,
            candidate=trial.candidate,
            number=trial.number,
            repeat=trial.repeat,
            config_sha256=trial.config.sha256,
            params=dict(trial.params),
            config=trial.config.model_dump(mode="json"),
        )

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Log the evaluation; add its points to the curves."""
        self.now = self.log.tell("reported", key=trial.key, step=step, metrics=dict(metrics))
        for name, value in metrics.items():
            self._metrics.setdefault(name)
            self._points.append({**_identity(trial), "step": step, "metric": name, "value": value})
        self._write_when_due()

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """Log how the trial ended, and see that it is on the disk."""
        ended = {
            "state": str(outcome.state),
            "value": outcome.value,
            "step": outcome.step,
            "reason": outcome.reason,
            "duplicate_of": outcome.duplicate_of,
            "seconds": outcome.seconds,
            **({"gpus": outcome.gpus} if outcome.gpus else {}),
        }
        self.now = self.log.tell("finished", key=trial.key, **ended)
        self.log.sync()
        self._trials.append(
            {
                **_identity(trial),
                **ended,
                "gpus": outcome.gpus,
                "method": trial.config.method,
                "config_sha256": trial.config.sha256,
                "started": self._started.pop(trial.key, self.now),
                "ended": self.now,
                **{f"params.{name}": self._as_column(name, value) for name, value in trial.params.items()},
                **{f"metrics.{name}": value for name, value in outcome.metrics.items()},
            }
        )
        self._write_when_due()

    def close(self) -> None:
        """Write the tables a last time."""
        self.write()
        self.log.close()

    def _write_when_due(self) -> None:
        if self.log.owed is None and time.monotonic() - self._written >= self._pause:
            self.write()

    def write(self) -> None:
        """Write the tables as they are now."""
        began = time.monotonic()
        columns = {
            **_TRIAL_COLUMNS,
            **{f"params.{name}": kind for name, kind in self._params.items()},
            **{f"metrics.{name}": pa.float64() for name in sorted(self._metrics)},
        }
        _replace(self._trials_file, pa.Table.from_pylist(self._trials, schema=pa.schema(columns)))
        points = pa.Table.from_pylist(self._points, schema=_CURVE_SCHEMA)
        self._curves, self._points = pa.concat_tables([self._curves, points]).combine_chunks(), []
        _replace(self._curves_file, self._curves)
        self._written = time.monotonic()
        self._pause = max(LEAST_SECONDS, (self._written - began) / LARGEST_SHARE)

    def _as_column(self, name: str, value: Scalar) -> Scalar:
        if self._params[name] == pa.string() and not isinstance(value, str | None):
            return json.dumps(value)
        return value


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        "key": trial.key,
        "phase": trial.phase,
        "candidate": trial.candidate,
        "number": trial.number,
        "repeat": trial.repeat,
        "dataset": trial.config.data.name,
        "shots": trial.config.data.shots,
        "is_test": trial.phase == "test",
    }


def _param_type(spaces: Sequence[StudySpace], name: str) -> pa.DataType:
    """Return the column type that holds every value of a parameter; mixed ones become JSON text."""
    parameters = [space.parameters[name] for space in spaces if name in space.parameters]
    kinds = {type(value) for parameter in parameters for value in parameter.extremes() if value is not None}
    if any(parameter.type == "float" for parameter in parameters):
        kinds |= {float}
    if kinds in ({float}, {int, float}):
        return pa.float64()
    if kinds == {int}:
        return pa.int64()
    return pa.bool_() if kinds == {bool} else pa.string()


def _replace(path: Path, table: pa.Table) -> None:
    """Write a table so that a reader finds either the old file or the new one, whole."""
    draft = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, draft, compression="zstd")
    draft.replace(path)

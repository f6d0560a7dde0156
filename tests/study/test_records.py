from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ammpl.study.plan.search_plan import Plan
from ammpl.study.record import records as module
from ammpl.study.record.records import Records
from ammpl.study.trial import State, Trial
from tests.study.fakes import DEPTH, EVALUATIONS, MULTIPLIER, TEMPERATURE, WIDTH, execute, run_inline, small_space


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    space = small_space(budget={"trials": 30}, seed=3)
    records = Records(folder, space)
    run_inline(Plan(space, "small", folder, records), folder, execute)
    records.close()
    return folder


def test_four_readers_see_the_same_tables(folder: Path) -> None:
    for table in ("trials", "curves"):
        expected = pq.read_table(folder / table / f"{table}.parquet").to_pylist()
        assert len(expected) > 30
        path = f"{folder}/{table}"
        by_pandas, by_polars = pd.read_parquet(path), pl.read_parquet(f"{path}/*.parquet")
        by_duckdb = duckdb.sql(f"select * from '{path}/*.parquet'")
        assert list(by_pandas.columns) == by_polars.columns == by_duckdb.columns == list(expected[0])
        assert by_polars.drop("started", "ended", strict=False).to_dicts() == [
            {name: value for name, value in row.items() if name not in ("started", "ended")} for row in expected
        ]
        keys = [row["key"] for row in expected]
        assert list(by_pandas["key"]) == keys
        assert [row[0] for row in duckdb.sql(f"select key from '{path}/*.parquet'").fetchall()] == keys
        values = [row["value"] for row in expected]
        assert [None if math.isnan(v) else v for v in by_pandas["value"]] == values
        assert [row[0] for row in by_duckdb.select("value").fetchall()] == values


def test_columns_are_typed_even_where_empty(folder: Path) -> None:
    schema = pq.read_schema(folder / "trials" / "trials.parquet")
    assert schema.field(f"params.{TEMPERATURE}").type == pa.float64()
    assert schema.field(f"params.{DEPTH}").type == pa.int64()
    assert schema.field(f"params.{WIDTH}").type == pa.int64()
    assert schema.field("started").type == pa.timestamp("us", tz="UTC")
    assert schema.field("reason").type == pa.string()
    assert schema.field("metrics.test/accuracy").type == pa.float64()


def test_the_tables_say_which_numbers_are_test_numbers(folder: Path) -> None:
    for table in ("trials", "curves"):
        for row in pq.read_table(folder / table / f"{table}.parquet").to_pylist():
            assert row["is_test"] == (row["phase"] == "test")
            if table == "curves":
                assert row["metric"].startswith("test/") == row["is_test"]
            else:
                assert (row["metrics.test/accuracy"] is not None) == row["is_test"]


def test_the_schema_is_the_documented_one(folder: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    for table in ("trials", "curves"):
        section = text.split(f"## `{table}/{table}.parquet`")[1].split("\n## ")[0]
        documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        names = pq.read_schema(folder / table / f"{table}.parquet").names
        plain = [name for name in names if not name.startswith(("params.", "metrics."))]
        assert [name for name in documented if "*" not in name] == plain
        assert ("params.*" in documented) == (table == "trials")


def test_an_inactive_parameter_is_null_and_a_trial_keeps_its_last_metrics(folder: Path) -> None:
    rows = pq.read_table(folder / "trials" / "trials.parquet").to_pylist()
    for row in rows:
        if row["phase"] == "search":
            assert (row[f"params.{MULTIPLIER}"] is None) == (row[f"params.{WIDTH}"] == 4)
        if row["state"] == "COMPLETE" and row["phase"] != "test":
            assert row["step"] == 10 * EVALUATIONS
            assert row["value"] == row["metrics.validation/accuracy"]
        assert (row["reason"] is not None) == (row["state"] == "FAILED")
        assert row["started"] <= row["ended"]
    assert {row["state"] for row in rows} == {"COMPLETE", "PRUNED", "FAILED"}


def test_the_event_log_alone_gives_back_trials_and_curves(folder: Path) -> None:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    for event in events:
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
    points = [
        (event["key"], event["step"], metric, value)
        for event in events
        if event["event"] == "reported"
        for metric, value in event["metrics"].items()
    ]
    curves = pq.read_table(folder / "curves" / "curves.parquet").to_pylist()
    assert points == [(row["key"], row["step"], row["metric"], row["value"]) for row in curves]
    started = {event["key"]: event for event in events if event["event"] == "started"}
    trials = pq.read_table(folder / "trials" / "trials.parquet").to_pylist()
    assert started.keys() == {row["key"] for row in trials}
    assert all(started[row["key"]]["config_sha256"] == row["config_sha256"] for row in trials)


def _trial(params: dict[str, object] | None = None) -> Trial:
    space = small_space()
    return Trial("search-0000", "search", "0", 0, 1, space.config({}, 1), params or {})  # type: ignore[arg-type]


def test_numbers_that_json_lacks_are_texts_that_float_reads(tmp_path: Path) -> None:
    records = Records(tmp_path, small_space())
    records.trial_started(_trial())
    records.trial_reported(_trial(), 10, {"a": math.nan, "b": -math.inf, "c": 1.0})
    records.close()
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[2])
    assert event["metrics"] == {"a": "nan", "b": "-inf", "c": 1.0}
    assert math.isnan(float(event["metrics"]["a"]))
    assert [row["value"] for row in pq.read_table(tmp_path / "curves").to_pylist()][1:] == [-math.inf, 1.0]


def test_choices_of_several_types_become_json_text(tmp_path: Path) -> None:
    from ammpl.study.trial import Outcome

    name = "data.validation_shots"
    space = small_space(parameters={name: {"type": "categorical", "choices": [None, 4]}})
    assert pq_type(tmp_path / "a", space, name) == pa.int64()
    space = small_space(parameters={"model.text.init": {"type": "categorical", "choices": ["a", "an image of"]}})
    assert pq_type(tmp_path / "b", space, "model.text.init") == pa.string()
    space = small_space(parameters={DEPTH: {"type": "categorical", "choices": [1, 2]}})
    mixed = space.model_copy(
        update={"parameters": {DEPTH: space.parameters[DEPTH].model_copy(update={"choices": (1, "two", True)})}}
    )
    records = Records(tmp_path, mixed)
    for value in (1, "two", True):
        records.trial_started(_trial({DEPTH: value}))
        records.trial_finished(_trial({DEPTH: value}), Outcome(State.COMPLETE, 0.5, 10, {}, 1.0))
    records.close()
    assert pq.read_table(tmp_path / "trials").column(f"params.{DEPTH}").to_pylist() == ["1", "two", "true"]


def pq_type(folder: Path, space: object, name: str) -> pa.DataType:
    Records(folder, space).close()  # type: ignore[arg-type]
    return pq.read_schema(folder / "trials" / "trials.parquet").field(f"params.{name}").type


def test_tables_can_be_read_while_the_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "LARGEST_SHARE", 1e9)
    space = small_space(budget={"trials": 3}, confirm=None)
    records = Records(tmp_path, space)
    records._pause = 0.0
    plan = Plan(space, "small", tmp_path, records)
    for count in (1, 2, 3):
        trial = plan.next()
        assert isinstance(trial, Trial)
        plan.report(trial, 10, {"validation/accuracy": 0.5})
        plan.finish(trial, 1.0)
        assert pq.read_table(tmp_path / "trials").num_rows == count
        assert pq.read_table(tmp_path / "curves").num_rows == count
        assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1 + 3 * count  # the session first
    assert pq.read_table(tmp_path / "curves").column("key").to_pylist() == [t.key for t, _ in plan.finished]
    records.close()
    assert not list(tmp_path.rglob("*.tmp"))

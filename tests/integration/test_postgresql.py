"""MLflow and Optuna on a real PostgreSQL server, which goes away while the study runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest

from ammpl.study.study import Options, run_study
from tests.integration import postgresql
from tests.integration.postgresql import PostgreSQL
from tests.integration.test_outage import SPACE, At
from tests.integration.test_resume import check_mlflow
from tests.study.fakes import execute


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    bin = postgresql.programs()
    if bin is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with postgresql.server(bin) as running:
        yield running


def test_a_server_that_crashes_and_comes_back(server: PostgreSQL, ray_cluster: None, tmp_path: Path) -> None:
    mlflow, storage = server.database("mlflow"), server.database("optuna")
    options = Options(tmp_path / "study", concurrency=2, tracking_uri=mlflow, optuna_storage=storage, quiet=True)
    acts = At({"search-0002": server.stop, "search-0008": server.start})
    summary = run_study(SPACE, options, execute=execute, observers=[acts])
    assert summary.problems == ()
    check_mlflow(mlflow, summary.folder)
    rows = pq.read_table(summary.folder / "trials" / "trials.parquet").to_pylist()
    points = pq.read_table(summary.folder / "curves" / "curves.parquet").to_pylist()
    trials = optuna.load_study(study_name="study", storage=storage).trials
    searched = {row["number"]: row for row in rows if row["phase"] == "search"}
    assert [trial.number for trial in trials] == sorted(searched)
    for trial in trials:
        row = searched[trial.number]
        assert trial.user_attrs["state"] == row["state"]
        assert trial.params == {
            name.removeprefix("params."): value
            for name, value in row.items()
            if name.startswith("params.") and value is not None
        }
        curve = {
            point["step"]: point["value"]
            for point in points
            if point["key"] == row["key"] and point["metric"] == "validation/accuracy"
        }
        assert trial.intermediate_values == curve
    assert not (summary.folder / "undelivered.json").exists()

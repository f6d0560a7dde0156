from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.mlflow_store import mlflow_server


@pytest.fixture(scope="session")
def mlflow_uri(empty_sqlite_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server, for the whole session."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_sqlite_store, folder / "server.db")
    with mlflow_server(folder) as server:
        yield server.uri


@pytest.fixture
def sqlite_uri(empty_sqlite_store: Path, tmp_path: Path) -> str:
    """The address of a SQLite store of the test's own."""
    shutil.copy(empty_sqlite_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray of two CPUs for all tests that need it; a study finds it connected and leaves it so."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()

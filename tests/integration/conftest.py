from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import ammpl
from ammpl.study import Study
from tests.integration.mlflow_store import mlflow_server
from tests.listener import listening


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


@dataclass(frozen=True)
class Tracked:
    """A study that Python code has run: the smoke study with one worker, told to an MLflow server.

    Attributes:
        printed: what appeared on the terminal.
        notified: what the address of ``notify`` was told.
    """

    study: Study
    uri: str
    printed: str
    notified: list[dict[str, Any]]


@pytest.fixture(scope="session")
def tracked(ray_cluster: None, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """The smoke study as :func:`ammpl.study.run` leaves it."""
    said = io.StringIO()
    folder = tmp_path_factory.mktemp("tracked") / "smoke-1"
    with listening() as there, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        study = ammpl.study.run("smoke", output=folder, tracking_uri=mlflow_uri, concurrency=1, notify=there.url)
    return Tracked(study, mlflow_uri, said.getvalue(), there.messages)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray of two CPUs for all tests that need it; a study finds it connected and leaves it so."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()

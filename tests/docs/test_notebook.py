"""The notebook of the docs runs, and what it shows is what it was left with."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat

from tests.docs.notebook import PAGE, run, structure


def test_it_runs_and_its_outputs_are_of_these_cells(tmp_path: Path, empty_sqlite_store: Path) -> None:
    kept = nbformat.read(PAGE, as_version=4)
    nbformat.validate(kept)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "python -m tests.docs.notebook"
    shutil.copy(empty_sqlite_store, tmp_path / "mlflow.db")  # MLflow takes seconds to create one
    now = run(PAGE, tmp_path)  # raises where a cell does
    assert structure(now) == structure(kept), "python -m tests.docs.notebook"
    assert not any(kind == "error" for cell in structure(kept) for kind, _ in cell)

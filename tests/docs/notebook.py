"""Runs the notebook of the docs. ``python -m tests.docs.notebook`` runs it anew and keeps its outputs in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "first_study.ipynb"


def run(page: Path, folder: Path) -> Any:
    """Return the notebook, run in a kernel of its own with ``folder`` as the working directory."""
    notebook = nbformat.read(page, as_version=4)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        NotebookClient(
            notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return notebook


def structure(notebook: Any) -> list[list[tuple[str, list[str]]]]:
    """Return of each code cell what it shows, and in which forms; what libraries print depends on the machine."""
    return [
        [(o.output_type, sorted(o.get("data", {}))) for o in cell.outputs if o.output_type != "stream"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = run(PAGE, Path(place))
    for cell in made.cells:
        cell.metadata = {}  # when it ran
        if cell.cell_type == "code":  # what libraries grumble, with paths of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(made, PAGE)

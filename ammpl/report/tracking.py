"""The report as an artifact of the study's run in MLflow."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

from ammpl.report.files import listed
from ammpl.study.addresses import without_password
from ammpl.study.views.tracking import remembered_uri

_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def log_report(study: Path, report: Path) -> str | None:
    """Log a report's folder to the parent run of the study, as its artifact ``report``; return why it is not there.

    A store that is away costs the artifact, not the report.
    """
    if not (study / "mlflow.json").is_file():
        return "the study was not tracked there"
    uri = remembered_uri(study)
    if uri is None:
        return "the address of the study's store is not known in full"
    shown = without_password(uri)
    if (file := _sqlite_file(uri)) is not None and not file.is_file():
        return f"{shown} is not there; run the command where the study ran"
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # seconds of import, of this step only

    try:
        run_id = json.loads((study / "mlflow.json").read_text(encoding="utf-8"))["run_id"]
        client = MlflowClient(uri)
        for name in sorted(listed(report) or ()):  # not what else lies in the folder
            client.log_artifact(run_id, str(report / name), str(PurePosixPath("report", name).parent))
    except Exception as error:  # whatever a store, a plugin or the network raises
        return f"{shown}: {' '.join(str(error).split())[:200]}"
    return None


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None

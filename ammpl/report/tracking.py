"""The report as an artifact of the study's run in MLflow."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ammpl.errors import UserError, reason_of
from ammpl.redaction import redacted
from ammpl.report.files import listed
from ammpl.study.views.tracking import own_uri, remembered_run

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def log_report(study: Path, report: Path, tracking_uri: str | None = None) -> str | None:
    """Log a report's folder to the parent run of the study, as its artifact ``report``; return why it is not there.

    A store that is away costs the artifact, not the report.

    Args:
        study: its folder, which may be somebody else's: a store that it names is used where it is this user's own.
        report: its folder.
        tracking_uri: of the store; None takes the study's, where this user has given it to the study.
    """
    if (run_id := remembered_run(study)) is None:
        return "the study was not tracked there"
    try:
        uri = tracking_uri or own_uri(study)
    except UserError as error:
        return str(error)
    if uri is None:
        return "you have not given this study its address on this machine; --tracking-uri URI logs it there"
    shown = redacted(uri)
    if (file := _sqlite_file(uri)) is not None and not file.is_file():
        return f"{shown} is not there; run the command where the study ran"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # seconds of import, of this step only

    try:
        client = MlflowClient(uri)
        for name in sorted(listed(report) or ()):  # not what else lies in the folder
            client.log_artifact(run_id, str(report / name), str(PurePosixPath("report", name).parent))
    except Exception as error:  # whatever a store, a plugin or the network raises
        return f"{shown}: {reason_of(error)}"
    return None


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None

"""Which file of learnables is meant by a study, a trial or a run of MLflow."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ammpl.errors import UserError, reason_of
from ammpl.study.record.folder import check_links
from ammpl.study.views.mlflow_model import WINNER
from ammpl.study.views.mlflow_process import DEFAULT_URI

FILE = "learnables.safetensors"
_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


def learnables_of(source: str | Path, tracking_uri: str | None = None) -> Path:
    """Return the file of what a trial has learned.

    Args:
        source: a file of learnables; a trial's folder; a finished study's folder, for its confirmed winner, trained
            on the first of the confirmation's repeats; or the run of a trial or a study in MLflow, by its identifier.
        tracking_uri: of the MLflow store; None takes MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working directory.

    Raises:
        UserError: there is no such thing, or it has not learned anything.
    """
    if match := _RUN.fullmatch(str(source)):
        return _downloaded(match[1], tracking_uri)
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        fix = "name a study's folder, a trial's, a file of learnables, or the identifier of an MLflow run"
        raise UserError(str(source), "is neither a file, a folder nor a run", fix=fix)
    if (path / "study.yaml").is_file():
        check_links(path)
        path = _winner(path)
    if not (path / FILE).is_file():
        raise UserError(str(path), f"has no {FILE}: the trial did not complete, or its method learns nothing")
    return path / FILE


def _winner(study: Path) -> Path:
    try:
        summary = json.loads((study / "summary.json").read_text(encoding="utf-8"))
    except OSError:
        raise UserError(str(study), "has not ended", fix=f"python tune.py resume {study}") from None
    winner = summary.get("winner")
    if winner is None:
        fix = f"name a trial's folder, one of those below {study / 'checkpoints'}"
        raise UserError(str(study), "has no confirmed winner", fix=fix)
    trained = (study / "checkpoints").glob(f"confirm-{int(winner):04d}-r*/{FILE}")
    first = min((path.parent for path in trained), key=_repeat, default=None)
    if first is None:
        raise UserError(str(study / "checkpoints"), f"has no learnables of the winner, trial {winner}")
    return first


def _repeat(folder: Path) -> int:
    return int(folder.name.rpartition("-r")[2])


def _downloaded(run_id: str, tracking_uri: str | None) -> Path:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # seconds, which only a run needs
    from mlflow.exceptions import MlflowException

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    reasons = []
    for path in (FILE, f"{WINNER}/{FILE}"):  # a trial's, a study's
        try:
            return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=uri))
        except (MlflowException, OSError) as error:
            reasons.append(reason_of(error))
    raise UserError(f"run {run_id}", f"has no {FILE} that can be fetched ({reasons[0]})")

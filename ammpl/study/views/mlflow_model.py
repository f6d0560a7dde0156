"""A study's winner as a model of the MLflow store: files, figures, and the run that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINNER = "winner"
"""Of a study's run, the folder of artifacts with what its winner has learned."""


def log_winner(client: Any, parent: tuple[str, str], winner: Mapping[str, Any], at: int) -> None:
    """Log a winner's files as artifacts of the study's run, and as a model; once, however often it is called.

    Args:
        client: an ``MlflowClient``.
        parent: the study's run, ``experiment_id`` and ``run_id``.
        winner: its ``key``, ``folder``, ``name``, ``params`` and ``metrics``.
        at: the time of its figures, in ms since 1970.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    experiment_id, run_id = parent
    client.log_artifacts(run_id, winner["folder"], WINNER)
    of_run = f"source_run_id = '{run_id}'"
    known = client.search_logged_models([experiment_id], of_run)
    if any(model.tags.get("trial") == winner["key"] and str(model.status) == "READY" for model in known):
        return
    model = client.create_logged_model(
        experiment_id,
        name=winner["name"],
        source_run_id=run_id,
        tags={"trial": winner["key"], "load": f'ammpl.load("{run_id}")'},
        params=winner["params"],
        model_type="image classifier",
    )
    client.log_model_artifacts(model.model_id, winner["folder"])
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    points = [
        Metric(name, value, at, 0, model_id=model.model_id, run_id=run_id) for name, value in winner["metrics"].items()
    ]
    if points:
        client.log_batch(run_id, points, synchronous=True)
    client.finalize_logged_model(model.model_id, "READY")

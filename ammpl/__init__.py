"""AMMPL Study: distributed hyperparameter studies of adaptive multi-modality prompt learning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ammpl import study as study  # what people call; nothing but the standard library is imported by it

if TYPE_CHECKING:
    from ammpl.training.classifier import Classifier

__version__ = "0.1.0"


def load(source: str | Path, tracking_uri: str | None = None, download: bool = False) -> Classifier:
    """Return what a trial has learned as a classifier of pictures. Of a folder or a file, no network is asked.

    Args:
        source: a finished study's folder, or its run in MLflow by its identifier, for its confirmed winner; a trial's
            folder or run; or a file of learnables.
        tracking_uri: of the MLflow store; None takes MLFLOW_TRACKING_URI, else ``mlflow.db`` in the working directory.
        download: fetch the backbone's weights from their publisher where they are not on this machine.

    Raises:
        UserError: there is no such thing, it has not learned anything, or its backbone cannot be loaded.
    """
    from ammpl.study.views.learned import learnables_of  # here, so that the package itself imports nothing
    from ammpl.training.classifier import Classifier

    return Classifier(learnables_of(source, tracking_uri), download)

"""The process that writes to MLflow, seen from the driver: which store, and how patient its client is."""

from __future__ import annotations

import os
import tempfile

from ammpl.study.views.writer_process import WriterProcess

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default: a file in the working directory."""

# In the writer only. The client's own defaults (7 retries of 120 s) would keep a study from starting for half an hour.
_ENVIRONMENT = {
    "PGCONNECT_TIMEOUT": "2",  # seconds, tried three times; libpq's own is none, and what answers may be no PostgreSQL
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "OMP_NUM_THREADS": "1",
}


class MLflowProcess(WriterProcess):
    """A running :mod:`ammpl.study.views.mlflow_writer`.

    It begins at once to import MLflow, and to draft the database that is not there yet, which takes seconds: start it
    before Ray, and give it to :class:`~ammpl.study.views.tracking.MLflowTracker` after. Until then it touches no
    store, and it ends with its driver.

    Args:
        tracking_uri: any tracking URI of MLflow; None takes MLFLOW_TRACKING_URI, else :data:`DEFAULT_URI`.

    Attributes:
        uri: the one it took.
        where: the flag or the variable that the URI came from.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = tracking_uri or from_environment or DEFAULT_URI
        self.where = "MLFLOW_TRACKING_URI" if from_environment and not tracking_uri else "--tracking-uri"
        ours = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        # A client that repeats a request whose answer was lost makes a second run; the writer looks first.
        ours |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_TRACKING_URI": self.uri}
        self._drafts = tempfile.TemporaryDirectory(prefix="ammpl-mlflow-", ignore_cleanup_errors=True)
        ours["AMMPL_MLFLOW_DRAFTS"] = self._drafts.name
        super().__init__("ammpl.study.views.mlflow_writer", ours)

    def end(self) -> int:
        """End the process, by force if it has not ended, and return its exit code."""
        code = super().end()
        self._drafts.cleanup()
        return code

"""The process that talks to MLflow, over the pipes of :mod:`ammpl.study.views.writer_pipe`.

The store's address is in MLFLOW_TRACKING_URI. The first event is ``study``; its ``required`` says whether a store that
cannot be used ends the writer. Else it is tried for as long as the study runs, and some seconds after.

Answers, by ``re``: ``imported``; ``ready`` with the ``parent`` run, or ``refused`` with a ``text``; ``kept`` with the
``key`` of a trial whose end is stored; ``problem`` with a ``text``; ``done``.

It ends when stdin does; without a ``close`` before that, the driver has died.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ammpl.study.views.mlflow_runs import Runs
from ammpl.study.views.writer_pipe import Event, Events, available, connect, first_line, hold

FLUSH_SECONDS = 2.0  # the curves of running trials are about this old in the UI


def serve(events: Events, reply: Callable[..., None]) -> int:
    """Work off events until ``close`` or the end of the pipe (None); return the process's exit code."""
    import mlflow.store.db.utils
    from mlflow.tracking import MlflowClient

    reply(re="imported")
    mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # a database that is not there would be tried for 100 s
    draft = None
    with contextlib.suppress(Exception):  # the study is told of it, if it begins
        draft = drafted(os.environ["MLFLOW_TRACKING_URI"], Path(os.environ["AMMPL_MLFLOW_DRAFTS"]))
    study = events.get()
    if study is None:  # the study did not begin
        return 0
    try:
        lock = hold(study["folder"], "mlflow")
        if draft is not None:
            place(draft)
        runs = Runs(study, MlflowClient(), reply)
        if study["required"]:
            with contextlib.suppress(Exception):
                runs.open()
            runs.open()
    except Exception as error:
        reply(re="refused", text=first_line(error))
        return 1
    os.nice(5)  # training comes first

    ending: Event | None = None
    died = files_logged = False
    flush_at = 0.0
    while not ending and not died:
        for event in available(events, FLUSH_SECONDS):
            if event is None:
                died = ending is None
            elif event["op"] == "close":
                ending = event
            else:
                runs.take(event)
        if runs.parent and runs.children and not files_logged:  # the study's files are there before its first trial
            files_logged = True
            with contextlib.suppress(Exception):  # logged again at the end
                runs.log_study_files()
        runs.attempt(functools.partial(runs.store, only_finished=time.monotonic() < flush_at))
        if time.monotonic() >= flush_at:
            flush_at = time.monotonic() + FLUSH_SECONDS

    at = ending["time"] if ending else int(time.time() * 1000)
    runs.end_running(at, "the study's driver died" if died else "the study ended before the trial")
    complete = runs.insist(runs.store)
    complete = runs.insist(lambda: runs.finish_parent(at, died), once=not complete) and complete
    del lock
    if not complete:
        reply(re="problem", text=runs.last_error)
        return 1
    reply(re="done")
    return 0


def drafted(uri: str, folder: Path) -> tuple[Path, Path] | None:
    """Make the SQLite file that a study will need, elsewhere: the study may not begin, and leaves nothing then.

    Args:
        uri: of the store.
        folder: gets the draft.

    Returns:
        The draft and where it belongs; None where the file is there, or the store is none.
    """
    from mlflow.tracking import MlflowClient
    from sqlalchemy import make_url

    url = make_url(uri)
    if url.drivername != "sqlite" or url.query or not url.database or url.database == ":memory:":
        return None
    if Path(url.database).exists():
        return None
    draft = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
    return draft, Path(url.database)


def place(draft: tuple[Path, Path]) -> None:
    """Put a draft where it belongs, whole or not at all; where that fails, MLflow makes the file and says why not."""
    made, wanted = draft
    copy = wanted.with_name(f".{wanted.name}.{os.getpid()}")
    with contextlib.suppress(OSError, sqlite3.Error):
        try:
            closing = contextlib.closing
            with closing(sqlite3.connect(made)) as store, closing(sqlite3.connect(copy)) as other:
                store.backup(other)
            os.link(copy, wanted)  # fails where another study has been faster
        finally:
            copy.unlink(missing_ok=True)
    shutil.rmtree(made.parent, ignore_errors=True)


def main() -> int:
    """Connect :func:`serve` to the pipes."""
    return connect(serve)


if __name__ == "__main__":
    sys.exit(main())

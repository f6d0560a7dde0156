"""The copy of a study's searches for Optuna's own tools, seen from the driver; a process of its own writes it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from ammpl.errors import UserError
from ammpl.redaction import is_redacted, redacted
from ammpl.study.plan.optuna_search import OptunaSearch
from ammpl.study.record.event_log import FILE
from ammpl.study.record.own_addresses import check_own
from ammpl.study.trial import Outcome, Trial
from ammpl.study.views.writer_process import WriterProcess

FLAG = "--optuna-storage"
LINK = "optuna.json"
"""In the study folder: which storage has the search, unless it is the folder's own file."""


class OptunaCopy:
    """Observer that keeps the searches as Optuna studies in a storage, some seconds behind.

    What changes in a search is sent by the search itself; of trials it takes only that a new search may be there.

    Args:
        searches: what is copied; later ones may be added to it. The first one's copy has the study folder's name, that
            of a later version the version behind it.
        folder: the study folder.
        url: SQLAlchemy's, as Optuna takes it; None is ``optuna.sqlite3`` in the folder.
        process: a running :mod:`ammpl.study.views.optuna_writer`.

    Attributes:
        warnings: after :meth:`close`, what the storage lacks and why; empty when it has everything.
    """

    def __init__(self, searches: Sequence[OptunaSearch], folder: Path, url: str | None, process: WriterProcess):
        self.warnings: tuple[str, ...] = ()
        self._searches = searches
        self._folder = folder
        self._process = process
        self._shown = redacted(url) if url else str(folder / "optuna.sqlite3")
        self._sent: list[dict[int, int]] = []  # by search and number: how many intermediate values have been sent
        self._required = url is not None and _remembered(folder) != redacted(url)
        process.send(
            {
                "op": "storage",
                "url": url or file_url(folder.absolute() / "optuna.sqlite3"),
                "required": self._required,
                "folder": str(folder.absolute()),
                "token": _token(folder),
            }
        )
        self._follow()

    def check(self, seconds: float = 30.0) -> None:
        """Wait until a storage that was asked for can be used; not where it had the study before, and may be away.

        Raises:
            UserError: it cannot be used.
        """
        if not self._required:
            return
        answered = self._process.answered.wait(seconds)
        if "ready" not in self._process.answers:
            reason = self._process.failure() if answered else f"no answer within {seconds:g} s"
            self._process.end()
            raise unusable(self._shown, reason)
        (self._folder / LINK).write_text(json.dumps({"storage": self._shown}, indent=2) + "\n", encoding="utf-8")

    def trial_started(self, trial: Trial) -> None:
        """Take up a search that has begun."""
        self._follow()

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the search says it."""

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing: the search says it."""

    def close(self, patience: float = 60.0) -> None:
        """Wait until the storage has everything, then fill :attr:`warnings`.

        Args:
            patience: seconds without any sign of progress after which the writer is given up.
        """
        self._follow()
        self._process.send({"op": "close"})
        reason = self._process.drain(patience)
        if "done" in self._process.answers:
            return
        problems = [answer["text"] for answer in self._process.answers.get("problem", ())]
        reason = reason or next(iter(problems), None) or self._process.failure()
        self.warnings = (
            f"the Optuna storage {self._shown} lacks trials: {reason}. The study is not affected; once the storage is "
            f"back 'python tune.py resume {self._folder}' delivers them.",
        )

    def _follow(self) -> None:
        """Send what searches that are new here have so far, and from now on whatever changes in them."""
        for index, search in enumerate(self._searches[len(self._sent) :], len(self._sent)):
            self._sent.append({})
            version = search.study.study_name.removeprefix(self._searches[0].study.study_name)
            directions = [direction.name for direction in search.study.directions]
            self._process.send({"op": "search", "name": self._folder.name + version, "directions": directions})
            for trial in search.study.get_trials(deepcopy=False):
                if trial.state is not optuna.trial.TrialState.WAITING:  # enqueued, and not yet asked for
                    self._send(index, trial.number)
            search.changed = functools.partial(self._send, index)

    def _send(self, index: int, number: int) -> None:
        """Send what is new of a trial; all of it at first."""
        trial = self._searches[index].study.get_trials(deepcopy=False)[number]
        sent = self._sent[index].get(number)
        steps = list(trial.intermediate_values.items())
        self._sent[index][number] = len(steps)
        first = {
            "params": trial.params,
            "distributions": {
                name: optuna.distributions.distribution_to_json(distribution)
                for name, distribution in trial.distributions.items()
            },
            "start": _text(trial.datetime_start),
        }
        self._process.send(
            {
                "op": "trial",
                "search": index,
                "number": number,
                "state": trial.state.name,
                "values": trial.values,
                "user_attrs": trial.user_attrs,
                "system_attrs": trial.system_attrs,
                "end": _text(trial.datetime_complete),
                "steps": steps[sent or 0 :],
                **(first if sent is None else {}),
            }
        )


def file_url(path: Path) -> str:
    """Return the address of a SQLite file; some of a path's signs would part an address."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def unusable(shown: str, reason: str) -> UserError:
    """Return the error for a storage that cannot take a study."""
    fix = "start the server or mend the address; leave it out, and the search is in the study folder's optuna.sqlite3"
    if re.search(r"\b(ModuleNotFound|Import)Error\b", reason):
        fix = "install the database's driver; PostgreSQL's: pip install 'ammpl-study[postgresql]'"
    return UserError(FLAG, f"the Optuna storage cannot be used ({reason})", got=shown, fix=fix)


def remembered_storage(folder: Path, trusted: bool | None = None) -> str | None:
    """Return the address of the storage that a study was begun with; None where it is the folder's own file.

    Args:
        folder: the study's.
        trusted: whether the user has said that the folder's addresses are to be used; None where that cannot be said.

    Raises:
        UserError: the user has not given it to this study; or it has a password, which is not kept.
    """
    url = _remembered(folder)
    if url is not None:
        check_own(folder, LINK, url, f"name it yourself with {FLAG}", trusted)
    if url is not None and is_redacted(url):
        fix = "give it again, with the password"
        raise UserError(FLAG, "the study's storage has a password, which is not kept", got=url, fix=fix)
    return url


def _remembered(folder: Path) -> str | None:
    try:
        url = json.loads((folder / LINK).read_text(encoding="utf-8"))["storage"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return url if isinstance(url, str) else None


def _token(folder: Path) -> str:
    """Return what tells a study from others of the same name: a digest of its log's first line."""
    try:
        with (folder / FILE).open("rb") as log:
            first = log.readline()
    except OSError:
        first = str(time.time()).encode()
    return hashlib.sha256(first).hexdigest()[:16]


def _text(at: Any) -> str | None:
    return at.isoformat() if at else None

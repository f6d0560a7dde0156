"""The process that copies a study's searches to an Optuna storage, over pipes (:mod:`ammpl.study.views.writer_pipe`).

The first event is ``storage``: its ``url``, the study's ``folder`` and ``token``; ``required`` says whether a storage
that cannot be used ends the writer. Then ``search`` events, one an Optuna study: its ``name`` and ``directions``; and
``trial`` events, each with what is new of a trial of a ``search``, by the search's place from 0.

Answers, by ``re``: ``ready``, or ``refused`` with a ``text``; ``done``, or a ``problem`` with a ``text``.

Decisions are made on a study in memory, which is the truth. A trial that ended between two rounds goes over in one
transaction. After any failure the storage is asked what it has, so nothing comes twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ammpl.study.views.writer_pipe import Event, Events, Retries, available, connect, first_line, hold

FLUSH_SECONDS = 2.0  # dashboards are about this old,
LARGEST_SHARE = 0.1  # or older, so that writing takes at most this share of the time while trials run
TOKEN = "ammpl:study"  # user attribute: whose study it is, as others may have the same name


@dataclass
class Record:
    """All that is known of a trial, as events have told it."""

    number: int
    first: Event
    last: Event
    steps: dict[int, float] = field(default_factory=dict)

    def frozen(self) -> Any:
        """Return it as Optuna has it."""
        import optuna

        distributions = self.first["distributions"]
        return optuna.trial.FrozenTrial(
            number=self.number,
            trial_id=-1,
            state=optuna.trial.TrialState[self.last["state"]],
            value=None,
            values=self.last["values"],
            datetime_start=_time(self.first["start"]),
            datetime_complete=_time(self.last["end"]),
            params=self.first["params"],
            distributions={name: optuna.distributions.json_to_distribution(d) for name, d in distributions.items()},
            user_attrs=self.last["user_attrs"],
            system_attrs=self.last["system_attrs"],
            intermediate_values=dict(self.steps),
        )


class Copy:
    """A study in a storage, kept like the one in memory.

    Args:
        event: the ``search`` event.
        token: of the study that the search belongs to.

    Attributes:
        name: of the study there; None until :meth:`open` has found or made it.
        there: what the storage has, by number; None while that is not known.
    """

    def __init__(self, event: Event, token: str) -> None:
        self.name: str | None = None
        self.there: dict[int, Any] | None = None
        self._event = event
        self._token = token
        self._records: dict[int, Record] = {}
        self._news: set[int] = set()  # numbers of trials with something to store
        self._id = 0

    def take(self, event: Event) -> None:
        """Note what is new of a trial; nothing is stored before :meth:`store`."""
        record = self._records.setdefault(event["number"], Record(event["number"], event, event))
        record.last = event
        record.steps.update({int(step): float(value) for step, value in event["steps"]})
        self._news.add(record.number)

    def open(self, storage: Any) -> None:
        """Find the study, or make it under a name that is free."""
        import optuna

        directions = [optuna.study.StudyDirection[word] for word in self._event["directions"]]
        number = 1
        while self.name is None:
            name = self._event["name"] + (f"-{number}" if number > 1 else "")
            try:
                self._id = storage.create_new_study(directions, name)
                storage.set_study_user_attr(self._id, TOKEN, self._token)
                self.name = name
            except optuna.exceptions.DuplicatedStudyError:
                self._id = storage.get_study_id_from_name(name)
                owner = storage.get_study_user_attrs(self._id).get(TOKEN)
                if owner is None and not storage.get_n_trials(self._id):  # its maker died at once
                    storage.set_study_user_attr(self._id, TOKEN, owner := self._token)
                if owner == self._token:
                    self.name = name
                number += 1

    def store(self, storage: Any) -> int:
        """Store what is new; return how many trials that was."""
        self.open(storage)
        if self.there is None:
            self.there = {trial.number: trial for trial in storage.get_all_trials(self._id, deepcopy=False)}
        if any(_contradicts(self.there.get(number), self._records[number].frozen()) for number in self._news):
            self._begin_anew(storage)
        stored = 0
        for number in sorted(self._news):
            self._store(storage, self._records[number].frozen(), self.there)
            self._news.remove(number)
            stored += 1
        return stored

    def _begin_anew(self, storage: Any) -> None:
        """Write the whole study again.

        An interrupted study's trials have failed in the storage. They run again when it goes on, and Optuna has no way
        back for them.
        """
        storage.delete_study(self._id)
        self.name, self.there = None, {}
        self._news = set(self._records)
        self.open(storage)

    def _store(self, storage: Any, trial: Any, known: dict[int, Any]) -> None:
        there = known.get(trial.number)
        if there is None:
            trial._trial_id = storage.create_new_trial(self._id, trial)
        elif there.state.is_finished():
            return
        else:
            at = trial._trial_id = there._trial_id
            for step in trial.intermediate_values.keys() - there.intermediate_values.keys():
                storage.set_trial_intermediate_value(at, step, trial.intermediate_values[step])
            for attributes, now, then in (
                (storage.set_trial_user_attr, trial.user_attrs, there.user_attrs),
                (storage.set_trial_system_attr, trial.system_attrs, there.system_attrs),
            ):
                for name, value in now.items():
                    if name not in then or then[name] != value:
                        attributes(at, name, value)
            if trial.state.is_finished():
                storage.set_trial_state_values(at, trial.state, trial.values)
        known[trial.number] = trial


def _contradicts(there: Any, trial: Any) -> bool:
    """Whether what a storage has of a trial can never become what the trial is now. NaN equals NaN in texts."""
    if there is None:
        return False
    if repr(there.params) != repr(trial.params):
        return True
    steps = {step: repr(value) for step, value in trial.intermediate_values.items()}
    if any(steps.get(step) != repr(value) for step, value in there.intermediate_values.items()):
        return True
    ended = there.state.is_finished()
    return ended and (there.state is not trial.state or repr(there.values) != repr(trial.values))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


class Copies(Retries):
    """The studies of all searches in one storage.

    Args:
        event: the ``storage`` event.
    """

    def __init__(self, event: Event) -> None:
        super().__init__()
        self._event = event
        self._storage: Any = None
        self._copies: list[Copy] = []

    def take(self, event: Event) -> None:
        """Note what is new; nothing is stored before :meth:`store`."""
        if event["op"] == "search":
            self._copies.append(Copy(event, self._event["token"]))
        else:
            self._copies[event["search"]].take(event)

    def open(self) -> None:
        """Connect."""
        import optuna

        if self._storage is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            url = self._event["url"]
            how: dict[str, Any] = {} if url.startswith("sqlite") else {"pool_pre_ping": True}
            if url.startswith("postgresql"):
                how["connect_args"] = {"connect_timeout": 10}
            self._storage = optuna.storages.RDBStorage(url, engine_kwargs=how)

    def store(self) -> None:
        """Store what is new."""
        try:
            self.open()
            for copy in self._copies:
                self.stored += copy.store(self._storage)
        except Exception:
            for copy in self._copies:
                copy.there = None
            raise


def serve(events: Events, reply: Callable[..., None]) -> int:
    """Work off events until ``close`` or the end of the pipe (None); return the process's exit code."""
    storage = events.get()
    if storage is None:  # the study did not begin
        return 0
    copies = Copies(storage)
    try:
        lock = hold(storage["folder"], "optuna")
        if storage["required"]:
            copies.open()
    except Exception as error:
        reply(re="refused", text=first_line(error))
        return 1
    reply(re="ready")
    os.nice(5)  # training comes first
    copies.attempt(copies.open)  # which may make a database: not to be counted as writing

    more, pause = True, FLUSH_SECONDS
    while more:
        store_at = time.monotonic() + pause
        while more and (left := store_at - time.monotonic()) > 0:
            for event in available(events, left):
                if event is None or event["op"] == "close":
                    more = False
                else:
                    copies.take(event)
        began = time.monotonic()
        if more:
            copies.attempt(copies.store)
        pause = max(FLUSH_SECONDS, (time.monotonic() - began) / LARGEST_SHARE)
    complete = copies.insist(copies.store)
    del lock
    if not complete:
        reply(re="problem", text=copies.last_error)
        return 1
    reply(re="done")
    return 0


def main() -> int:
    """Connect :func:`serve` to the pipes."""
    return connect(serve)


if __name__ == "__main__":
    sys.exit(main())

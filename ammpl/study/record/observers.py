"""Telling the records, without which there is no study, and its views, which must not break it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from ammpl.study.trial import Observer, Outcome, Trial

log = logging.getLogger(__name__)


class Observers:
    """An observer that passes everything on to others, in order.

    The records are the study itself: what they raise ends it, so it is raised here, once the others have been told.
    The others are views of it: an exception in one of them is logged with its traceback, the first time, and the rest,
    and the study, go on.

    Args:
        observers: the views.
        records: told first; None keeps none.

    Attributes:
        problems: one line for each view that raised, for the end of the study.
        failure: what the records raised; after it they are told nothing more than the end.
        now: the time of what the views are being told, in seconds since 1970.
    """

    def __init__(self, observers: Sequence[Observer], records: Observer | None = None):
        self.now = time.time()
        self.failure: Exception | None = None
        self._records = records
        self._observers = list(observers)
        self._raised: dict[Observer, str] = {}
        self._held: list[tuple[float, str, tuple[object, ...]]] | None = None

    def hold(self) -> None:
        """Keep what is told from now on, for views that join later."""
        self._held = []

    def join(self, *observers: Observer) -> None:
        """Add views at the end; they are told what was held."""
        for at, what, told in self._held or ():
            self.now = at
            self._show(what, *told, to=observers)
        self._held = None
        self._observers += observers

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in views, one line each."""
        return tuple(self._raised.values())

    def trial_started(self, trial: Trial) -> None:
        """Pass on."""
        self._tell("trial_started", trial)

    def trial_reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._tell("trial_reported", trial, step, metrics)

    def trial_finished(self, trial: Trial, outcome: Outcome) -> None:
        """Pass on."""
        self._tell("trial_finished", trial, outcome)

    def write(self) -> None:
        """Have the records write what they hold back."""
        self._keep("write")

    def close(self) -> None:
        """Pass on."""
        self._tell("close")

    def _tell(self, what: str, *told: object) -> None:
        try:
            self._keep(what, *told)
        finally:
            self.now = self._time()
            if self._held is not None:
                self._held.append((self.now, what, told))
            self._show(what, *told, to=self._observers)

    def _time(self) -> float:
        at = getattr(self._records, "now", None)  # of an event that is told again, that of old
        return at.timestamp() if isinstance(at, datetime) else time.time()

    def _keep(self, what: str, *told: object) -> None:
        if self._records is None or (self.failure is not None and what != "close"):
            return
        try:
            getattr(self._records, what)(*told)
        except Exception as error:
            if self.failure is None:  # else the end failed for want of the same
                self.failure = error
                raise

    def _show(self, what: str, *told: object, to: Sequence[Observer]) -> None:
        for observer in to:
            try:
                getattr(observer, what)(*told)
            except Exception as error:
                if observer not in self._raised:
                    name = type(observer).__name__
                    self._raised[observer] = f"{name}.{what}: {type(error).__name__}: {error}"
                    log.warning("%s failed in %s; the study goes on", name, what, exc_info=True)

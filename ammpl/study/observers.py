"""Telling the records, without which there is no study, and its views, which must not break it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

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
    """

    def __init__(self, observers: Sequence[Observer], records: Observer | None = None):
        self.failure: Exception | None = None
        self._records = records
        self._observers = list(observers)
        self._raised: dict[Observer, str] = {}

    def join(self, *observers: Observer) -> None:
        """Add views at the end."""
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

    def close(self) -> None:
        """Pass on."""
        self._tell("close")

    def _tell(self, what: str, *told: object) -> None:
        try:
            self._keep(what, *told)
        finally:
            self._show(what, *told)

    def _keep(self, what: str, *told: object) -> None:
        if self._records is None or (self.failure is not None and what != "close"):
            return
        try:
            getattr(self._records, what)(*told)
        except Exception as error:
            if self.failure is None:  # else the end failed for want of the same
                self.failure = error
                raise

    def _show(self, what: str, *told: object) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*told)
            except Exception as error:
                if observer not in self._raised:
                    name = type(observer).__name__
                    self._raised[observer] = f"{name}.{what}: {type(error).__name__}: {error}"
                    log.warning("%s failed in %s; the study goes on", name, what, exc_info=True)

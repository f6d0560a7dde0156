"""Telling several observers without letting any of them break the study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ammpl.study.trial import Observer, Outcome, Trial

log = logging.getLogger(__name__)


class Observers:
    """An observer that passes everything on to others, in order.

    An exception in one of them is logged with its traceback, the first time; the others and the study go on.

    Attributes:
        problems: one line for each observer that raised, for the end of the study.
    """

    def __init__(self, observers: Sequence[Observer]):
        self._observers = list(observers)
        self._raised: dict[Observer, str] = {}

    def join(self, *observers: Observer) -> None:
        """Add observers at the end."""
        self._observers += observers

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong in observers, one line each."""
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
        for observer in self._observers:
            try:
                getattr(observer, what)(*told)
            except Exception as error:
                if observer not in self._raised:
                    name = type(observer).__name__
                    self._raised[observer] = f"{name}.{what}: {type(error).__name__}: {error}"
                    log.warning("%s failed in %s; the study goes on", name, what, exc_info=True)

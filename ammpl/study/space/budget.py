"""When a study hands out no more trials of its first phase, and when it gives a trial, or itself, up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from ammpl.study.space.named import Section
from ammpl.study.trial import FIRST_PHASES, Outcome, State, Trial

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_DURATION_IN_JSON: dict[str, JsonValue] = {"pattern": r"^(?=.*[1-9])(?:\d{1,6}h)?(?:\d{1,6}m)?(?:\d{1,6}s)?$"}
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")  # steps, sizes, addresses: not what makes two failures different
_MOST_REASONS = 3
FIRST_TRIALS = 5
"""When all of them fail the same way, so would the others."""


class Budget(Section):
    """What ends a search, or an ablation before all its trials have run; whichever comes first.

    What runs by then runs to its end, and confirmation and test follow, but for ``failures``: they end the study.

    Attributes:
        trials: how many begin; None for no such limit, as in the others.
        time: how long trials begin, as in ``90s``, ``10m``, ``2h`` or ``1h30m``.
        gpu_hours: how long trials begin, in hours that the trials that have ended held a GPU, times its share.
        target: no trial begins once a configuration's objective is as good as this. Of a search only.
        patience: no trial begins once so many ended, one after the other, none better than the best. Of a search only.
        failures: the study ends once so many trials of it FAILED or were LOST one after the other; it ends sooner
            where the first five all did so the same way.
        trial_time: how long a trial of any phase may run; one that does not end by then is FAILED.
    """

    trials: int | None = Field(None, ge=1)
    time: str | None = Field(None, json_schema_extra=_DURATION_IN_JSON)
    gpu_hours: float | None = Field(None, gt=0)
    target: float | None = None
    patience: int | None = Field(None, ge=1)
    failures: int = Field(10, ge=1)
    trial_time: str | None = Field(None, json_schema_extra=_DURATION_IN_JSON)

    @field_validator("time", "trial_time", mode="before")
    @classmethod
    def _check(cls, time: Any) -> Any:
        if time is not None:
            duration_seconds(time)
        return time

    @property
    def seconds(self) -> float | None:
        """The time, in seconds."""
        return None if self.time is None else duration_seconds(self.time)

    @property
    def trial_seconds(self) -> float | None:
        """The time of a trial, in seconds."""
        return None if self.trial_time is None else duration_seconds(self.trial_time)

    @property
    def ends_search(self) -> bool:
        """Whether a search ends by it alone."""
        return any(limit is not None for limit in (self.trials, self.time, self.gpu_hours, self.patience))


class Spending:
    """What is used of a budget. It depends on what it is told, in that order, and on the clock: nothing else.

    Args:
        budget: what there is.
        direction: of the objective.
        clock: seconds since the study began.
    """

    def __init__(self, budget: Budget, direction: Literal["maximize", "minimize"], clock: Callable[[], float]):
        self._budget = budget
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._clock = clock
        self._gpu_seconds = 0.0
        self._best: tuple[str, float] | None = None  # candidate and objective
        self._since_best = 0
        self._failures: list[str] = []  # the reasons, since a trial last ended well
        self._worked = False  # whether one ever has

    def extend(self, budget: Budget) -> None:
        """Go on with another budget: what has been spent is spent, but failures and patience count from now on."""
        self._budget = budget
        self._since_best = 0
        self._failures = []

    def trial_ended(self, trial: Trial, outcome: Outcome) -> None:
        """Count a trial that ran; one that was answered from a record did not."""
        self._gpu_seconds += outcome.gpus * outcome.seconds
        if trial.phase not in FIRST_PHASES or outcome.duplicate_of is not None:
            return
        if outcome.state in (State.FAILED, State.LOST):
            self._failures.append(outcome.reason or "")
        else:
            self._failures.clear()
            self._worked = True

    def configuration_ended(self, candidate: str, value: float | None) -> None:
        """Count a configuration of the search; ``value`` is its objective, None if it has none that counts."""
        if value is not None and (self._best is None or self._sign * value > self._sign * self._best[1]):
            self._best, self._since_best = (candidate, value), 0
        else:
            self._since_best += 1

    def used_up(self, begun: int) -> str | None:
        """Return why no further trial of the first phase begins, after ``begun`` ones; None if one may."""
        budget, after = self._budget, f"after {trials_text(begun)}"
        if budget.trials is not None and begun >= budget.trials:
            return f"budget of {trials_text(budget.trials)} used up"
        if budget.seconds is not None and self._clock() >= budget.seconds:
            return f"time budget of {duration_text(budget.seconds)} used up {after}"
        if budget.gpu_hours is not None and self._gpu_seconds >= 3600 * budget.gpu_hours:
            return f"budget of {budget.gpu_hours:g} GPU-hours used up {after}"
        if self._best is None:
            return None
        best = f"trial {self._best[0]} ({self._best[1]:.4f})"
        if budget.target is not None and self._sign * self._best[1] >= self._sign * budget.target:
            return f"target of {budget.target:g} reached by {best}, {after}"
        if budget.patience is not None and self._since_best >= budget.patience:
            return f"no improvement in {trials_text(self._since_best)} since {best}, {after}"
        return None

    def hopeless(self) -> str | None:
        """Return why the study is to end; None if it may go on."""
        first = [_NUMBER.sub("#", reason) for reason in self._failures[:FIRST_TRIALS]]
        if not self._worked and len(first) == FIRST_TRIALS and len(set(first)) == 1:
            return f"the first {FIRST_TRIALS} trials all failed the same way: {self._failures[FIRST_TRIALS - 1]}"
        last = self._failures[-self._budget.failures :]
        if len(last) < self._budget.failures:
            return None
        texts = {_NUMBER.sub("#", reason): reason for reason in last}
        ways = Counter(_NUMBER.sub("#", reason) for reason in last).most_common()
        shown = "; ".join(f"{count} × {texts[way]}" for way, count in ways[:_MOST_REASONS])
        return f"{len(last)} trials in a row failed: {shown}" + ("; …" if len(ways) > _MOST_REASONS else "")


def duration_seconds(text: Any) -> float:
    """Return the seconds of ``90s``, ``10m``, ``2h`` or ``1h30m``; raises ValueError for anything else, and for 0."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ValueError("must be a time above 0, in hours, minutes and seconds, such as 90s, 10m, 2h or 1h30m")
    return float(total)


def duration_text(seconds: float) -> str:
    """Return a time for people: ``1 h 30 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def trials_text(count: int) -> str:
    """Return a number of trials for people."""
    return f"{count} trial" + ("" if count == 1 else "s")

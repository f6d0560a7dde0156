"""When a study hands out no more trials of its first phase: after so many, or after so much time."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from ammpl.study.named import Section

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")


class Budget(Section):
    """What ends a search, or an ablation before all its trials have run; whichever is used up first.

    Attributes:
        trials: how many begin; None for no such limit.
        time: how long trials begin, as in ``90s``, ``10m``, ``2h`` or ``1h30m``; None for no such limit. What runs by
            then runs to its end.
    """

    trials: int | None = Field(None, ge=1)
    time: str | None = None

    @field_validator("time", mode="before")
    @classmethod
    def _check(cls, time: Any) -> Any:
        if time is not None:
            duration_seconds(time)
        return time

    @property
    def seconds(self) -> float | None:
        """The time, in seconds."""
        return None if self.time is None else duration_seconds(self.time)


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

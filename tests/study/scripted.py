"""Trials and outcomes for tests of observers, without a study."""

from __future__ import annotations

from collections.abc import Mapping

from ammpl.config import Scalar, SeedConfig, resolve
from ammpl.study.trial import Outcome, Phase, State, Trial


def trial(number: int = 0, **params: Scalar) -> Trial:
    values = {f"model.{name.replace('__', '.')}": value for name, value in params.items()}
    return Trial(f"search-{number:04d}", "search", str(number), number, 1, resolve("ammpl", values), values)


def other_trial(phase: Phase, candidate: str, repeat: int) -> Trial:
    values = {f"seeds.{name}": value for name, value in SeedConfig.of_repeat(0, repeat).model_dump().items()}
    method = "coop" if candidate == "coop" else "ammpl"
    return Trial(f"{phase}-{candidate}-r{repeat}", phase, candidate, None, repeat, resolve(method, values))


def outcome(
    state: State = State.COMPLETE,
    value: float | None = 0.5,
    step: int | None = 40,
    metrics: Mapping[str, float] | None = None,
    seconds: float = 1.5,
    reason: str | None = None,
) -> Outcome:
    if metrics is None:
        metrics = {} if value is None else {"validation/accuracy": value}
    return Outcome(state, value, step, metrics, seconds, reason)

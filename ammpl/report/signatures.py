"""Failure signatures: how a trial's curves look when something is wrong that its accuracy alone does not show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ammpl.report.results import StudyResult, TrialResult
from ammpl.report.tables import Column, Table
from ammpl.study.trial import State

MOST_LISTED = 4
FEWEST_EVALUATIONS = 3
"""A trend needs as many."""


@dataclass(frozen=True)
class Signature:
    """A way to fail.

    Attributes:
        name: what it is called.
        rule: how it is recognised.
        shows: whether a trial shows it; None where its curves do not tell.
    """

    name: str
    rule: str
    shows: Callable[[TrialResult], bool | None]


def _last(metric: str, test: Callable[[float], bool]) -> Callable[[TrialResult], bool | None]:
    def shows(trial: TrialResult) -> bool | None:
        value = trial.metrics.get(metric)
        return None if value is None or trial.config.get("model.mask.kind") == "none" else test(value)

    return shows


def _curve(trial: TrialResult, metric: str) -> list[float]:
    return [metrics[metric] for _, metrics in trial.curve if metric in metrics]


def _gap_grows(trial: TrialResult) -> bool | None:
    base, new = _curve(trial, "validation/accuracy"), _curve(trial, "validation/new_accuracy")
    if len(base) < 2 or len(base) != len(new):
        return None
    return (base[-1] - new[-1]) - (base[0] - new[0]) > 0.05


def _plateau(trial: TrialResult) -> bool | None:
    loss = _curve(trial, "train/loss")
    if len(loss) < FEWEST_EVALUATIONS:
        return None
    return loss[-1] > 0.99 * loss[-2] and loss[-1] > 0.5 * loss[0]


def _unstable(trial: TrialResult) -> bool | None:
    norms = _curve(trial, "train/gradient_norm")
    if len(norms) < FEWEST_EVALUATIONS:
        return None
    return max(norms) > 10 * statistics.median(norms)


def _diverged(trial: TrialResult) -> bool | None:
    return trial.state is State.FAILED and "loss is " in (trial.reason or "")


SIGNATURES: tuple[Signature, ...] = (
    Signature(
        "image prompt idle",
        "at the end over 99 % of the patches are kept: at test time there is no image prompt",
        _last("mask/keep_rate", lambda rate: rate > 0.99),
    ),
    Signature(
        "everything masked", "under 5 % of the patches are kept", _last("mask/keep_rate", lambda rate: rate < 0.05)
    ),
    Signature(
        "mask collapsed",
        "mean entropy under .05 bit a patch: probabilities stand at 0 or 1, and no gradient moves them",
        _last("mask/entropy", lambda bits: bits < 0.05),
    ),
    Signature(
        "sampling too noisy",
        "mean entropy over .95 bit a patch: masks are coin flips",
        _last("mask/entropy", lambda bits: bits > 0.95),
    ),
    Signature("new classes lost", "base minus new accuracy grew by over .05 in training", _gap_grows),
    Signature("loss plateau", "the loss fell by under 1 % at last, and never to half of its first value", _plateau),
    Signature("unstable gradients", "a gradient norm over ten times the trial's median", _unstable),
    Signature("diverged", "the loss became NaN or infinite", _diverged),
)


def signatures_table(study: StudyResult) -> Table:
    """Return each signature with the trials that show it, of those whose curves tell."""
    trained = [trial for trial in study.of_phase("search", "confirm", "ablation") if trial.duplicate_of is None]
    rows: list[tuple[str | int, ...]] = []
    for signature in SIGNATURES:
        told = {trial.key: shows for trial in trained if (shows := signature.shows(trial)) is not None}
        found = [key for key, shows in told.items() if shows]
        rows.append((signature.name, signature.rule, len(found), len(told), _listed(found)))
    return Table(
        "failure-signatures",
        "Failure signatures",
        (Column("signature"), Column("recognised by"), Column("trials", "d"), Column("of", "d"), Column("which")),
        tuple(rows),
        "Of the trials whose evaluations tell; pruned ones count, trials answered from a record do not.",
        strong=tuple(index for index, row in enumerate(rows) if row[2]),
    )


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:MOST_LISTED]) + (f", and {len(keys) - MOST_LISTED} more" if len(keys) > MOST_LISTED else "")

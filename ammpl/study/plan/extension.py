"""A later version of a study: which space and budget it has, and what it knows of the trials before it."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from ammpl.errors import UserError
from ammpl.study.record.event_log import History
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.budget import Budget
from ammpl.study.space.search_space import SearchSpace, parse_space
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import State, Trial

_KEPT = ("name", "method", "seed", "repeats", "objective", "second_objective", "confirm")
_UNFIT = "the study would compare what cannot be compared: run it as a study of its own"


@dataclass(frozen=True)
class Extension:
    """What a study gets in addition.

    Attributes:
        trials: of the search or ablation.
        seconds: in which trials of it may begin.
        repeats: of an ablation.
        space: another one for the search from now on; of its budget, ``trials`` and ``time`` are not used.
    """

    trials: int = 0
    seconds: float = 0.0
    repeats: int = 0
    space: StudySpace | None = None


def extended_space(old: StudySpace, history: History, more: Extension) -> StudySpace:
    """Return the space of a study's next version.

    Args:
        old: that of the present version.
        history: what has run.

    Raises:
        UserError: the extension does not fit the study.
    """
    new: StudySpace
    if isinstance(old, AblationSpace):
        if more.space is not None:
            raise UserError("--space", "belongs to a search, and this study is an ablation", fix=_UNFIT)
        if more.trials and old.budget.trials is None:
            fix = "--repeats +5 adds repeats of all variants"
            raise UserError("--trials", "this ablation has no budget of trials: all of them have begun", fix=fix)
        unused = (number for number in range(1, 2**31) if number not in old.repeats)
        new = old.model_copy(update={"repeats": (*old.repeats, *(next(unused) for _ in range(more.repeats)))})
    else:
        if more.repeats:
            rule = "belongs to an ablation: a search's repeats decide what its objective is"
            raise UserError("--repeats", rule, fix="--trials +50 adds trials")
        # Resolved as the one before, so that the two can be compared.
        new = old if more.space is None else parse_space(_checked(old, more.space).resolved(), "--space")
    return new.model_copy(update={"budget": _grown(old, new.budget, history, more)})


def _checked(old: SearchSpace, new: StudySpace) -> SearchSpace:
    """Return the new space; raises UserError where its trials could not be compared with those before."""
    if isinstance(new, AblationSpace):
        raise UserError("--space", "is an ablation, and this study is a search", fix=_UNFIT)
    for field in _KEPT:
        then, now = getattr(old, field), getattr(new, field)
        if then != now:
            raise UserError(f"--space: {field}", f"must stay {then!r}", got=now, fix=_UNFIT)
    values = new.base.flat()
    for name, value in old.base.flat().items():
        if not name.startswith(("data.", "backbone.")):
            continue
        if (name in old.parameters) != (name in new.parameters):
            raise UserError(f"--space: {name}", "must stay fixed or searched, as it was", fix=_UNFIT)
        if name not in old.parameters and values[name] != value:
            raise UserError(f"--space: {name}", f"must stay {value!r}", got=values[name], fix=_UNFIT)
    return new


def _grown(old: StudySpace, rules: Budget, history: History, more: Extension) -> Budget:
    """Return the budget of the next version: trials and time grow, other rules are those of its space file."""
    phase = "ablation" if isinstance(old, AblationSpace) else "search"
    events = [line.event for line in history.told if line.event["event"] == "started"]
    begun = len(
        {event["number"] if phase == "search" else event["key"] for event in events if event["phase"] == phase}
    )
    trials, seconds = old.budget.trials, old.budget.seconds
    if more.trials:
        trials = (begun if trials is None else trials) + more.trials
    elif more.seconds and phase == "search" and trials is not None and trials <= begun:
        trials = None  # time alone: as many as begin in it
    if more.seconds:
        seconds = max(seconds or 0.0, history.seconds) + more.seconds
    elif seconds is not None and seconds <= history.seconds:
        flag = f"--{'trials' if more.trials else 'repeats'} +{more.trials or more.repeats}"
        rule = f"none could begin: the study's time budget of {old.budget.time} is used up"
        raise UserError(flag, rule, fix=f"{flag} --time-budget +1h lets trials begin for another hour")
    return rules.model_copy(update={"trials": trials, "time": None if seconds is None else _written(seconds)})


def _written(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}h{minutes % 60}m{rest}s"


def draw_alike(one: SearchSpace, other: SearchSpace) -> bool:
    """Return whether two resolved spaces give the same search: parameters in the same order, sampler and pruner."""

    def drawn(space: SearchSpace) -> object:
        return list(space.parameters.items()), space.fixed, space.sampler, space.pruner

    return drawn(one) == drawn(other)


def version_seed(seed: int, version: int) -> int:
    """Return the sampler's seed in another space: the study's own would draw the first numbers once more."""
    return int.from_bytes(hashlib.sha256(f"{seed}/version {version}".encode()).digest()[:4], "big")


def known_trial(space: SearchSpace, trial: Trial, told: FrozenTrial) -> FrozenTrial | None:
    """Return an ended trial as one of another space; None if that cannot give exactly its configuration.

    Args:
        trial: the configuration, on any repeat.
        told: what Optuna was told of it.
    """
    if told.user_attrs.get("state") == State.LOST:
        return None
    given = optuna.trial.FixedTrial(dict(trial.config.flat()))
    try:
        with warnings.catch_warnings():  # of values out of range, which are refused below
            warnings.simplefilter("ignore")
            params = space.suggest(given)
        known = optuna.trial.create_trial(
            state=told.state,
            values=told.values,
            params=params,
            distributions=given.distributions,
            intermediate_values=told.intermediate_values,
            user_attrs={**told.user_attrs, "key": trial.key},
        )
        same = space.config(params, trial.repeat).sha256 == trial.config.sha256
    except (ValueError, UserError):
        return None
    return known if same else None

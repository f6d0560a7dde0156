"""What workers do with the trials of a space, and what they need before the first one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from ammpl.config import TrialConfig
from ammpl.data.home import DataHome
from ammpl.study.engine.preparation import DataNotes, prepare_data
from ammpl.study.engine.worker import execute as train_or_test
from ammpl.study.engine.worker import prepare as load
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Execute


@dataclass(frozen=True)
class Work:
    """What workers do: with a trial, and before the first one; what is to be said of the data."""

    execute: Execute
    prepare: Callable[[], None] | None
    notes: DataNotes


def work_for(space: StudySpace, home: DataHome | None, execute: Execute | None, quiet: bool) -> Work:
    """Prepare the data of a space's trials; return the work.

    Args:
        home: where data lie; None takes the environment's.
        execute: what to do with a trial; None trains and tests.
        quiet: show no progress.

    Raises:
        UserError: see :func:`ammpl.study.engine.preparation.prepare_data`.
    """
    if execute is not None:
        return Work(execute, None, DataNotes())
    home, configs = home or DataHome(), configurations(space)
    notes = prepare_data(configs, home, quiet)
    return Work(functools.partial(train_or_test, home=home), functools.partial(load, configs, home), notes)


def configurations(space: StudySpace) -> list[TrialConfig]:
    """Return configurations of each kind that the study runs, for checks before it starts."""
    if isinstance(space, AblationSpace):
        most = max(setting.shots for setting in space.settings)  # where these suffice, fewer do
        settings = [setting for setting in space.settings if setting.shots == most]
        return [space.config(variant, space.repeats[0], setting) for setting in settings for variant in space.variants]
    baselines = space.confirm.baselines if space.confirm else ()
    return [*space.extreme_configs(), *(space.baseline(method, space.repeats[0]) for method in baselines)]

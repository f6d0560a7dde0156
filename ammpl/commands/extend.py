"""Adding to a study."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

import ammpl
from ammpl.commands.command import Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, study_folder, surroundings_of
from ammpl.errors import UserError
from ammpl.study.space.budget import duration_seconds
from ammpl.study.space.space_file import read_space


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py extend``."""
    parser.usage = "tune.py extend STUDY --trials +N [flags]"
    parser.description = """\
Add to a study, ended or stopped: a new version of it, in the same folder and
the same MLflow runs. What has run is kept; a search goes on as if it had been
longer from the start. Its best are confirmed again, with those confirmed
before. A winner that was not tested yet is tested, which is counted as another
opening of the test split. With another space the sampler starts from the
earlier trials that lie in it; the others are no longer candidates."""
    parser.epilog = """\
examples:
  python tune.py extend studies/default-20260101-120000 --trials +50
  python tune.py extend STUDY --space narrower.yaml --time-budget +1h
  python tune.py extend studies/ablation_mask-20260101-120000 --repeats +5

exit codes: those of tune.py"""
    parser.add_argument_group("what is extended").add_argument(
        "study", type=study_folder, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    more = parser.add_argument_group("by how much (default: nothing)")
    more.add_argument("--trials", metavar="+N", help="trials of the search, e.g. +50")
    more.add_argument("--time-budget", metavar="+TIME", help="in which trials may begin, e.g. +1h30m")
    more.add_argument("--repeats", metavar="+N", help="repeats of an ablation's variants, e.g. +5")
    more.add_argument(
        "--space", type=Path, metavar="SPACE.yaml", help="what is searched from now on (default: as before)"
    )
    add_surroundings(parser, new=False)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py extend``."""
    study = ammpl.study.open(arguments.study)
    trials = _more("--trials", arguments.trials, int, "--trials +50")
    time = _more("--time-budget", arguments.time_budget, duration_seconds, "--time-budget +1h30m")
    repeats = _more("--repeats", arguments.repeats, int, "--repeats +5")
    space = None if arguments.space is None else read_space(arguments.space)
    study = study.extend(int(trials or 0), time, int(repeats or 0), space, **surroundings_of(arguments))
    show(study, Console())
    return exit_code(study)


def _more(flag: str, text: str | None, read: Callable[[str], float], fix: str) -> str | None:
    """Return what a flag adds, None if it is not given: ``+50``, never ``50``, which could mean in all."""
    if text is None:
        return None
    try:
        value = read(text[1:])
    except ValueError:
        value = 0
    if not (text.startswith("+") and text[1:2].isdigit() and value > 0):
        raise UserError(flag, "must say how much more, with a plus", got=text, fix=fix)
    return text[1:]


COMMAND = Command("when it is over", describe, run)

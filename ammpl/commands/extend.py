"""Adding to a study."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ammpl.commands.command import Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, options_of
from ammpl.errors import UserError
from ammpl.study.budget import duration_seconds
from ammpl.study.space_file import read_space


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py extend``."""
    parser.usage = "tune.py extend STUDY --trials +N [flags]"
    parser.description = """\
Add to a study, ended or stopped: a new version of it, in the same folder and
the same MLflow runs. What has run is kept; a search goes on as if it had been
longer from the start. Its best are confirmed again, with those confirmed
before. A winner that was not tested yet is tested, which is counted as another
opening of the test split. With another space the sampler begins with those
trials that the space can give; others are no candidates any more."""
    parser.epilog = """\
examples:
  python tune.py extend studies/default-20260101-120000 --trials +50
  python tune.py extend STUDY --space narrower.yaml --time-budget +1h
  python tune.py extend studies/ablation_mask-20260101-120000 --repeats +5

exit codes: as of tune.py"""
    parser.add_argument_group("what is extended").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
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
    from ammpl.study.extension import Extension
    from ammpl.study.replay import check_study

    check_study(arguments.study)
    more = Extension(
        trials=int(_more("--trials", arguments.trials, int, "--trials +50")),
        seconds=_more("--time-budget", arguments.time_budget, duration_seconds, "--time-budget +1h30m"),
        repeats=int(_more("--repeats", arguments.repeats, int, "--repeats +5")),
        space=None if arguments.space is None else read_space(arguments.space),
    )
    if not (more.trials or more.seconds or more.repeats):
        fix = "give --trials +50, --time-budget +1h or --repeats +5"
        raise UserError("extend", "needs to know by how much", fix=fix)
    options = options_of(f"extending {arguments.study}", arguments)

    from ammpl.study.study import extend_study

    summary = extend_study(arguments.study, more, options)
    show(summary, Console())
    return exit_code(summary)


def _more(flag: str, text: str | None, read: Callable[[str], float], fix: str) -> float:
    """Return what a flag adds, 0 if it is not given: ``+50``, never ``50``, which could mean in all."""
    if text is None:
        return 0
    try:
        value = read(text[1:])
    except ValueError:
        value = 0
    if not (text.startswith("+") and text[1:2].isdigit() and value > 0):
        raise UserError(flag, "must say how much more, with a plus", got=text, fix=fix)
    return value


COMMAND = Command("when it is over", describe, run)

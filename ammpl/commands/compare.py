"""What differs between two studies."""

from __future__ import annotations

import argparse

from rich.console import Console

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.surroundings import add_help, study_folder


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py compare``."""
    parser.usage = "tune.py compare A B"
    parser.description = """\
Say what differs between two studies: first the settings, versions and machine
that are not the same, then the results of what both have, B minus A, paired
where their repeats match. Nothing is run or changed."""
    parser.epilog = """\
example:
  python tune.py compare studies/default-20260101-120000 studies/mine

exit codes: 0 shown, 2 something to mend (no study, damaged log)"""
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "first", type=study_folder, metavar="A", help="a study's folder, e.g. studies/default-20260101-120000"
    )
    what.add_argument("second", type=study_folder, metavar="B", help="another's, e.g. studies/mine-20260102-120000")
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py compare``."""
    console = Console()
    for table in ammpl.study.open(arguments.first).compare(arguments.second):
        console.print(table.terminal())
    return EXIT_SUCCESS


COMMAND = Command("when it is over", describe, run)

"""How far a study is."""

from __future__ import annotations

import argparse
from pathlib import Path

from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.surroundings import add_help


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py status``."""
    parser.usage = "tune.py status STUDY"
    parser.description = """\
Say how far a study is, running or not, from its folder alone: trials by phase
and state, the best one, the time. Nothing is started or changed."""
    parser.epilog = """\
example:
  python tune.py status studies/default-20260101-120000

exit codes: 0 said, 2 something to mend (no study, damaged log)"""
    parser.add_argument_group("what is looked at").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py status``."""
    from ammpl.study.status import status

    print("\n".join(status(arguments.study)))
    return EXIT_SUCCESS


COMMAND = Command("while it runs", describe, run)

"""A graceful end of a running study."""

from __future__ import annotations

import argparse
from pathlib import Path

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, place


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py stop``."""
    parser.usage = "tune.py stop STUDY"
    parser.description = """\
Ask a running study to stop gracefully, from another terminal or another machine
that has its folder: running trials go on to their end, no more begin, and the
summary so far is written. The study can be resumed or extended later. Ctrl-C in
its own terminal is faster: it ends running trials, which then run again."""
    parser.epilog = """\
example:
  python tune.py stop studies/default-20260101-120000

exit codes: 0 asked, 2 something to mend (no study, or it does not run); the
study's own is 130"""
    parser.add_argument_group("what is stopped").add_argument(
        "study", type=place, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py stop``."""
    if isinstance(arguments.study, Path):
        say(ammpl.study.Study(arguments.study).stop())
    else:
        from ammpl.study.views.remote import ask_to_stop

        say(ask_to_stop(arguments.study))
    return EXIT_SUCCESS


COMMAND = Command("while it runs", describe, run)

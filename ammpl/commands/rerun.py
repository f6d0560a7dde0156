"""Repeating a finished study."""

from __future__ import annotations

import argparse

from rich.console import Console

import ammpl
from ammpl.commands.command import EXIT_DIFFERENT, EXIT_SUCCESS, Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, study_folder, surroundings_of
from ammpl.escaping import terminal


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py rerun``."""
    parser.usage = "tune.py rerun STUDY [flags]"
    parser.description = """\
Repeat a finished study, search or ablation, from the resolved space in its
folder, then compare every trial's values, old and new, and every cell, the
trials that differ by their repeat alone: identical, within noise, different. A
search gives the same trials again only one at a time (--concurrency 1, then and
now), because its sampler learns from what has ended. A study that had a time
budget is repeated with the number of trials that had begun, and no time."""
    parser.epilog = """\
examples:
  python tune.py rerun studies/default-20260101-120000 --concurrency 1
  python tune.py rerun studies/ablation_mask-20260101-120000 --only variant=none

exit codes: 0 all identical, 1 something differs, 2 something to mend (file,
flag, disk), 130 interrupted"""
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "study",
        type=study_folder,
        metavar="STUDY",
        help="a finished study's folder, e.g. studies/default-20260101-120000",
    )
    what.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="variant=NAME|state=failed",
        help="of an ablation: some variants, variant=none,random, or the trials that"
        " ended so, state=failed,lost (default: all of it)",
    )
    add_surroundings(parser)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py rerun``."""
    from ammpl.study.rerun import chosen

    again = ammpl.study.Study(arguments.study).rerun(
        chosen(arguments.only, arguments.study), **surroundings_of(arguments)
    )
    study, comparison = again
    console = Console()
    show(study, console)
    if comparison is None:
        return exit_code(study)
    console.print(comparison.table())
    console.print(comparison.cell_table())
    console.print(terminal(comparison.verdict), markup=False, highlight=False, soft_wrap=True)
    return EXIT_SUCCESS if comparison.identical else EXIT_DIFFERENT


COMMAND = Command("when it is over", describe, run)

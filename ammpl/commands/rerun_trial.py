"""Repeating one trial."""

from __future__ import annotations

import argparse

import ammpl
from ammpl.commands.command import EXIT_DIFFERENT, EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, add_home, study_folder


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py rerun-trial``."""
    parser.usage = "tune.py rerun-trial STUDY TRIAL [flags]"
    parser.description = """\
Run one trial of a study again: the same configuration, seeds and data, in this
process, in a scratch folder; the study is not changed. Says "match", or the
first value that differs, and which of machine, versions and device are not
those of then. A pruned trial is compared up to where it was stopped, a failed
one by its reason. A test scores the test split again, by the same learnables."""
    parser.epilog = """\
examples:
  python tune.py rerun-trial studies/default-20260101-120000 17
  python tune.py rerun-trial studies/default-20260101-120000 confirm-coop-r3

exit codes: 0 match, 1 different, 2 something to mend (trial, file, flag), 130
interrupted"""
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "study", type=study_folder, metavar="STUDY", help="a study's folder, e.g. studies/default-20260101-120000"
    )
    what.add_argument("trial", metavar="TRIAL", help="a number of the search, e.g. 17, or any key, e.g. test-0017-r2")
    add_home(parser)
    other = parser.add_argument_group("other")
    other.add_argument("--quiet", action="store_true", help="say the result only (default: each evaluation too)")
    add_help(other)


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py rerun-trial``."""
    tell = say if not arguments.quiet else lambda text: None
    study = ammpl.study.Study(arguments.study)
    verdict = study.rerun_trial(arguments.trial, arguments.data_root, arguments.store, tell)
    say(*verdict.lines())
    return EXIT_SUCCESS if verdict.difference is None else EXIT_DIFFERENT


COMMAND = Command("when it is over", describe, run)

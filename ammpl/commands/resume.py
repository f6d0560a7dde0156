"""Going on with a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ammpl.commands.command import EXIT_NO_RESULT, EXIT_SUCCESS, Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, options_of


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py resume``."""
    parser.usage = "tune.py resume STUDY [flags]"
    parser.description = """\
Go on with a study that was interrupted, or whose process or machine died.
Trials that ended are not run again, those that had begun are, under the same
names; sampler and pruner go on as if nothing had happened, and MLflow in the
same runs. Give the same --data-root, --store and --ray-address as then. Of a
study that has ended, the stores that were away by then are told what they lack."""
    parser.epilog = """\
example:
  python tune.py resume studies/default-20260101-120000

exit codes: 0 done, or had ended before, 1 no result, or MLflow is still away,
2 something to mend (file, flag, disk), 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    add_surroundings(parser, new=False)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py resume``."""
    from ammpl.study.event_log import FILE, read_history
    from ammpl.study.replay import check_study

    study = arguments.study
    check_study(study)
    has_ended = read_history(study / FILE).has_ended
    options = options_of(None if has_ended else f"resuming {study}", arguments)

    from ammpl.study.study import resume_study

    summary = resume_study(study, options)
    if summary is None:
        print(f"{study}: the study has ended, there is nothing to resume")
        print(f"to add to it: python tune.py extend {study} --trials +50")
        return EXIT_SUCCESS
    if has_ended:
        for problem in summary.problems:
            print(f"warning: {problem}")
        print(f"{study}: the study has ended" + ("" if summary.problems else ", and what was missing is delivered"))
        return EXIT_NO_RESULT if summary.problems else EXIT_SUCCESS
    show(summary, Console())
    return exit_code(summary)


COMMAND = Command("when it is over", describe, run)

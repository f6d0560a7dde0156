"""Going on with a study."""

from __future__ import annotations

import argparse

from rich.console import Console

import ammpl
from ammpl.commands.command import EXIT_NO_RESULT, EXIT_SUCCESS, Command, say
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, study_folder, surroundings_of


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py resume``."""
    parser.usage = "tune.py resume STUDY [flags]"
    parser.description = """\
Go on with a study that was interrupted, or whose process or machine died.
Trials that ended are not run again, those that had begun are, under the same
names; sampler and pruner go on as if nothing had happened, and MLflow in the
same runs. Give the same --data-root, --store and --ray-address as then. A store
that was away when the study ended gets what it lacks."""
    parser.epilog = """\
example:
  python tune.py resume studies/default-20260101-120000

exit codes: 0 done, or had ended before, 1 no result, or MLflow is still away,
2 something to mend (file, flag, disk), 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "study", type=study_folder, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    add_surroundings(parser, new=False)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py resume``."""
    from ammpl.study.record.event_log import FILE, read_history

    folder = arguments.study
    study = ammpl.study.open(folder)
    has_ended = read_history(folder / FILE).has_ended
    study = study.resume(**surroundings_of(arguments))
    if study.summary is None:
        say(f"{folder}: the study has ended, there is nothing to resume")
        say(f"to add to it: python tune.py extend {folder} --trials +50")
        return EXIT_SUCCESS
    if has_ended:
        problems = study.summary.problems
        for problem in problems:
            say(f"warning: {problem}")
        say(f"{folder}: the study has ended" + ("" if problems else ", and what was missing is delivered"))
        return EXIT_NO_RESULT if problems else EXIT_SUCCESS
    show(study, Console())
    return exit_code(study)


COMMAND = Command("when it is over", describe, run)

"""A page, tables and figures of studies."""

from __future__ import annotations

import argparse
from pathlib import Path

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, study_folder


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py report``."""
    parser.usage = "tune.py report STUDY... [flags]"
    parser.description = """\
Make a report of one study, or of several together: report.html, a page that
needs nothing else, its tables as CSV, Markdown and LaTeX, its figures as SVG
and PNG. A report of the same study is replaced. Where you tracked the study in
MLflow from this machine, the report becomes an artifact of its run."""
    parser.epilog = """\
examples:
  python tune.py report studies/default-20260101-120000
  python tune.py report studies/first studies/second --output both

exit codes: 0 written, 2 something to mend (no study, disk)"""
    parser.add_argument_group("what is reported").add_argument(
        "studies",
        nargs="+",
        type=study_folder,
        metavar="STUDY",
        help="studies' folders, e.g. studies/default-20260101-120000",
    )
    results = parser.add_argument_group("where the report goes")
    results.add_argument(
        "--output", type=Path, metavar="DIR", help="its folder (default: report in the first study's folder)"
    )
    results.add_argument(
        "--tracking-uri", metavar="URI", help="log it there, in the study's run (default: the study's, if you gave it)"
    )
    results.add_argument("--no-tracking", action="store_true", help="leave MLflow alone (default: log the report)")
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py report``."""
    first, *others = arguments.studies
    tracking = not arguments.no_tracking
    report = ammpl.study.open(first).report(
        *others, output=arguments.output, tracking=tracking, tracking_uri=arguments.tracking_uri
    )
    say(f"report: {report.page}; its tables and figures are beside it")
    if not arguments.no_tracking:
        logged = f"not logged ({report.not_logged})" if report.not_logged else "artifact 'report' of the study's run"
        say(f"MLflow: {logged}")
    if report.not_copied:
        say(f"warning: {report.not_copied}")
    return EXIT_SUCCESS


COMMAND = Command("when it is over", describe, run)

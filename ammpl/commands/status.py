"""How far a study is."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, study_folder
from ammpl.escaping import terminal_line


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py status``."""
    parser.usage = "tune.py status STUDY [--watch]"
    parser.description = """\
Say how far a study is, running or not, from its folder alone: trials by phase
and state, the best one, the time. Nothing is started or changed."""
    parser.epilog = """\
examples:
  python tune.py status studies/default-20260101-120000
  python tune.py status studies/default-20260101-120000 --watch

exit codes: 0 shown, 2 something to mend (no study, damaged log)"""
    what = parser.add_argument_group("what is looked at")
    what.add_argument(
        "study", type=study_folder, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    what.add_argument(
        "--watch",
        action="store_true",
        help="go on until the study, or Ctrl-C, ends it (default: say it once)",
    )
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py status``."""
    if not arguments.watch:
        say(*ammpl.study.Study(arguments.study).status())
        return EXIT_SUCCESS

    from ammpl.study.status import watch

    with contextlib.suppress(KeyboardInterrupt):
        show(watch(arguments.study), Console())
    return EXIT_SUCCESS


def show(looks: Iterable[list[str]], console: Console) -> None:
    """Show one look after the other: in place on a terminal, else what is new but the time."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for lines in looks:
                live.update(Text("\n".join(map(terminal_line, lines))), refresh=True)
        return
    shown: list[str] = []
    for lines in looks:
        if lines[:-1] != shown[:-1]:
            say(*(line for line in lines if line not in shown))
            shown = lines


COMMAND = Command("while it runs", describe, run)

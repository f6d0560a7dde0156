"""MLflow's UI at a study's page."""

from __future__ import annotations

import argparse
import contextlib

from ammpl.commands.command import EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, study_folder


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py ui``."""
    parser.usage = "tune.py ui [STUDY] [flags]"
    parser.description = """\
Open MLflow's UI on the store that a study is in, at the study's page. It
listens on this machine only, until Ctrl-C. Where the store is a server, its
address is opened and nothing is started."""
    parser.epilog = """\
example:
  python tune.py ui studies/default-20260101-120000

exit codes: 0 closed, 2 something to mend (no study, no store, port taken)"""
    parser.add_argument_group("what is opened").add_argument(
        "study",
        nargs="?",
        type=study_folder,
        metavar="STUDY",
        help="a study's folder (default: the list of all experiments)",
    )
    opened = parser.add_argument_group("how")
    opened.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="the store (default: the study's, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    opened.add_argument("--port", type=int, metavar="N", help="of the UI (default: 5000, or a free one)")
    opened.add_argument("--no-browser", action="store_true", help="print the address only (default: open it too)")
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py ui``."""
    import signal
    import webbrowser

    from ammpl.study.views.ui import UserInterface

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the UI would outlive this process
    with UserInterface(arguments.study, arguments.tracking_uri, arguments.port) as interface:
        say(f"MLflow: {interface.address}")
        if not arguments.no_browser:
            webbrowser.open(interface.address)
        with contextlib.suppress(KeyboardInterrupt):
            interface.wait()
    return EXIT_SUCCESS


COMMAND = Command("when it is over", describe, run)

"""A word after ``tune.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ammpl.escaping import terminal, terminal_line

EXIT_SUCCESS, EXIT_NO_RESULT, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_DIFFERENT = 1  # of rerun and rerun-trial
EXIT_NOT_READY = 1  # of the doctor

Stage = Literal["before a study", "while it runs", "when it is over"]


def say(*lines: str) -> None:
    """Print lines; control characters of a study's strings are shown, not sent to the terminal."""
    print(*map(terminal_line, lines), sep="\n", flush=True)


def say_error(text: str) -> None:
    """Print an error as :func:`say` would, on stderr; it has as many lines as it has."""
    print(f"error: {terminal(text)}", file=sys.stderr)


@dataclass(frozen=True)
class Command:
    """A word after ``tune.py`` and what it does.

    Attributes:
        stage: when in a study's life it is of use, under which the help lists it.
        describe: gives a parser its arguments and its description.
        run: takes what was parsed; returns the exit code. What the user can mend is raised as a UserError.
    """

    stage: Stage
    describe: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    def parser(self, name: str = "") -> argparse.ArgumentParser:
        """Return the command's parser; without a name that of ``tune.py`` alone."""
        formatter = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(
            prog=f"tune.py {name}".rstrip(), formatter_class=formatter, add_help=False, allow_abbrev=False
        )
        self.describe(parser)
        return parser

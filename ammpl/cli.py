"""The command line: which command was called, and how its mistakes are told."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ammpl.commands import (
    compare,
    doctor,
    extend,
    prepare,
    report,
    rerun,
    rerun_trial,
    resume,
    schema,
    status,
    stop,
    tune,
    ui,
)
from ammpl.commands.command import EXIT_INTERRUPTED, EXIT_SUCCESS, EXIT_USER_ERROR, Command, say_error
from ammpl.errors import UserError, did_you_mean

COMMANDS: dict[str, Command] = {
    "doctor": doctor.COMMAND,
    "prepare": prepare.COMMAND,
    "schema": schema.COMMAND,
    "status": status.COMMAND,
    "stop": stop.COMMAND,
    "resume": resume.COMMAND,
    "extend": extend.COMMAND,
    "ui": ui.COMMAND,
    "report": report.COMMAND,
    "compare": compare.COMMAND,
    "rerun": rerun.COMMAND,
    "rerun-trial": rerun_trial.COMMAND,
}

TUNE = Command("while it runs", functools.partial(tune.describe, commands=COMMANDS), tune.run)
"""What runs without a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        argv: the arguments; None takes the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that a terminal or file lacks ends nothing
            stream.reconfigure(errors="replace")
    try:
        name = _command_name(words)
        command = COMMANDS[name] if name else TUNE
        return command.run(command.parser(name).parse_args(words[1:] if name else words))
    except UserError as error:
        say_error(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            return EXIT_SUCCESS
        raise


def _command_name(words: Sequence[str]) -> str:
    """Return the command that was called, "" for none; raises UserError for a word that is nothing."""
    word = words[0] if words else ""
    if word in COMMANDS:
        return word
    is_word = word.replace("-", "").isalpha() and not word.startswith("-")  # as names of files seldom are
    if is_word and not Path(word).exists():
        spaces = tune.saved()
        if word not in spaces:
            fix = did_you_mean(word, [*COMMANDS, *spaces])
            raise UserError(word, "is neither a command nor a space file", fix=fix)
    return ""

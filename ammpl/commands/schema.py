"""The JSON Schema of a space file, for editors."""

from __future__ import annotations

import argparse

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.surroundings import add_help


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py schema``."""
    parser.usage = "tune.py schema"
    parser.description = """\
Print the JSON Schema of a space file. An editor that knows it completes names,
shows what they mean and marks mistakes; for those with a YAML language server
a space file names it in a line such as
  # yaml-language-server: $schema=space.schema.json"""
    parser.epilog = """\
example:
  python tune.py schema > space.schema.json

exit code: 0"""
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py schema``."""
    print(ammpl.study.schema(), end="")
    return EXIT_SUCCESS


COMMAND = Command("before a study", describe, run)

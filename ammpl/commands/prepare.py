"""Preparing data sets ahead."""

from __future__ import annotations

import argparse

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.surroundings import add_help, add_home


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py prepare``."""
    parser.usage = "tune.py prepare DATASET... [flags]"
    parser.description = """\
Prepare data sets ahead: check every picture, and write what trials read to
memory-mapped files that all trials and workers of a machine share. A study
does so by itself on first use. What was prepared before is left as it is."""
    parser.epilog = """\
examples:
  python tune.py prepare oxford_pets dtd --data-root DIR --backbone ViT-B-16
  python tune.py prepare eurosat --download

exit codes: 0 all prepared, 2 something to mend (name, file, flag, disk)"""
    what = parser.add_argument_group("what is prepared")
    what.add_argument("datasets", nargs="+", metavar="DATASET", help="a name, e.g. oxford_pets, or a folder")
    what.add_argument("--backbone", metavar="NAME", help="whose pixels, e.g. ViT-L-14 (default: ViT-B-16)")
    what.add_argument("--pretrained", metavar="TAG", help="of the backbone (default: openai)")
    what.add_argument("--skip-broken", action="store_true", help="leave out unreadable pictures (default: stop)")
    what.add_argument(
        "--download", action="store_true", help="get what is not there from its owners, where they allow (default: no)"
    )
    add_home(parser)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py prepare``."""
    ammpl.study.prepare(
        *arguments.datasets,
        backbone=arguments.backbone,
        pretrained=arguments.pretrained,
        skip_broken=arguments.skip_broken,
        download=arguments.download,
        data_root=arguments.data_root,
        store=arguments.store,
        done=print,
    )
    return EXIT_SUCCESS


COMMAND = Command("before a study", describe, run)

"""Whether this machine is ready for studies."""

from __future__ import annotations

import argparse

import ammpl
from ammpl.commands.command import EXIT_NOT_READY, EXIT_SUCCESS, Command, say
from ammpl.commands.surroundings import add_help, add_home


def describe(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py doctor``."""
    parser.usage = "tune.py doctor [flags]"
    parser.description = """\
Say whether this machine is ready for studies: versions, torch and GPUs,
disks, the MLflow store, weights, data sets, Ray, and the seconds of each
part of a study's start. What is wrong comes with what to do about it.
Nothing is left behind."""
    parser.epilog = """\
examples:
  python tune.py doctor
  python tune.py doctor --backbone ViT-B-16 --pretrained openai --data-root DIR

exit codes: 0 ready (notes may be there), 1 studies cannot run yet"""
    what = parser.add_argument_group("what a study would use")
    what.add_argument("--backbone", metavar="NAME", help="a ViT of open_clip, e.g. ViT-B-16 (default: tiny-glyph)")
    what.add_argument("--pretrained", metavar="TAG", help="its weights: open_clip's tag, e.g. openai, or a file")
    what.add_argument(
        "--ray-address", metavar="ADDR", help="a Ray cluster, e.g. 10.0.0.1:6379, or auto (default: none)"
    )
    what.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow's (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    add_home(parser)
    add_help(parser.add_argument_group("other"))


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py doctor``."""
    ready = True
    for finding in ammpl.study.doctor(
        arguments.backbone,
        arguments.pretrained,
        arguments.ray_address,
        arguments.tracking_uri,
        arguments.data_root,
        arguments.store,
    ):
        ready = ready and finding.mark != "FAIL"
        say(*str(finding).splitlines())
    say("ready for studies" if ready else "studies cannot run before what FAILs is mended")
    return EXIT_SUCCESS if ready else EXIT_NOT_READY


COMMAND = Command("before a study", describe, run)

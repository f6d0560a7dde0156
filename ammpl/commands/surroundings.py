"""Flags that decide no number: where a study runs, where data lie, where results go."""

from __future__ import annotations

import argparse
from pathlib import Path

from ammpl.study.addresses import is_remote
from ammpl.study.settings import Surroundings


def add_surroundings(parser: argparse.ArgumentParser, new: bool = True) -> None:
    """Add the flags that decide no number; ``new`` for a study that gets a folder."""
    add_home(parser)
    machine = parser.add_argument_group("where it runs")
    machine.add_argument(
        "--concurrency", type=int, metavar="N", help="trials at a time, e.g. 2 (default: as many as fit)"
    )
    machine.add_argument(
        "--gpus-per-trial", type=_gpus, metavar="X", help="e.g. 0.5, or auto: as many as fit (default: 1, or 0)"
    )
    machine.add_argument(
        "--ray-address", metavar="ADDR", help="a cluster, e.g. 10.0.0.1:6379, or auto (default: none)"
    )

    results = parser.add_argument_group("where the results go")
    if new:
        results.add_argument(
            "--output", type=place, metavar="DIR", help="a new folder, or s3://… (default: studies/NAME-TIME)"
        )
    results.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's (default: "
        + ("" if new else "where the study began, else ")
        + "MLFLOW_TRACKING_URI or ./mlflow.db)",
    )
    results.add_argument(
        "--optuna-storage",
        metavar="URL",
        help="e.g. postgresql://me@host/db (default: " + ("in the folder)" if new else "where the study began)"),
    )
    if not new:
        results.add_argument(
            "--trust-addresses",
            action="store_true",
            help="use those in the folder (default: if you gave them)",
        )
    results.add_argument("--no-report", action="store_true", help="write no report at the end (default: write it)")
    results.add_argument("--notify", metavar="URL", help="is told of the end by POST, e.g. https://10.0.0.1/hook")
    results.add_argument("--quiet", action="store_true", help="show the result only (default: the trials too)")


def add_home(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where data lie."""
    data = parser.add_argument_group("where the data are")
    data.add_argument(
        "--data-root", type=Path, metavar="DIR", help="the data sets (default: AMMPL_DATA_ROOT, else data)"
    )
    data.add_argument("--store", type=Path, metavar="DIR", help="prepared (default: AMMPL_STORE, else ~/.cache/ammpl)")


def add_help(group: argparse._ArgumentGroup) -> None:
    """Add ``--help``."""
    group.add_argument("-h", "--help", action="help", help="show this, e.g. tune.py rerun --help")


def place(text: str) -> str | Path:
    """Return a folder, or an address of a store as it is."""
    return text if is_remote(text) else Path(text)


def study_folder(text: str) -> Path:
    """Return a study's folder; one at an address is fetched first."""
    if not is_remote(text):
        return Path(text)

    from ammpl.study.views.remote import brought_here

    return brought_here(text)


def _gpus(text: str) -> float | str:
    return "auto" if text == "auto" else float(text)


def surroundings_of(arguments: argparse.Namespace) -> Surroundings:
    """Return the surroundings that the flags ask for."""
    return {
        "output": getattr(arguments, "output", None),
        "concurrency": arguments.concurrency,
        "gpus_per_trial": arguments.gpus_per_trial,
        "ray_address": arguments.ray_address,
        "tracking_uri": arguments.tracking_uri,
        "optuna_storage": arguments.optuna_storage,
        "trust_addresses": getattr(arguments, "trust_addresses", False),
        "data_root": arguments.data_root,
        "store": arguments.store,
        "report": not arguments.no_report,
        "notify": arguments.notify,
        "quiet": arguments.quiet,
    }

"""Run benchmarks: ``python tests/benchmarks/run.py [NAME...] [--json FILE]``; without a name, all of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))  # for Ray's workers

from tests.benchmarks.record import Benchmark, Record  # noqa: E402  # the paths above must come first

OF_A_STUDY = ("engine", "memory", "data_store", "pictures", "trial_phases", "trial_switch", "start")
OF_THE_MODEL = ("text_side", "image_side", "class_scope", "growth", "evaluation", "operations", "gpu")
MODULES = {name: f"tests.benchmarks.{name}" for name in OF_A_STUDY + OF_THE_MODEL}
"""Benchmark -> the module whose ``benchmark`` yields its records."""
ON_A_DEVICE = ("pictures",)
"""Those that ``--device`` is passed to."""


def main() -> int:
    """Run, print a line a record, write the JSON file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and records there")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help=f"of {', '.join(ON_A_DEVICE)} (default: a GPU's, if any)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MODULES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(MODULES)}")
    machine = f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(machine)
    print(f"{'case':<78} {'ours':>9} {'reference':>9} {'ratio':>6}  unit")
    records: list[Record] = []
    for name in arguments.names or MODULES:
        benchmark: Benchmark = import_module(MODULES[name]).benchmark
        for record in benchmark(arguments.device) if name in ON_A_DEVICE else benchmark():
            records.append(record)
            reference = "" if record.reference is None else f"{record.reference:.1f}"
            ratio = "" if record.ratio is None else f"{record.ratio:.2f}"
            print(f"{record.case:<78} {record.ours:>9.1f} {reference:>9} {ratio:>6}  {record.unit}", flush=True)
    if arguments.json:
        rows = [{**dataclasses.asdict(record), "ratio": record.ratio} for record in records]
        arguments.json.write_text(json.dumps({"machine": machine, "records": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line: flags, their help, and how a study's end is shown. No logic of a study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import ammpl
from ammpl.errors import UserError
from ammpl.study.budget import duration_seconds
from ammpl.study.space_file import StudySpace, read_space
from ammpl.study.summary import StudySummary
from ammpl.study.yaml_file import dump_yaml, parse_yaml

if TYPE_CHECKING:
    from ammpl.study.study import Options

EXIT_SUCCESS, EXIT_NO_RESULT, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_DIFFERENT = 1  # of a rerun

DEFAULT_SPACE = Path("search_spaces") / "default.yaml"

EPILOG = """\
examples:
  python tune.py                                             the default study: embedded digits, no download, no GPU
  python tune.py search_spaces/my.yaml --trials 50           another space, with a budget of 50 trials
  python tune.py --shots 4 --set training.steps=200          fixed values replaced
  python tune.py --dry-run                                   check everything and print the resolved study
  python tune.py --ray-address 10.0.0.1:6379 --tracking-uri http://10.0.0.1:5000
  python tune.py search_spaces/ablation_mask.yaml            variants of one configuration on the same repeats
  python tune.py rerun STUDY                                 repeat a finished study and compare; see rerun --help

exit codes: 0 done, 1 no result (no trial completed, or the first five all failed the same way),
2 something to mend in a file or flag, 130 interrupted (Ctrl-C)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``tune.py``."""
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description="Search the hyperparameters of a prompt-learning method on a frozen CLIP: trials are scheduled by "
        "Ray Tune, sampled and pruned by Optuna, tracked in MLflow and kept in Parquet; the best are confirmed on "
        "fresh repeats and tested once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "space", nargs="?", type=Path, metavar="SPACE.yaml", help=f"the space file (default: {DEFAULT_SPACE})"
    )

    study = parser.add_argument_group("what is studied (over the space file)")
    study.add_argument("--trials", type=int, metavar="N", help="trials of the search")
    study.add_argument("--time-budget", metavar="TIME", help="how long trials of the search begin, such as 1h30m")
    study.add_argument("--dataset", metavar="NAME", help="the data set (data.name)")
    study.add_argument("--shots", type=int, metavar="N", help="training images a class (data.shots)")
    study.add_argument("--backbone", metavar="NAME", help="tiny-glyph, or a ViT of open_clip such as ViT-B-16")
    study.add_argument("--pretrained", metavar="TAG", help="open_clip's tag of the weights, or a checkpoint's path")
    study.add_argument("--seed", type=int, metavar="N", help="the study's seed: of the sampler and of all trials")
    study.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="any fixed value by its dotted name, such as training.steps=200; may be repeated",
    )

    _add_surroundings(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved study, run nothing"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {ammpl.__version__}")
    return parser


def build_rerun_parser() -> argparse.ArgumentParser:
    """Return the parser of ``tune.py rerun``."""
    parser = argparse.ArgumentParser(
        prog="tune.py rerun",
        description="Repeat a finished study, search or ablation, from the resolved space in its folder, then compare "
        "every trial's values, old and new. A search gives the same trials again only one at a time "
        "(--concurrency 1, then and now), because its sampler learns from what has ended.",
        epilog="example:\n  python tune.py rerun studies/default-20260101-120000 --concurrency 1\n\n"
        "exit codes: 0 all identical, 1 something differs, 2 something to mend, 130 interrupted (Ctrl-C)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="the folder of a finished study")
    _add_surroundings(parser)
    return parser


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide no number."""
    machine = parser.add_argument_group("where it runs")
    machine.add_argument("--concurrency", type=int, metavar="N", help="trials at a time (default: what fits)")
    machine.add_argument(
        "--gpus-per-trial", type=float, metavar="X", help="fractions share a GPU (default: 1 if there is one, else 0)"
    )
    machine.add_argument(
        "--ray-address", metavar="HOST:PORT", help="head of a Ray cluster, or 'auto' (default: this machine)"
    )

    results = parser.add_argument_group("where the results go")
    results.add_argument(
        "--output", type=Path, metavar="DIR", help="the study folder, new (default: studies/NAME-TIME)"
    )
    results.add_argument(
        "--tracking-uri", metavar="URI", help="of MLflow (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    results.add_argument("--quiet", action="store_true", help="show the result only")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        argv: the arguments; None takes the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    rerun = words[:1] == ["rerun"]
    arguments = build_rerun_parser().parse_args(words[1:]) if rerun else build_parser().parse_args(words)
    try:
        if rerun:
            return _rerun(arguments)
        space = _space(arguments)
        return _dry_run(space, arguments) if arguments.dry_run else _run(space, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _space(arguments: argparse.Namespace) -> StudySpace:
    space = read_space(arguments.space or _default_space())
    flags = {
        "data.name": arguments.dataset,
        "data.shots": arguments.shots,
        "backbone.name": arguments.backbone,
        "backbone.pretrained": arguments.pretrained,
    }
    fixed: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    for text in arguments.assignments:
        name, value = _assignment(text)
        if name in fixed:
            raise UserError(f"--set {name}", "is given twice on the command line")
        fixed[name] = value
    if arguments.seed is not None:
        if not 0 <= arguments.seed < 2**32:
            raise UserError("--seed", "must be from 0 to 4294967295", got=arguments.seed)
        space = space.model_copy(update={"seed": arguments.seed})
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError("--trials", "must be at least 1", got=arguments.trials)
    if arguments.time_budget is not None:
        try:
            duration_seconds(arguments.time_budget)
        except ValueError as error:
            raise UserError("--time-budget", str(error), got=arguments.time_budget, fix="--time-budget 10m") from None
    limits = {"trials": arguments.trials, "time": arguments.time_budget}
    budget = {name: limit for name, limit in limits.items() if limit is not None}
    space = space.model_copy(update={"budget": space.budget.model_copy(update=budget)})
    return space.with_fixed(fixed, "command line") if fixed else space


def _default_space() -> Path:
    """Return the default space file: below the working directory, else beside the package's sources."""
    beside = Path(ammpl.__file__).resolve().parents[1] / DEFAULT_SPACE
    return DEFAULT_SPACE if DEFAULT_SPACE.is_file() or not beside.is_file() else beside


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError("--set", "must be NAME=VALUE", got=text, fix="--set training.steps=200")
    parsed = parse_yaml(value, f"--set {name.strip()}")
    if isinstance(parsed, dict | list):
        raise UserError(f"--set {name.strip()}", "must be a single value", got=value)
    return name.strip(), parsed


def _dry_run(space: StudySpace, arguments: argparse.Namespace) -> int:
    from ammpl.study.study import check_output, configurations
    from ammpl.training.run import preflight  # imports torch, which a run leaves to its workers

    check_output(arguments.output)
    for config in configurations(space):
        preflight(config)
    print(dump_yaml(space.resolved()), end="")
    return EXIT_SUCCESS


def _run(space: StudySpace, arguments: argparse.Namespace) -> int:
    options = _options(space, arguments)

    from ammpl.study.study import run_study  # imports Ray, whose seconds a mistake need not wait for

    summary = run_study(space, options)
    show(summary, Console())
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SUCCESS if summary.has_result and summary.stopped is None else EXIT_NO_RESULT


def _rerun(arguments: argparse.Namespace) -> int:
    from ammpl.study.rerun import compare, finished_space

    space = finished_space(arguments.study)
    options = _options(space, arguments)

    from ammpl.study.study import run_study

    summary = run_study(space, options)
    console = Console()
    show(summary, console)
    if summary.interrupted:
        return EXIT_INTERRUPTED
    comparison = compare(arguments.study, summary.folder)
    console.print(comparison.table())
    console.print(comparison.verdict, markup=False, highlight=False, soft_wrap=True)
    return EXIT_SUCCESS if comparison.identical else EXIT_DIFFERENT


def _options(space: StudySpace, arguments: argparse.Namespace) -> Options:
    """Return the surroundings that the flags ask for; raises UserError for a value out of range."""
    for flag, value in (("--concurrency", arguments.concurrency), ("--gpus-per-trial", arguments.gpus_per_trial)):
        least = 1 if flag == "--concurrency" else 0
        if value is not None and not value >= least:
            raise UserError(flag, f"must be at least {least}", got=value)

    if not arguments.quiet:
        print(f"study {space.name}: starting Ray, loading the backbone and the data", flush=True)

    from ammpl.study.study import Options

    return Options(
        output=arguments.output,
        concurrency=arguments.concurrency,
        gpus_per_trial=arguments.gpus_per_trial,
        ray_address=arguments.ray_address,
        tracking_uri=arguments.tracking_uri,
        quiet=arguments.quiet,
    )


def show(summary: StudySummary, console: Console) -> None:
    """Print the end of a study: its tables, its folder, the command that opens MLflow's UI."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say("")
    for table in summary.tables():
        console.print(table)
    if summary.interrupted:
        say("interrupted: this is what was known by then")
    for remark in summary.remarks:
        say(remark)
    for reason, count in summary.reasons.items():
        say(f"{count} × {reason}")
    if summary.unshown:
        say(summary.unshown)
    for problem in summary.problems:
        say(f"warning: {problem}")
    say(f"study folder: {summary.folder}")
    if summary.ui_command:
        say(f"MLflow: {summary.ui_command}")

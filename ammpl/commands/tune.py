"""Running a space file: what ``tune.py`` does without a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, check_machine, dataset_of, home_of, options_of
from ammpl.errors import UserError
from ammpl.study.budget import duration_seconds
from ammpl.study.space_file import StudySpace, read_space
from ammpl.yaml_file import dump_yaml, parse_yaml

DEFAULT_SPACE = Path("search_spaces") / "default.yaml"


def describe(parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    """Describe ``tune.py`` without a command, which runs a space file."""
    parser.usage = "tune.py [SPACE.yaml] [flags], or tune.py COMMAND ..."
    stages: dict[str, list[str]] = {}
    for name, command in commands.items():
        stages.setdefault(command.stage, []).append(name)
    listed = "\n".join(f"  {stage:<18}{', '.join(names)}" for stage, names in stages.items())
    parser.description = (
        "Search the hyperparameters of a prompt-learning method on a frozen CLIP. Ray\n"
        "Tune schedules the trials, Optuna samples and prunes them, MLflow tracks them,\n"
        "Parquet keeps them; the best are confirmed on fresh repeats and tested once.\n\n"
        f"commands (tune.py COMMAND --help tells more):\n{listed}"
    )
    parser.epilog = """\
examples:
  python tune.py                                    digits, no download, no GPU
  python tune.py search_spaces/ablation_mask.yaml   variants on the same repeats
  python tune.py my.yaml --trials 50 --shots 4 --set training.steps=200

exit codes: 0 done, 1 no result (no trial completed, or they all fail), 2
something to mend (file, flag, disk), 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "space", nargs="?", type=Path, metavar="SPACE.yaml", help=f"search or ablation (default: {DEFAULT_SPACE})"
    )

    start = parser.add_argument_group("where it starts")
    start.add_argument(
        "--from", type=Path, metavar="STUDY", dest="origin", help="another study, e.g. studies/default-1"
    )
    start.add_argument(
        "--best",
        action="store_true",
        help="with its winner's values where nothing else is said (default: no)",
    )

    study = parser.add_argument_group("what is studied (default: what the space file says)")
    study.add_argument("--trials", type=int, metavar="N", help="trials of the search or ablation, e.g. 50")
    study.add_argument("--time-budget", metavar="TIME", help="no trial of it begins after that time, e.g. 1h30m")
    study.add_argument("--trial-time", metavar="TIME", help="a trial that takes longer has failed, e.g. 30m")
    study.add_argument("--dataset", metavar="NAME", help="a data set, e.g. oxford_pets, or a folder of your own")
    study.add_argument("--shots", type=int, metavar="N", help="training images a class, e.g. 4")
    study.add_argument("--backbone", metavar="NAME", help="a ViT of open_clip, e.g. ViT-B-16, or tiny-glyph")
    study.add_argument("--pretrained", metavar="TAG", help="its weights: open_clip's tag, e.g. openai, or a file")
    study.add_argument("--skip-broken", action="store_true", help="leave out unreadable pictures (default: stop)")
    study.add_argument("--seed", type=int, metavar="N", help="of the sampler and of all trials, e.g. 1")
    study.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="a fixed value, e.g. training.steps=200; again for more",
    )
    add_surroundings(parser)

    other = parser.add_argument_group("other")
    other.add_argument("--dry-run", action="store_true", help="check all, print the study, run nothing (default: run)")
    other.add_argument(
        "--version",
        action="version",
        version=f"tune.py {ammpl.__version__}",
        help=f"show it, e.g. {ammpl.__version__}",
    )
    add_help(other)


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py`` on a space file."""
    space = _space(arguments)
    return _dry_run(space, arguments) if arguments.dry_run else _run(space, arguments)


def _space(arguments: argparse.Namespace) -> StudySpace:
    flags = {
        "data.name": dataset_of(arguments.dataset),
        "data.skip_broken": arguments.skip_broken or None,
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
    space = _begin(arguments, fixed)
    if arguments.seed is not None:
        if not 0 <= arguments.seed < 2**32:
            raise UserError("--seed", "must be from 0 to 4294967295", got=arguments.seed)
        space = space.model_copy(update={"seed": arguments.seed})
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError("--trials", "must be at least 1", got=arguments.trials)
    for flag, text in (("--time-budget", arguments.time_budget), ("--trial-time", arguments.trial_time)):
        try:
            text is None or duration_seconds(text)
        except ValueError as error:
            raise UserError(flag, str(error), got=text, fix=f"{flag} 10m") from None
    limits = {"trials": arguments.trials, "time": arguments.time_budget, "trial_time": arguments.trial_time}
    budget = {name: limit for name, limit in limits.items() if limit is not None}
    space = space.model_copy(update={"budget": space.budget.model_copy(update=budget)})
    return space.with_fixed(fixed, "command line") if fixed else space


def _begin(arguments: argparse.Namespace, fixed: Mapping[str, Any]) -> StudySpace:
    """Return the space before the command line changes it: a file's, or one that starts from another study."""
    if arguments.origin is None and not arguments.best:
        return read_space(arguments.space or _default_space())
    if arguments.origin is None or not arguments.best:
        raise UserError("--from", "and --best belong together", fix="--from STUDY --best")

    from ammpl.study.start import from_best

    space = read_space(arguments.space) if arguments.space else None
    return from_best(arguments.origin, space, fixed)


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
    from ammpl.study.folder import check_output
    from ammpl.study.preparation import prepare_data
    from ammpl.study.work import configurations
    from ammpl.training.run import preflight  # imports torch, which a run leaves to its workers

    check_machine(arguments)
    check_output(arguments.output)
    configs, home = configurations(space), home_of(arguments)
    prepare_data(configs, home, arguments.quiet)
    for config in configs:
        preflight(config, home)
    print(dump_yaml(space.resolved()), end="")
    return EXIT_SUCCESS


def _run(space: StudySpace, arguments: argparse.Namespace) -> int:
    options = options_of(f"study {space.name}", arguments)

    from ammpl.study.study import run_study  # imports Ray, whose seconds a mistake need not wait for

    summary = run_study(space, options)
    show(summary, Console())
    return exit_code(summary)

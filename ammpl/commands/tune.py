"""Running a space file: what ``tune.py`` does without a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console

import ammpl
from ammpl.commands.command import EXIT_SUCCESS, Command
from ammpl.commands.ending import exit_code, show
from ammpl.commands.surroundings import add_help, add_surroundings, study_folder, surroundings_of
from ammpl.errors import UserError
from ammpl.escaping import terminal_line
from ammpl.study.settings import Settings, check_machine, home_of, output_of, saved_spaces, study_space
from ammpl.study.space.space_file import StudySpace
from ammpl.yaml_file import dump_yaml, parse_yaml


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

exit codes: 0 done, 1 no result, 2 something to mend, 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "space",
        nargs="?",
        metavar="SPACE.yaml",
        help="a file, or the name of a saved one (default: default)",
    )

    start = parser.add_argument_group("where it starts")
    start.add_argument(
        "--from", type=study_folder, metavar="STUDY", dest="origin", help="another study, e.g. studies/default-1"
    )
    start.add_argument(
        "--best",
        action="store_true",
        help="with its winner's values (default: no)",
    )

    study = parser.add_argument_group("what is studied (default: what the space file says)")
    study.add_argument("--trials", type=int, metavar="N", help="trials of the search or ablation, e.g. 50")
    study.add_argument("--time-budget", metavar="TIME", help="no trial of it begins after that time, e.g. 1h30m")
    study.add_argument("--trial-time", metavar="TIME", help="a trial that takes longer has failed, e.g. 30m")
    study.add_argument("--dataset", metavar="NAME", help="a data set, e.g. oxford_pets, or a folder of your own")
    study.add_argument("--shots", type=int, metavar="N", help="training images per class, e.g. 4")
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
    other.add_argument("--dry-run", action="store_true", help="check all, print what would run (default: run)")
    other.add_argument("--full", action="store_true", help="with --dry-run: print every default (default: a summary)")
    other.add_argument(
        "--version",
        action="version",
        version=f"tune.py {ammpl.__version__}",
        help=f"show it, e.g. {ammpl.__version__}",
    )
    add_help(other)


def saved() -> list[str]:
    """Return the names of saved spaces, which stand for their files."""
    return list(saved_spaces())


def run(arguments: argparse.Namespace) -> int:
    """Run ``tune.py`` on a space file."""
    if (arguments.origin is None) is arguments.best:
        raise UserError("--from", "and --best belong together", fix="--from STUDY --best")
    space = study_space(arguments.space, "command line", **_settings(arguments))
    if arguments.dry_run:
        return _dry_run(space, arguments)
    if arguments.full:
        raise UserError("--full", "belongs to --dry-run", fix="--dry-run --full")
    study = ammpl.study.run(space, **surroundings_of(arguments))
    show(study, Console())
    return exit_code(study)


def _settings(arguments: argparse.Namespace) -> Settings:
    assignments: dict[str, Any] = {}
    for text in arguments.assignments:
        name, value = _assignment(text)
        if name in assignments:
            raise UserError(f"--set {name}", "is given twice on the command line")
        assignments[name] = value
    return {
        "trials": arguments.trials,
        "time_budget": arguments.time_budget,
        "trial_time": arguments.trial_time,
        "dataset": arguments.dataset,
        "shots": arguments.shots,
        "backbone": arguments.backbone,
        "pretrained": arguments.pretrained,
        "skip_broken": arguments.skip_broken,
        "seed": arguments.seed,
        "set": assignments,
        "from_best": arguments.origin,
    }


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError("--set", "must be NAME=VALUE", got=text, fix="--set training.steps=200")
    parsed = parse_yaml(value, f"--set {name.strip()}")
    if isinstance(parsed, dict | list):
        raise UserError(f"--set {name.strip()}", "must be a single value", got=value)
    return name.strip(), parsed


def _dry_run(space: StudySpace, arguments: argparse.Namespace) -> int:
    from ammpl.study.engine.preparation import prepare_data
    from ammpl.study.engine.work import configurations
    from ammpl.study.preview import preview
    from ammpl.study.record.folder import check_output
    from ammpl.training.run import preflight  # imports torch, which a run leaves to its workers

    check_machine(arguments.concurrency, arguments.gpus_per_trial)
    check_output(output_of(arguments.output)[0])
    configs, home = configurations(space), home_of(arguments.data_root, arguments.store)
    prepare_data(configs, home, arguments.quiet)
    for config in configs:
        preflight(config, home)
    if arguments.full:
        print(dump_yaml(space.resolved()), end="")
    else:
        print(*map(terminal_line, preview(space, configs, home)), sep="\n")
        print("nothing was run; --dry-run --full prints the space with every default")
    return EXIT_SUCCESS

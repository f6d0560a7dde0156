"""The command line: which command runs, what its flags make of a space, how a study's end is shown."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import ammpl
from ammpl.config import resolve
from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.home import EMBEDDED, DataHome, expanded, is_path
from ammpl.errors import UserError, did_you_mean
from ammpl.flags import (
    DEFAULT_SPACE,
    Command,
    add_compare,
    add_prepare,
    add_report,
    add_rerun,
    add_rerun_trial,
    add_resume,
    add_status,
    add_stop,
    add_tune,
)
from ammpl.study.budget import duration_seconds
from ammpl.study.space_file import StudySpace, read_space
from ammpl.study.summary import StudySummary
from ammpl.yaml_file import dump_yaml, parse_yaml

if TYPE_CHECKING:
    from ammpl.study.study import Options

EXIT_SUCCESS, EXIT_NO_RESULT, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_DIFFERENT = 1  # of rerun and rerun-trial


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        argv: the arguments; None takes the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        name = _command_name(words)
        command = COMMANDS[name] if name else TUNE
        return command.run(command.parser(name).parse_args(words[1:] if name else words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _command_name(words: Sequence[str]) -> str:
    """Return the command that was called, "" for none; raises UserError for a word that is neither that nor a file."""
    word = words[0] if words else ""
    if word in COMMANDS:
        return word
    is_word = word.replace("-", "").isalpha() and not word.startswith("-")  # as names of files seldom are
    if is_word and not Path(word).exists():
        raise UserError(word, "is neither a command nor a space file", fix=did_you_mean(word, COMMANDS))
    return ""


def _tune(arguments: argparse.Namespace) -> int:
    space = _space(arguments)
    return _dry_run(space, arguments) if arguments.dry_run else _run(space, arguments)


def _space(arguments: argparse.Namespace) -> StudySpace:
    space = read_space(arguments.space or _default_space())
    flags = {
        "data.name": _dataset(arguments.dataset),
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


def _dataset(name: str | None) -> str | None:
    """Return a data set's name, or its folder in full: a study may be run again from elsewhere."""
    if name is None or name in (*EMBEDDED, *DESCRIPTIONS):
        return name
    return str(Path(name).absolute()) if is_path(name) else name


def _home(arguments: argparse.Namespace) -> DataHome:
    """Return where data lie, by the flags and else by the environment."""
    given = {"root": arguments.data_root, "store": arguments.store}
    return DataHome(**{name: expanded(path) for name, path in given.items() if path is not None})


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
    from ammpl.study.study import configurations
    from ammpl.training.run import preflight  # imports torch, which a run leaves to its workers

    _check_machine(arguments)
    check_output(arguments.output)
    configs, home = configurations(space), _home(arguments)
    prepare_data(configs, home, arguments.quiet)
    for config in configs:
        preflight(config, home)
    print(dump_yaml(space.resolved()), end="")
    return EXIT_SUCCESS


def _run(space: StudySpace, arguments: argparse.Namespace) -> int:
    options = _options(f"study {space.name}", arguments)

    from ammpl.study.study import run_study  # imports Ray, whose seconds a mistake need not wait for

    summary = run_study(space, options)
    show(summary, Console())
    return _exit_code(summary)


def _rerun(arguments: argparse.Namespace) -> int:
    from ammpl.study.rerun import compare, finished_space, only

    space = only(finished_space(arguments.study), arguments.only)
    options = _options(f"study {space.name}", arguments)

    from ammpl.study.study import run_study

    summary = run_study(space, options)
    console = Console()
    show(summary, console)
    if summary.interrupted or summary.errors:
        return _exit_code(summary)
    comparison = compare(arguments.study, summary.folder, part=bool(arguments.only))
    console.print(comparison.table())
    console.print(comparison.cell_table())
    console.print(comparison.verdict, markup=False, highlight=False, soft_wrap=True)
    return EXIT_SUCCESS if comparison.identical else EXIT_DIFFERENT


def _rerun_trial(arguments: argparse.Namespace) -> int:
    from ammpl.study.rerun_trial import rerun_trial

    say = functools.partial(print, flush=True) if not arguments.quiet else lambda text: None
    verdict = rerun_trial(arguments.study, arguments.trial, _home(arguments), say)
    print("\n".join(verdict.lines()))
    return EXIT_SUCCESS if verdict.difference is None else EXIT_DIFFERENT


def _resume(arguments: argparse.Namespace) -> int:
    from ammpl.study.event_log import FILE, read_history
    from ammpl.study.replay import check_study

    study = arguments.study
    check_study(study)
    has_ended = read_history(study / FILE).has_ended
    options = _options(None if has_ended else f"resuming {study}", arguments)

    from ammpl.study.study import resume_study

    summary = resume_study(study, options)
    if summary is None:
        print(f"{study}: the study has ended, there is nothing to resume")
        return EXIT_SUCCESS
    if has_ended:
        for problem in summary.problems:
            print(f"warning: {problem}")
        print(f"{study}: the study has ended" + ("" if summary.problems else ", and what was missing is delivered"))
        return EXIT_NO_RESULT if summary.problems else EXIT_SUCCESS
    show(summary, Console())
    return _exit_code(summary)


def _status(arguments: argparse.Namespace) -> int:
    from ammpl.study.status import status

    print("\n".join(status(arguments.study)))
    return EXIT_SUCCESS


def _stop(arguments: argparse.Namespace) -> int:
    from ammpl.study.stop import stop

    print(stop(arguments.study))
    return EXIT_SUCCESS


def _report(arguments: argparse.Namespace) -> int:
    from ammpl.report.report import PAGE, write_report
    from ammpl.report.tracking import log_report

    folder = write_report(arguments.studies, arguments.output)
    print(f"report: {folder / PAGE}; its tables and figures are beside it")
    if not arguments.no_tracking:
        print(log_report(arguments.studies[0], folder))
    return EXIT_SUCCESS


def _compare(arguments: argparse.Namespace) -> int:
    from ammpl.report.compare import compare_studies

    console = Console()
    for table in compare_studies(arguments.first, arguments.second):
        console.print(table.terminal())
    return EXIT_SUCCESS


def _check_machine(arguments: argparse.Namespace) -> None:
    """Raise UserError for a flag of the machine that is out of range."""
    for flag, value in (("--concurrency", arguments.concurrency), ("--gpus-per-trial", arguments.gpus_per_trial)):
        least = 1 if flag == "--concurrency" else 0
        if value is not None and not value >= least:
            raise UserError(flag, f"must be at least {least}", got=value)


def _options(what: str | None, arguments: argparse.Namespace) -> Options:
    """Return the surroundings that the flags ask for; raises UserError for a value out of range."""
    _check_machine(arguments)
    if what and not arguments.quiet:
        print(f"{what}: starting Ray, loading the backbone and the data", flush=True)

    from ammpl.study.study import Options

    return Options(
        output=getattr(arguments, "output", None),
        concurrency=arguments.concurrency,
        gpus_per_trial=arguments.gpus_per_trial,
        ray_address=arguments.ray_address,
        tracking_uri=arguments.tracking_uri,
        quiet=arguments.quiet,
        home=_home(arguments),
    )


def _prepare(arguments: argparse.Namespace) -> int:
    from ammpl.study.preparation import download_data, prepare_data

    home = _home(arguments)
    backbone = {"backbone.name": arguments.backbone or "ViT-B-16", "backbone.pretrained": arguments.pretrained}
    if arguments.backbone is None and arguments.pretrained is None:
        backbone["backbone.pretrained"] = "openai"
    for dataset in arguments.datasets:
        name = _dataset(dataset)
        if arguments.download and name in DESCRIPTIONS:
            download_data(name, home)
        values = {"data.name": name, "data.skip_broken": arguments.skip_broken, **backbone}
        prepare_data([resolve("zero_shot", values, "command line")], home)
        print(f"{dataset}: " + ("embedded, nothing to prepare" if name in EMBEDDED else f"prepared in {home.store}"))
    return EXIT_SUCCESS


def _exit_code(summary: StudySummary) -> int:
    if summary.errors:
        return EXIT_USER_ERROR
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SUCCESS if summary.has_result and summary.stopped is None else EXIT_NO_RESULT


def show(summary: StudySummary, console: Console) -> None:
    """Print the end of a study: its tables, its folder, the command that opens MLflow's UI."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say("")
    for table in summary.tables():
        console.print(table)
    if summary.interrupted:
        say(f"{'stopped on request' if summary.on_request else 'interrupted'}: this is what was known by then")
        say(f"it goes on with: python tune.py resume {summary.folder}")
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
    for error in summary.errors:
        print(f"error: {error}", file=sys.stderr)


COMMANDS: dict[str, Command] = {
    "prepare": Command("check data sets and prepare them ahead", add_prepare, _prepare),
    "resume": Command("go on with a study that was interrupted, or died", add_resume, _resume),
    "stop": Command("let a study's running trials end, and begin no more", add_stop, _stop),
    "status": Command("how far a study is, from its folder alone", add_status, _status),
    "report": Command("make a page, tables and figures of studies", add_report, _report),
    "compare": Command("what differs between two studies, and what came out", add_compare, _compare),
    "rerun": Command("repeat a finished study and compare the numbers", add_rerun, _rerun),
    "rerun-trial": Command("repeat one trial and compare the numbers", add_rerun_trial, _rerun_trial),
}

TUNE = Command("run a space file", functools.partial(add_tune, commands=COMMANDS), _tune)
"""What runs without a command."""

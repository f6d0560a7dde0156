"""The commands' flags and their help: text only. Every flag states its default, an example, or both."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ammpl

DEFAULT_SPACE = Path("search_spaces") / "default.yaml"


@dataclass(frozen=True)
class Command:
    """A word after ``tune.py`` and what it does.

    Attributes:
        summary: a line in the list of commands.
        add_flags: gives a parser its arguments and its description.
        run: takes what was parsed; returns the exit code. What the user can mend is raised as a UserError.
    """

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    def parser(self, name: str = "") -> argparse.ArgumentParser:
        """Return the command's parser; without a name that of ``tune.py`` alone."""
        formatter = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(prog=f"tune.py {name}".rstrip(), formatter_class=formatter, add_help=False)
        self.add_flags(parser)
        return parser


def add_tune(parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    """Describe ``tune.py`` without a command, which runs a space file."""
    parser.usage = "tune.py [SPACE.yaml] [flags], or tune.py COMMAND ..."
    listed = "\n".join(f"  {name:<20}{command.summary}" for name, command in commands.items())
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

exit codes: 0 done, 1 no result (no trial completed, or ten in a row failed),
2 something to mend (file, flag, disk), 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "space", nargs="?", type=Path, metavar="SPACE.yaml", help=f"search or ablation (default: {DEFAULT_SPACE})"
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
        help="any fixed value, e.g. training.steps=200; again for more",
    )
    _add_surroundings(parser)

    other = parser.add_argument_group("other")
    other.add_argument("--dry-run", action="store_true", help="check all, print the study, run nothing (default: run)")
    other.add_argument(
        "--version",
        action="version",
        version=f"tune.py {ammpl.__version__}",
        help=f"show it, e.g. {ammpl.__version__}",
    )
    _add_help(other)


def add_rerun(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py rerun``."""
    parser.usage = "tune.py rerun STUDY [flags]"
    parser.description = """\
Repeat a finished study, search or ablation, from the resolved space in its
folder, then compare every trial's values, old and new, and every cell, the
trials that differ by their repeat alone: identical, within noise, different. A
search gives the same trials again only one at a time (--concurrency 1, then and
now), because its sampler learns from what has ended. A study that had a time
budget is repeated with the number of trials that had begun, and no time."""
    parser.epilog = """\
examples:
  python tune.py rerun studies/default-20260101-120000 --concurrency 1
  python tune.py rerun studies/ablation_mask-20260101-120000 --only variant=none

exit codes: 0 all identical, 1 something differs, 2 something to mend (file,
flag, disk), 130 interrupted"""
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "study", type=Path, metavar="STUDY", help="a finished study's folder, e.g. studies/default-20260101-120000"
    )
    what.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="variant=NAME",
        help="of an ablation, e.g. variant=none,random (default: all of it)",
    )
    _add_surroundings(parser)
    _add_help(parser.add_argument_group("other"))


def add_rerun_trial(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py rerun-trial``."""
    parser.usage = "tune.py rerun-trial STUDY TRIAL [flags]"
    parser.description = """\
Run one trial of a study again: the same configuration, seeds and data, in this
process, in a scratch folder; the study is not changed. Says "match", or the
first value that differs, and which of machine, versions and device are not
those of then. A pruned trial is compared up to where it was stopped, a failed
one by its reason. A test scores the test split again, by the same learnables."""
    parser.epilog = """\
examples:
  python tune.py rerun-trial studies/default-20260101-120000 17
  python tune.py rerun-trial studies/default-20260101-120000 confirm-coop-r3

exit codes: 0 match, 1 different, 2 something to mend (trial, file, flag), 130
interrupted"""
    what = parser.add_argument_group("what runs")
    what.add_argument(
        "study", type=Path, metavar="STUDY", help="a study's folder, e.g. studies/default-20260101-120000"
    )
    what.add_argument("trial", metavar="TRIAL", help="a number of the search, e.g. 17, or any key, e.g. test-0017-r2")
    _add_home(parser)
    other = parser.add_argument_group("other")
    other.add_argument("--quiet", action="store_true", help="say the result only (default: each evaluation too)")
    _add_help(other)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py resume``."""
    parser.usage = "tune.py resume STUDY [flags]"
    parser.description = """\
Go on with a study that was interrupted, or whose process or machine died.
Trials that ended are not run again, those that had begun are, under the same
names; sampler and pruner go on as if nothing had happened, and MLflow in the
same runs. Give the same --data-root, --store and --ray-address as then. Of a
study that has ended, MLflow is told what it lacks, if it was away by then."""
    parser.epilog = """\
example:
  python tune.py resume studies/default-20260101-120000

exit codes: 0 done, or had ended before, 1 no result, or MLflow is still away,
2 something to mend (file, flag, disk), 130 interrupted"""
    parser.add_argument_group("what runs").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    _add_surroundings(parser, new=False)
    _add_help(parser.add_argument_group("other"))


def add_status(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py status``."""
    parser.usage = "tune.py status STUDY"
    parser.description = """\
Say how far a study is, running or not, from its folder alone: trials by phase
and state, the best one, the time. Nothing is started or changed."""
    parser.epilog = """\
example:
  python tune.py status studies/default-20260101-120000

exit codes: 0 said, 2 something to mend (no study, damaged log)"""
    parser.add_argument_group("what is looked at").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    _add_help(parser.add_argument_group("other"))


def add_stop(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py stop``."""
    parser.usage = "tune.py stop STUDY"
    parser.description = """\
Ask a running study to stop gracefully, from another terminal or another machine
that has its folder: the trials that run are let end, no more begin, and the
summary so far is written. The study can be resumed or extended later. Ctrl-C in
its own terminal is faster: it ends running trials, which then run again."""
    parser.epilog = """\
example:
  python tune.py stop studies/default-20260101-120000

exit codes: 0 asked, 2 something to mend (no study, or it does not run); the
study's own is 130"""
    parser.add_argument_group("what is stopped").add_argument(
        "study", type=Path, metavar="STUDY", help="the study's folder, e.g. studies/default-20260101-120000"
    )
    _add_help(parser.add_argument_group("other"))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py compare``."""
    parser.usage = "tune.py compare A B"
    parser.description = """\
Say what differs between two studies: first the settings, versions and machine
that are not the same, then the results of what both have, B minus A, paired
where their repeats match. Nothing is run or changed."""
    parser.epilog = """\
example:
  python tune.py compare studies/default-20260101-120000 studies/mine

exit codes: 0 said, 2 something to mend (no study, damaged log)"""
    what = parser.add_argument_group("what is compared")
    what.add_argument("first", type=Path, metavar="A", help="a study's folder, e.g. studies/default-20260101-120000")
    what.add_argument("second", type=Path, metavar="B", help="another's, e.g. studies/mine-20260102-120000")
    _add_help(parser.add_argument_group("other"))


def add_report(parser: argparse.ArgumentParser) -> None:
    """Describe ``tune.py report``."""
    parser.usage = "tune.py report STUDY... [flags]"
    parser.description = """\
Make a report of one study, or of several together: report.html, a page that
needs nothing else, its tables as CSV, Markdown and LaTeX, its figures as SVG
and PNG. A report of the same study is replaced. Where the study was tracked in
MLflow, the report becomes an artifact of its run."""
    parser.epilog = """\
examples:
  python tune.py report studies/default-20260101-120000
  python tune.py report studies/first studies/second --output both

exit codes: 0 written, 2 something to mend (no study, disk)"""
    parser.add_argument_group("what is reported").add_argument(
        "studies", nargs="+", type=Path, metavar="STUDY", help="studies' folders, e.g. studies/default-20260101-120000"
    )
    results = parser.add_argument_group("where the report goes")
    results.add_argument(
        "--output", type=Path, metavar="DIR", help="its folder (default: report in the first study's folder)"
    )
    results.add_argument("--no-tracking", action="store_true", help="leave MLflow alone (default: log the report)")
    _add_help(parser.add_argument_group("other"))


def _add_surroundings(parser: argparse.ArgumentParser, new: bool = True) -> None:
    """Add the flags that decide no number; ``new`` for a study that gets a folder."""
    _add_home(parser)
    machine = parser.add_argument_group("where it runs")
    machine.add_argument(
        "--concurrency", type=int, metavar="N", help="trials at a time, e.g. 2 (default: as many as fit)"
    )
    machine.add_argument(
        "--gpus-per-trial", type=float, metavar="X", help="e.g. 0.5: two share one (default: 1, or 0 without any)"
    )
    machine.add_argument(
        "--ray-address", metavar="ADDR", help="a cluster, e.g. 10.0.0.1:6379, or auto (default: none)"
    )

    results = parser.add_argument_group("where the results go")
    if new:
        results.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: studies/NAME-TIME)")
    results.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow's, e.g. http://10.0.0.1:5000 (default: "
        + ("" if new else "where the study began, else ")
        + "MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    results.add_argument("--quiet", action="store_true", help="show the result only (default: the trials too)")


def add_prepare(parser: argparse.ArgumentParser) -> None:
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
    _add_home(parser)
    _add_help(parser.add_argument_group("other"))


def _add_home(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where data lie."""
    data = parser.add_argument_group("where the data are")
    data.add_argument(
        "--data-root", type=Path, metavar="DIR", help="has the data sets (default: AMMPL_DATA_ROOT, else data)"
    )
    data.add_argument(
        "--store", type=Path, metavar="DIR", help="gets prepared files (default: AMMPL_STORE, else ~/.cache/ammpl)"
    )


def _add_help(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this, e.g. tune.py rerun --help")

"""Data made ready before the first trial, on the driver, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ammpl.config import TrialConfig
from ammpl.data.home import EMBEDDED, DataHome, is_passed_over
from ammpl.errors import UserError, together
from ammpl.escaping import terminal, terminal_line

if TYPE_CHECKING:
    from ammpl.training.prepare import Part

EXAMPLES = 3
"""Of pictures in two lists, that a warning names."""


@dataclass(frozen=True)
class DataNotes:
    """What a reader of the results should know of the data.

    Attributes:
        splits: data set -> the file or rule that made its lists.
        warnings: what differs from the published data, and pictures left out.
    """

    splits: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"splits": dict(self.splits), "warnings": list(self.warnings)}


def prepare_data(configs: Sequence[TrialConfig], home: DataHome, quiet: bool = False) -> DataNotes:
    """Prepare all that trials of these configurations read, and tell what is remarkable about it.

    Embedded data need nothing, and torch stays out of this process then.

    Args:
        configs: one of each kind.
        home: where data lie.
        quiet: show no progress, and no warnings.

    Raises:
        UserError: unknown names; files that are missing, broken or not as they should be; the store cannot be
            written.
    """
    console = Console(stderr=True, quiet=quiet)
    for name in sorted({config.data.name for config in configs}):
        if is_passed_over(name, home):
            _say(console, f"note: {name} is the data set of that name; --dataset ./{name} is the folder that is here")
    distinct = {
        (config.data.model_copy(update={"shots": 1, "validation_shots": None}), config.backbone): config
        for config in configs
        if config.data.name not in EMBEDDED or config.data.transfers
    }
    if not distinct:
        return DataNotes()

    from ammpl.data.registry import open_dataset
    from ammpl.data.stored import BrokenPicturesError
    from ammpl.data.task import load_task, load_test
    from ammpl.training.prepare import parts  # imports torch

    for kept in (open_dataset, load_task, load_test):
        kept.cache_clear()  # files may have changed since this process read them
    found = [part for config in distinct.values() for part in parts(config, home)]
    datasets = {part.dataset.name: part.dataset for part in found}
    warnings = [warning for dataset in datasets.values() for warning in dataset.warnings]
    for dataset in datasets.values():
        _say(console, f"{dataset.name}: lists from {dataset.split_source}")
    broken: list[UserError] = []
    with bars(console) as show:
        for part in found:
            try:
                warnings += part.prepare(show(part))
            except BrokenPicturesError as error:  # those of all lists are told together
                broken.append(error)
    if broken:
        raise together(broken)
    repeated = [text for name in datasets for text in _repeated([part for part in found if part.dataset.name == name])]
    if repeated and any(config.data.duplicates == "refuse" for config in configs):
        raise UserError("data.duplicates: refuse", "no picture may be in two lists:\n" + "\n".join(repeated))
    warnings += repeated
    for warning in warnings:
        _say(console, f"warning: {warning}")
    return DataNotes(tuple((name, dataset.split_source) for name, dataset in datasets.items()), tuple(warnings))


def _repeated(found: Sequence[Part]) -> list[str]:
    """Return which pictures are in two lists of a data set, by the bytes of their files."""
    lists = {part.name: part.contents() for part in found}
    texts = []
    for (one, of_one), (other, of_other) in combinations(lists.items(), 2):
        shared = [content for content in of_one if content in of_other]
        if shared:
            examples = [f"\n  {of_one[content]} and {of_other[content]}" for content in shared[:EXAMPLES]]
            more = "\n  ..." if len(shared) > EXAMPLES else ""
            count = f"{len(shared)} pictures are" if len(shared) > 1 else "1 picture is"
            name = found[0].dataset.name
            texts.append(f"{name}: {count} in both {one} and {other}:{''.join(examples)}{more}")
    return texts


def download_data(name: str, home: DataHome) -> None:
    """Download what is missing of a data set, with a progress bar for each file; say what is left to do.

    Raises:
        UserError: no direct download, no connection, wrong content, or a root that cannot be written.
    """
    from ammpl.data.download import download

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def advance(file: str, done: int, total: int | None) -> None:
            if file not in bars:
                bars[file] = progress.add_task(terminal_line(f"downloading {file}"), total=total)
            progress.update(bars[file], completed=done, total=total)

        done = download(name, home.root, advance)
    _say(console, done)


def _say(console: Console, text: str) -> None:
    console.print(terminal(text), markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """Makes a bar for a part when its first pictures are done: none for what was prepared before."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def __call__(self, part: Part) -> Any:
        bars: list[Any] = []

        def advance(done: int) -> None:
            if not bars:
                name = terminal_line(f"preparing {part.dataset.name}/{part.name}")
                bars.append(self._progress.add_task(name, total=len(part)))
            self._progress.advance(bars[0], done)

        return advance


@contextmanager
def bars(console: Console) -> Iterator[_Bars]:
    """Show the progress of each part that has to be prepared."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)

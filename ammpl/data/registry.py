"""The data sets by name, and a person's own by their folder or manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from ammpl.data import digits
from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.dataset import Dataset
from ammpl.data.description import Description
from ammpl.data.distractor import DISTRACTORS, open_distractor
from ammpl.data.home import DataHome, is_path, replaced
from ammpl.data.own import read_own
from ammpl.data.store import Store
from ammpl.data.stored import dataset_on_disk
from ammpl.errors import UserError, did_you_mean

Opener = Callable[[DataHome, bool], Dataset]
"""(where data lie, whether to leave out pictures that cannot be read) -> the data set."""

LONGEST_LIST = 200_000
"""Pictures; of a longer training list only what a repeat draws is prepared."""


def registered() -> dict[str, Opener]:
    """Return the known data sets: name -> how to open it."""
    embedded: dict[str, Opener] = {"digits": lambda home, skip_broken: digits.open_digits()}
    embedded |= {name: partial(_distractor, name) for name in DISTRACTORS}
    return embedded | {name: partial(_published, description) for name, description in DESCRIPTIONS.items()}


@lru_cache(maxsize=32)
def open_dataset(name: str, home: DataHome, skip_broken: bool = False, field: str = "data.name") -> Dataset:
    """Open a data set by name, once a process. Its lists are read, no picture is decoded.

    Args:
        name: a registered name, or the path of a folder or manifest.
        home: where data lie.
        skip_broken: leave out pictures that cannot be read, rather than stop.
        field: where the name was written, for messages.

    Raises:
        UserError: unknown name, or files that are not as they should be.
    """
    known = registered()
    if name in known:
        return known[name](home, skip_broken)
    if is_path(name):
        return _own(replaced(name), home, skip_broken)
    raise UserError(field, "unknown data set or folder", got=name, fix=did_you_mean(name, known))


def _distractor(name: str, home: DataHome, skip_broken: bool) -> Dataset:
    return open_distractor(name)


def _own(path: Path, home: DataHome, skip_broken: bool) -> Dataset:
    own = read_own(path)
    whole = path.resolve()
    # Metrics are called after it, and not every character may stand there.
    name = re.sub(r"[^\w .-]", "_", whole.stem if path.is_file() else whole.name) or "pictures"
    return dataset_on_disk(
        name,
        own.listing,
        own.template,
        f"{path}",
        Store(home.store),
        skip_broken=skip_broken,
        published=False,
        warnings=own.warnings,
    )


def _published(description: Description, home: DataHome, skip_broken: bool) -> Dataset:
    listing = description.read(home.root)
    warnings = description.warnings(listing)
    if listing.validation == listing.test:  # ImageNet: tuning would look at the sealed test list
        note = "validation is drawn from training pictures, as the published validation list is the test list"
        listing = replace(listing, validation=(), split_source=f"{listing.split_source}; {note}")
    return dataset_on_disk(
        description.name,
        listing,
        description.template,
        description.source,
        Store(home.store),
        skip_broken=skip_broken,
        drawn_first=len(listing.train) > LONGEST_LIST,
        warnings=warnings,
    )

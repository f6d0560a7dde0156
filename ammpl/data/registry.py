"""The data sets by name, and a person's own by folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ammpl.data import digits
from ammpl.data.dataset import Dataset
from ammpl.data.home import DataHome
from ammpl.errors import UserError, did_you_mean


def registered() -> dict[str, Callable[[DataHome], Dataset]]:
    """Return the known data sets: name -> how to open it."""
    return {"digits": lambda home: digits.open_digits()}


@lru_cache(maxsize=32)
def open_dataset(name: str, home: DataHome, skip_broken: bool = False) -> Dataset:
    """Open a data set by name, once a process. Its lists are read, no picture is decoded.

    Args:
        name: a registered name.
        home: where data lie.
        skip_broken: leave out pictures that cannot be read, rather than stop.

    Raises:
        UserError: unknown name, or files that are not as they should be.
    """
    known = registered()
    if name not in known:
        raise UserError("data.name", "unknown data set", got=name, fix=did_you_mean(name, known))
    return known[name](home)

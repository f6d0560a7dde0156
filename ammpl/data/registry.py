"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ammpl.data import digits
from ammpl.data.dataset import Dataset
from ammpl.errors import UserError, did_you_mean


def registered() -> dict[str, Callable[[], Dataset]]:
    """Return the known data sets: name -> how to open it."""
    return {"digits": digits.open_digits}


@lru_cache(maxsize=4)
def open_dataset(name: str) -> Dataset:
    """Open a data set by name, once a process.

    Raises:
        UserError: unknown name.
    """
    known = registered()
    if name not in known:
        raise UserError("data.name", "unknown data set", got=name, fix=did_you_mean(name, known))
    return known[name]()

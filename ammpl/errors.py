"""Errors that the person at the keyboard can mend.

Everything the program knows to be the user's to mend is a :class:`UserError`; the command line prints its
text without a traceback and ends with exit code 2. Every other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ammpl.redaction import redacted

_NOT_GIVEN: Any = object()


class UserError(Exception):
    """A mistake in a file, a flag or the surroundings, with all that is needed to mend it.

    Args:
        where: the field or file, as the user wrote it (``fixed: model.mask.kind``, ``study.yaml``).
        rule: what must hold there, as a sentence without a full stop.
        got: the value found, where there is one; shown shortened.
        fix: what to do about it, where it is known.

    What is secret in an address is left out of the text, see :func:`ammpl.redaction.redacted`.

    Examples:
        >>> print(UserError("--shots", "must be at least 1", got=0, fix="leave it out for 16"))
        --shots: must be at least 1, got 0. Fix: leave it out for 16
    """

    def __init__(self, where: str, rule: str, *, got: Any = _NOT_GIVEN, fix: str | None = None):
        self.where = where
        self.rule = rule
        self.got = got
        self.fix = fix
        text = f"{redacted(where)}: {redacted(rule)}"
        if got is not _NOT_GIVEN:
            text += f", got {shorten(redacted(got) if isinstance(got, str) else got)}"
        if fix:
            text += f". Fix: {redacted(fix)}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        # Crosses process borders (Ray, multiprocessing): rebuilt from its text, whose parts are already joined.
        return _rebuild, (str(self),)


def _rebuild(text: str) -> UserError:
    where, _, rule = text.partition(": ")
    return UserError(where, rule)


def together(errors: Sequence[UserError], note: str = "") -> UserError:
    """Return one error that tells all of several, a line each, so that they can be mended in one round."""
    return _rebuild("\n".join([*dict.fromkeys(map(str, errors)), *([note] if note else [])]))


def reason_of(error: BaseException, width: int = 200) -> str:
    """Return an error's text on one line, the same in every run; its type's name where it has none.

    Secrets in addresses are left out, and where in memory an object is.
    """
    text = re.sub(r"<(\S+) object at 0x[0-9a-f]+>", r"<\1>", " ".join(str(error).split()))
    return redacted(text)[:width] or type(error).__name__


def shorten(value: Any, width: int = 80) -> str:
    """Return ``repr(value)`` on one line of at most ``width`` characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= width else text[: width - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'x'?`` for the known word nearest to ``word``, else the list of what is known.

    Returns None when nothing is known.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if not names:
        return None
    listed = ", ".join(names[:20])
    return f"known: {listed}" + (", …" if len(names) > 20 else "")


def from_validation_error(error: ValidationError, where: str, known: Iterable[str] = ()) -> UserError:
    """Turn pydantic's first complaint into a :class:`UserError`.

    Args:
        error: what pydantic raised.
        where: what was being read, prefixed to the dotted path of the field.
        known: the dotted names allowed at this place, for "did you mean".
    """
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    field = f"{where}: {path}" if path else where
    if first["type"] == "extra_forbidden":
        return UserError(field, "unknown key", fix=did_you_mean(path, known))
    if first["type"] == "missing":
        return UserError(field, "is required")
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["msg"].startswith("Input should be "):
        rule = "must be " + rule
    fix = None
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = str(first.get("ctx", {}).get("expected", ""))
        fix = did_you_mean(first["input"], [part.strip("'\" ") for part in choices.replace(" or ", ", ").split(",")])
    if isinstance(first["input"], dict | BaseModel):  # a rule over several fields: its text already names the values
        return UserError(field, rule)
    return UserError(field, rule, got=first["input"], fix=fix)

"""Addresses as they may be shown and kept: without what is secret in them.

One function for whatever prints, logs or keeps a text that may have an address in it. Where it cannot tell a secret
from the rest it leaves out too much.
"""

from __future__ import annotations

import re
import urllib.parse

LEFT_OUT = "***"

_SECRET = re.compile(
    r"(?i)pass|pwd|secret|token|api.?key|access.?key|^key$|sig$|signature|credential|auth|jwt|session"
)
_FIELD = re.compile(r"([?&;#])([^=&;#\s]+)=([^&;#\s'\"]*)")
_PAIR = re.compile(r"(?i)\b(\w*(?:password|passwd|secret|token|api_key))=(?!\*\*\*)('[^']*'|\"[^\"]*\"|[^\s&;,)\]]+)")
_DATABASES = re.compile(r"(?i)sql|oracle|mongo|redis|cockroach|db2")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_ALONE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?!://).)*", re.DOTALL)


def redacted(text: str) -> str:
    """Return a text whose addresses have no passwords: ``postgresql://me:***@host/db?token=***``.

    What is left out: what stands before the last @ after a colon, or alone where names are not (``https://***@host``);
    the values of fields of a query or fragment whose name says that they are secret; and such fields elsewhere in a
    text, as in a driver's ``password=...``.
    """
    address = _ALONE if _ALONE.fullmatch(text) else _IN_TEXT  # one that stands alone may have spaces in it
    text = address.sub(lambda found: _address(found[0]), text)
    return _PAIR.sub(rf"\1={LEFT_OUT}", text)


def is_redacted(address: str) -> bool:
    """Return whether something was left out of an address: it cannot be used."""
    return LEFT_OUT in address


def _address(address: str) -> str:
    scheme, _, rest = address.partition("://")
    rest = _FIELD.sub(lambda field: f"{field[1]}{field[2]}={LEFT_OUT}" if _is_secret(field[2]) else field[0], rest)
    user, at, host = _parted(scheme, rest)
    name, colon, _ = user.partition(":")
    if colon:
        return f"{scheme}://{name}:{LEFT_OUT}@{host}"
    if at and scheme.lower() in ("http", "https", "ws", "wss"):
        return f"{scheme}://{LEFT_OUT}@{host}"
    return f"{scheme}://{rest}"


def _is_secret(name: str) -> bool:
    return _SECRET.search(urllib.parse.unquote(name)) is not None


def _parted(scheme: str, rest: str) -> tuple[str, str, str]:
    """Return user with password, "@", and the rest; all empty where there is no user.

    A password may have any sign in it, written as it should be or not; a path may have an @ of its own.
    """
    if rest.startswith("/"):  # a file
        return "", "", rest
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    _, colon, port = authority.partition(":")
    if _DATABASES.search(scheme) or (colon and "@" not in authority and not port.isdecimal()):
        user, at, host = rest.rpartition("@")
        return user, at, host
    user, at, host = authority.rpartition("@")
    return user, at, host + rest[len(authority) :]

"""The end of a study, told to a web address of the user's: one JSON object by POST."""

from __future__ import annotations

import json
import math
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ammpl.errors import UserError
from ammpl.study.addresses import without_path

if TYPE_CHECKING:
    from ammpl.study.result.summary import StudySummary

SECONDS = 10.0
"""How long the address may take to answer."""


def check_url(url: str) -> None:
    """Raise UserError unless an address can be one of the web; whether it answers is known when the study ends."""
    fix = "--notify https://example.org/hooks/studies"
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises, too
    except ValueError as error:
        raise UserError("--notify", f"is no web address ({error})", got=without_path(url), fix=fix) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
        raise UserError("--notify", "must be an http or https address", got=without_path(url), fix=fix)


def message(summary: StudySummary) -> dict[str, Any]:
    """Return what is told of a study that ended: docs/review.md has the fields."""
    state = "ended"
    if summary.interrupted:
        state = "stopped" if summary.on_request else "interrupted"
    elif summary.errors or summary.stopped is not None:
        state = "failed"
    reasons = [*summary.errors, *([summary.stopped] if summary.stopped else [])]
    return {
        "study": summary.folder.name,
        "state": state,
        "text": f"study {summary.folder.name}: {state}" + (f" ({reasons[0]})" if reasons else ""),
        "seconds": round(summary.seconds, 1),
        "trials": summary.counts,
        "metrics": {name: value for name, value in summary.flat_metrics().items() if math.isfinite(value)},
    }


def failure(error: BaseException) -> dict[str, Any]:
    """Return what is told of a study that a fault of the program ended."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return {"state": "failed", "text": f"a study failed ({reason})"}


def post(url: str, told: Mapping[str, Any]) -> str | None:
    """Send an object as JSON; return what went wrong, None if it was taken."""
    request = urllib.request.Request(
        url,
        json.dumps(told).encode(),
        {"Content-Type": "application/json", "User-Agent": "ammpl-study"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        return f"it answered {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return "no answer in time" if isinstance(reason, socket.timeout) else str(reason)
    except Exception as error:  # http.client's: no HTTP at all
        return f"{type(error).__name__}: {error}"
    return None

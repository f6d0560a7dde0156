"""``events.jsonl``: all that happened in a study, in order. Whatever dies, the study goes on from it.

What a plan decides depends on its space and on what it is told, in that order. So a study that goes on loads no state:
a new plan is told again what the log has, and has to say again what the log says it said.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ammpl
from ammpl.errors import UserError, shorten
from ammpl.study.record.environment import changed_packages
from ammpl.study.trial import FIRST_PHASES, INTERRUPTED, State

FORMAT = 2
"""Of the log. A later one may have events that this version would not understand. Since 2 lines are chained."""

FILE = "events.jsonl"

Event = dict[str, Any]

_CHAINED = re.compile(rb'(.*),"chain":"([0-9a-f]{16})"\}')
"""A line whose last field is a checksum of it and all lines before."""
_KEY = re.compile(r"(?!\.+$)[^/\\\x00-\x1f]{1,200}")
"""A trial's key names its folder: no path leads out of it."""
_TOLD = ("started", "reported", "finished", "extended")  # the others decide nothing: session, ended


@dataclass(frozen=True)
class Line:
    """An event and where it stands, from 1."""

    number: int
    event: Event

    def __str__(self) -> str:
        return f"line {self.number} ({_title(self.event)})"


@dataclass(frozen=True)
class History:
    """What a log has.

    Attributes:
        lines: all of them.
        size: of the whole lines in bytes; what follows was being written when the driver died.
        chain: the checksum of all of them.
    """

    lines: tuple[Line, ...]
    size: int = 0
    chain: str = ""

    @property
    def session(self) -> Event:
        """The last session: who ran the study, with what; empty if there was none."""
        return next((line.event for line in reversed(self.lines) if line.event["event"] == "session"), {})

    @property
    def has_ended(self) -> bool:
        """Whether the study came to its end and everything was written; a session that did nothing changes nothing."""
        events = [line.event["event"] for line in self.lines if line.event["event"] != "session"]
        return bool(events) and events[-1] == "ended"

    @property
    def extensions(self) -> list[Line]:
        """Where later versions of the study begin: the first one is version 2."""
        return [line for line in self.lines if line.event["event"] == "extended"]

    @property
    def seconds(self) -> float:
        """The wall time of all sessions, each from its begin to its last event."""
        total, began, last = 0.0, None, None
        for line in self.lines:
            if line.event["event"] == "ended":  # written by the clock, after the last trial
                continue
            at = datetime.fromisoformat(line.event["time"])
            if began is None or last is None or line.event["event"] == "session":
                total += _seconds(began, last)
                began = at
            last = at
        return total + _seconds(began, last)

    @property
    def told(self) -> list[Line]:
        """What a plan said and was told. That a trial was interrupted is no end of it: it goes on."""
        return [line for line in self.lines if line.event["event"] in _TOLD and not _is_interruption(line.event)]

    @property
    def states(self) -> dict[str, State]:
        """How each trial ended, by key."""
        return {
            line.event["key"]: State(line.event["state"]) for line in self.told if line.event["event"] == "finished"
        }


def read_history(path: Path) -> History:
    """Read a log; a last line that was not written to its end is left out.

    Raises:
        UserError: it cannot be read, is damaged, was changed after it was written, or is of a later version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return History(())
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})") from None
    texts = data.split(b"\n")[:-1]
    lines: list[Line] = []
    size, chain, is_chained, restore = 0, "", False, "put back a copy of the file"
    for number, text in enumerate(texts, 1):
        found = _CHAINED.fullmatch(text)
        linked = _link(chain, found[1] + b"}" if found else text)
        try:
            event = json.loads(text)
            known = event["event"] in (*_TOLD, "session", "ended")
            datetime.fromisoformat(event["time"])
            _check(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number == len(texts):  # the machine died with it: the last line can have its end and lack its middle
                break
            raise UserError(str(path), f"line {number} is damaged", fix=restore) from None
        if not known or event.get("format", FORMAT) > FORMAT:
            version = event.get("version")
            raise UserError(
                str(path),
                f"line {number} was written by a later version" + (f", {version}" if version else ""),
                fix=f"use that version; this one is {ammpl.__version__}",
            )
        if found or is_chained or "chain" in event:
            if event.pop("chain", None) != linked:
                what = f"line {number}, or one before it, was changed after it was written (its checksum differs)"
                raise UserError(str(path), what, fix=restore)
            is_chained = True
        chain = linked
        lines.append(Line(number, event))
        size += len(text) + 1
    return History(tuple(lines), size, chain)


def _link(chain: str, text: bytes) -> str:
    """Return the checksum of a line and of those before it, whose checksum is given."""
    return hashlib.sha256(chain.encode() + text).hexdigest()[:16]


def _check(event: Event) -> None:
    """Refuse an event that lacks what is read of it, or has something else in its place.

    Raises:
        ValueError, KeyError, TypeError: it does.
    """
    name = event["event"]
    if name in ("started", "reported", "finished") and not _KEY.fullmatch(event["key"]):
        raise ValueError(event["key"])
    if name == "started":
        if not (isinstance(event["params"], dict) and isinstance(event["repeat"], int)):
            raise TypeError
        _ = event["phase"].strip()
    elif name == "reported":
        if not isinstance(event["step"], int):
            raise TypeError
        _ = [float(value) for value in event["metrics"].values()]
    elif name == "finished":
        State(event["state"])


class EventLog:
    """The log of a study that runs: first what earlier sessions wrote is told again, then new lines are added.

    Each line is with the operating system when the call returns, so that it survives the driver's death.

    Args:
        path: of the file, new or a study's.

    Attributes:
        history: what earlier sessions wrote.

    Raises:
        UserError: see :func:`read_history`.
        OSError: it cannot be written to.
    """

    def __init__(self, path: Path):
        self.history = read_history(path)
        self._path = path
        self._owed = deque(self.history.told)
        self._earlier = self.history.seconds
        self._chain = self.history.chain
        self._since: float | None = None
        self._opened = datetime.now(UTC), time.monotonic()
        self._has_session = False
        if path.exists():
            os.truncate(path, self.history.size)
        self._file = path.open("a", encoding="utf-8")

    @property
    def owed(self) -> Line | None:
        """The next line of earlier sessions that the plan has not come to; None once it says something new."""
        return self._owed[0] if self._owed else None

    def clock(self) -> float:
        """Return the wall time of the study so far, in seconds; while it is told again, of the event that is due.

        A plan asks whether there is time for another trial of the first phase. There was, if that is what comes next.
        """
        if self._owed:
            event = self._owed[0].event
            return 0.0 if event["event"] == "started" and event["phase"] in FIRST_PHASES else math.inf
        return self._earlier + (0.0 if self._since is None else time.monotonic() - self._since)

    def begin(self) -> None:
        """Begin a session: its time counts from now on."""
        self._since = time.monotonic()
        self._begin_session()

    def tell(self, name: str, **more: Any) -> datetime:
        """Add an event, or find it in its place; return its time.

        Raises:
            UserError: the log has another one in its place.
        """
        event = _as_json({"event": name, **more})
        if not self._owed:
            self._begin_session()
            return self._append(event)
        line = self._owed[0]
        if {name: value for name, value in line.event.items() if name != "time"} != event:
            raise self.differs(event)
        self._owed.popleft()
        return datetime.fromisoformat(line.event["time"])

    def differs(self, event: Event | None = None) -> UserError:
        """Return the error that something else, or nothing, comes out where the log has its next line."""
        line = self._owed[0]
        then, now = _title(line.event), _title(event) if event else "nothing"
        what = "the study"
        if event and then == now:
            what, then, now = _first_difference(line.event, event)
        fix = "resume with the study.yaml, the code and the package versions that the study began with"
        if changes := changed_packages(self._path.parent):
            fix += f" ({', '.join(changes)})"
        rule = f"{line}: {what} does not come out as it did: {then} then, {now} now"
        return UserError(str(self._path), rule, fix=fix)

    def sync(self) -> None:
        """See that what was added is on the disk, so that it survives the machine's death."""
        if not self._owed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _begin_session(self) -> None:
        if not self._has_session:
            self._has_session = True
            path = space_file(self._path.parent)
            # The log outlives a loss of power that takes the file.
            space = {} if self.history.lines or not path.is_file() else {"space": path.read_text(encoding="utf-8")}
            self._append(
                {
                    "event": "session",
                    "format": FORMAT,
                    "version": ammpl.__version__,
                    "study_sha256": study_sha256(self._path.parent),
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    **space,
                }
            )

    def _append(self, event: Event) -> datetime:
        # A machine's clock may be set while a study runs; what is between two events must be the time that passed.
        opened, since = self._opened
        now = opened + timedelta(seconds=time.monotonic() - since)
        line = {"event": event["event"], "time": now.isoformat(), **event}
        text, self._chain = _written(line, self._chain)
        self._file.write(text)
        self._file.flush()
        return now


def end_log(path: Path) -> None:
    """Add, to the log of a study that is closed, that it has come to its end and all its files are written."""
    text, _ = _written({"event": "ended", "time": datetime.now(UTC).isoformat()}, read_history(path).chain)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _written(event: Event, chain: str) -> tuple[str, str]:
    """Return an event's line, and the checksum that it ends with; that of the lines before is given."""
    text = json.dumps(event, allow_nan=False, separators=(",", ":"))
    chain = _link(chain, text.encode())
    return f'{text[:-1]},"chain":"{chain}"}}\n', chain


def space_file(folder: Path, version: int = 1) -> Path:
    """Return where a version of a study has its resolved space: ``study.yaml``, later ``study-2.yaml``, ...."""
    return folder / ("study.yaml" if version == 1 else f"study-{version}.yaml")


def study_sha256(folder: Path, version: int = 1) -> str | None:
    """Return what tells whether the space file of a study's version was changed; None where there is none."""
    path = space_file(folder, version)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _is_interruption(event: Event) -> bool:
    return event.get("state") == State.LOST and event["reason"] == INTERRUPTED


def _as_json(event: Event) -> Event:
    """Return an event as it is read back: NaN and infinities, which JSON lacks, are the texts that ``float`` reads."""
    found: Event = json.loads(json.dumps(_finite(event), allow_nan=False))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return value


def _title(event: Event) -> str:
    return f"{event['event']} {event['key']}" if "key" in event else str(event["event"])


def _first_difference(then: Any, now: Any, name: str = "") -> tuple[str, str, str]:
    """Return the dotted name of the first value that differs, and both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *then]):
            if key != "time" and (key not in then or key not in now or then[key] != now[key]):
                return _first_difference(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    return name, shorten(then), shorten(now)


def _seconds(began: datetime | None, last: datetime | None) -> float:
    """Return the time between; 0 where a clock was set back."""
    return 0.0 if began is None or last is None else max(0.0, (last - began).total_seconds())

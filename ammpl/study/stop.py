"""A graceful end on request, from anywhere that has the study's folder."""

from __future__ import annotations

from pathlib import Path

from ammpl.errors import UserError
from ammpl.study.plan.replay import check_study
from ammpl.study.record.event_log import FILE, read_history
from ammpl.study.record.folder import is_locked, request_stop, withdraw_stop


def stop(folder: Path) -> str:
    """Ask the driver of a study to let running trials end and to begin no more; return what to tell the user.

    Nothing is signalled: the driver finds the request in the folder, so it may be on another machine that shares it.

    Raises:
        UserError: the folder is no study's or cannot be written to, or nobody runs the study.
    """
    check_study(folder)
    _check_running(folder)
    new = request_stop(folder)
    try:
        _check_running(folder)  # it may have ended in between, and the next driver is not the one that was asked
    except UserError:
        withdraw_stop(folder)
        raise
    history = read_history(folder / FILE)
    begun = [line.event["key"] for line in history.told if line.event["event"] == "started"]
    ended = history.states
    running = [key for key in begun if key not in ended]
    shown = ", ".join(running[:8]) + (", …" if len(running) > 8 else "")
    what = f"no more trials begin; let end: {shown}" if running else "no trial begins"
    return f"{folder}: {'asked' if new else 'was asked before'} to stop: {what}"


def _check_running(folder: Path) -> None:
    if is_locked(folder):
        return
    if read_history(folder / FILE).has_ended:
        raise UserError(str(folder), "is not running: the study has ended")
    raise UserError(str(folder), "is not running", fix=f"it goes on with: python tune.py resume {folder}")

"""The end of a study in the terminal, and what the process says by its exit code."""

from __future__ import annotations

from rich.console import Console

from ammpl.commands.command import EXIT_INTERRUPTED, EXIT_NO_RESULT, EXIT_SUCCESS, EXIT_USER_ERROR, say_error
from ammpl.escaping import terminal
from ammpl.study import Study
from ammpl.study.result.summary import StudySummary


def show(study: Study, console: Console) -> None:
    """Print the end of a study: its tables, its folder, its report, what opens it in MLflow."""
    summary = _summary(study)

    def say(text: str) -> None:
        console.print(terminal(text), markup=False, highlight=False, soft_wrap=True)

    say("")
    for table in summary.tables():
        console.print(table)
    if summary.interrupted:
        say(f"{'stopped on request' if summary.on_request else 'interrupted'}: this is what was known by then")
        say(f"it goes on with: python tune.py resume {summary.folder}")
    for remark in summary.remarks:
        say(remark)
    for reason, count in summary.reasons.items():
        say(f"{count} × {reason}")
    if summary.unshown:
        say(summary.unshown)
    for problem in summary.problems:
        say(f"warning: {problem}")
    say(f"study folder: {summary.folder}")
    for text in study.said:
        say(text)
    if summary.mlflow:
        say(f"MLflow: {summary.mlflow}")
    for error in summary.errors:
        say_error(error)


def exit_code(study: Study) -> int:
    """Return what the process ends with after a study."""
    summary = _summary(study)
    if summary.errors:
        return EXIT_USER_ERROR
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SUCCESS if summary.has_result and summary.stopped is None else EXIT_NO_RESULT


def _summary(study: Study) -> StudySummary:
    assert study.summary is not None, "it was run"
    return study.summary

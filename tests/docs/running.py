"""Runs what a page says, as it stands but for the rewrites below."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ammpl import cli
from tests.docs.blocks import ROOT

REWRITES = (
    (r"^\.venv/bin/python ", "python "),
    (r"--trials \+\d+", "--trials +1"),  # sizes: a page's studies take minutes, ours seconds
    (r"--trials \d+", "--trials 2"),
    (r"--repeats \+\d+", "--repeats +1"),
    (r"--set training\.steps=\d+", "--set training.steps=2"),
    (r"(rerun-trial studies/\S+) 17", r"\1 1"),
    (r"^(python tune\.py(?:$| extend | \S+\.yaml).*)$", r"\1 --concurrency 1 --no-report"),  # one worker to start
    (r"^(python tune\.py report .*)$", r"\1 --no-tracking"),  # MLflow's copy: test_report.py
    # What these would run has been run by other blocks: here the files and flags are checked.
    (r"^(python tune\.py (?:my_space\.yaml|my_ablation\.yaml|--from|--dataset) ?.*)", r"\1 --dry-run"),
)
"""(pattern, instead): all that is not run as a page has it."""


@dataclass
class Place:
    """A folder in which a page's commands are run one after the other.

    Attributes:
        folder: the working directory.
        surroundings: further environment variables.
    """

    folder: Path
    surroundings: dict[str, str] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """Run a command line and return what it printed; raises AssertionError unless it ends with exit code 0."""
        for pattern, instead in REWRITES:
            command = re.sub(pattern, instead, command)
        words = shlex.split(command)
        alone = not re.search(r"[|&><;]", command) and not self.surroundings
        code, said = (
            self._in_process(words[2:]) if words[:2] == ["python", "tune.py"] and alone else self._bash(command)
        )
        assert code == 0, f"{command}\n{said}"
        return said

    def _in_process(self, words: list[str]) -> tuple[int, str]:
        """Run the command line of ``tune.py`` here: imports and Ray are there already."""
        said = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = cli.main(words)
            except SystemExit as end:
                code = int(end.code or 0)
        return code, said.getvalue()

    def _bash(self, command: str) -> tuple[int, str]:
        """Run a command in a shell whose ``python`` is this one."""
        binaries = self.folder / "bin"
        if not binaries.exists():
            binaries.mkdir()
            (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
            (binaries / "python").chmod(0o755)
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.surroundings, "PATH": path}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

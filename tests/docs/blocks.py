"""The code blocks of README and docs: what they are, which file they are of, and why one is not run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("bash", "sh", "shell", "console")

FENCE = re.compile(
    r"(?ms)^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"(?:`(?P<file>[^`\n]+)`:\n\n)?"
    r"(?P<fence>`{3,}|~{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)$"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file that it is in, from the repository's root.
        line: its first line there.
        language: after the fence.
        text: between the fences.
        reason: why it is not run: ``<!-- not run: REASON -->`` stands in the line before it. None for one that is.
        file: what a reader is to save it as: "`PATH`:" stands in the paragraph before it.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    file: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, those that go on in the next one joined."""
        return [line for line in self.text.replace("\\\n", "").splitlines() if line.strip()]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text[: found.start("fence")].count("\n") + 1
        language, reason = found["language"].strip(), found["reason"]
        yield Block(page.relative_to(ROOT).as_posix(), line, language, found["text"], reason, found["file"])

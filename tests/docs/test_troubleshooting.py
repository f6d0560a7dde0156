"""Messages that the page of troubles quotes are those of the program."""

from __future__ import annotations

import ast
import re

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def _said() -> set[str]:
    """Return every text that the program's code holds, f-strings without what they put in."""
    texts: set[str] = set()
    for path in (ROOT / "ammpl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


def test_every_quoted_message_is_in_the_program() -> None:
    said = _said()
    quoted = re.findall(r"(?m)^### `([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(quoted) > 15
    parts = [part.strip() for message in quoted for part in message.split("…") if len(part.strip()) > 2]
    assert [part for part in parts if not any(part in text for text in said)] == []

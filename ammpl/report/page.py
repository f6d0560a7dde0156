"""The report as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ammpl.escaping import html
from ammpl.report.comparisons import Sentence
from ammpl.report.figures import Figure
from ammpl.report.masks import Picture
from ammpl.report.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is a class of the style sheet."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Code:
    """Commands."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The answer, a sentence a line."""

    sentences: Sequence[Sentence]


Block = Text | Code | Answer | Table | Figure | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        folded: whether it is shown only when asked for.
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the page."""
    assets = resources.files("ammpl.report")
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = (assets / "page.js").read_text(encoding="utf-8")
    shown = [section for section in sections if section.blocks]
    links = "".join(f'<a href="#section-{i}">{html(s.title)}</a>' for i, s in enumerate(shown))
    body = "".join(_section(i, section) for i, section in enumerate(shown))
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or a browser asks for one
        f"<style>{style}</style></head><body><nav>{links}</nav><main><h1>{html(title)}</h1>{body}</main>"
        f'<div id="tip" role="status" hidden></div><script>{script}</script></body></html>\n'
    )


def _section(index: int, section: Section) -> str:
    blocks = "".join(map(_block, section.blocks))
    heading = f"<h2>{html(section.title)}</h2>"
    if section.folded:
        blocks = f"<details><summary>{heading}</summary>{blocks}</details>"
        heading = ""
    return f'<section id="section-{index}">{heading}{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        kind = f' class="{block.kind}"' if block.kind else ""
        return f"<p{kind}>{html(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html(block.text)}</pre>"
    if isinstance(block, Answer):
        return f'<ul class="answer">{"".join(map(_sentence, block.sentences))}</ul>'
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode("ascii")
        text = html(f"{block.title}. {block.caption}")
        return (
            f"<figure><figcaption><b>{html(block.title)}.</b> {html(block.caption)}</figcaption>"
            f'<div class="scroll"><img alt="{text}" src="data:image/png;base64,{data}"></div></figure>'
        )
    return block.html()


def _sentence(sentence: Sentence) -> str:
    judged = ""
    if sentence.verdict is not None:
        kind = {"holds": "holds", "does not": "not", "undecided": "open"}[str(sentence.verdict)]
        word = "does not hold" if kind == "not" else str(sentence.verdict)
        judged = f' <span class="claim">{html(sentence.claim)}: <b class="verdict {kind}">{word}</b></span>'
    return f"<li>{html(sentence.text)}{judged}</li>"

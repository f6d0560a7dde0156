"""The 81 concepts that the tiny tower learns: digits, letters, symbols and drawn shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["digit", "letter", "symbol", "shape"]
KINDS: tuple[Kind, ...] = ("digit", "letter", "symbol", "shape")

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Upper and lower case of these look alike once a glyph is scaled to a fixed box: one concept each.
MERGED_CASE = "cosvwxzu"

SHAPE_NAMES = (
    "circle", "disk", "square", "triangle", "diamond", "star",
    "heart", "arrow", "crescent", "cross", "hexagon", "line",
)  # fmt: skip

_SYMBOLS = {
    "plus sign": "+",
    "minus sign": "-\u2212",
    "equals sign": "=",
    "question mark": "?",
    "exclamation mark": "!",
    "ampersand": "&",
    "at sign": "@",
    "hash sign": "#",
    "percent sign": "%",
    "dollar sign": "$",
    "asterisk": "*",
    "slash": "/",
    "euro sign": "\u20ac",
    "left bracket": "(",
    "right bracket": ")",
}


@dataclass(frozen=True)
class Concept:
    """One thing that an image can show.

    Attributes:
        name: how captions call it, unique among concepts ("seven", "capital letter a", "heart").
        short: a name that several concepts may share ("letter a" for both cases); equals ``name`` otherwise.
        kind: its group.
        characters: the characters whose glyphs show it; empty for drawn shapes.
    """

    name: str
    short: str
    kind: Kind
    characters: str


def _letters() -> list[Concept]:
    concepts = []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        short = f"letter {letter}"
        if letter in MERGED_CASE:
            concepts.append(Concept(short, short, "letter", letter + letter.upper()))
        else:
            concepts.append(Concept(f"small letter {letter}", short, "letter", letter))
            concepts.append(Concept(f"capital letter {letter}", short, "letter", letter.upper()))
    return concepts


CONCEPTS: tuple[Concept, ...] = (
    *(Concept(name, name, "digit", str(value)) for value, name in enumerate(DIGIT_NAMES)),
    *_letters(),
    *(Concept(name, name, "symbol", characters) for name, characters in _SYMBOLS.items()),
    *(Concept(name, name, "shape", "") for name in SHAPE_NAMES),
)

SHORT_NAMES: tuple[str, ...] = tuple(dict.fromkeys(concept.short for concept in CONCEPTS))

"""Captions of glyph images: which words they use, what they claim, and of which images the claim is true.

A caption is a sentence together with its claims. In a batch every caption that is true of an image counts as a
positive for it, not only the caption written for it: "a photo of a seven." is true of every seven.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from ammpl.pretrain.augment import COLOURS, Attributes
from ammpl.pretrain.concepts import CONCEPTS, DIGIT_NAMES, KINDS, SHORT_NAMES

# What a caption can claim; the order of the columns of the claim matrix.
CLAIMS = ("concept", "short", "kind", "ink", "paper", "size", "weight", "lean", "focus")
NO_CLAIM = -2  # differs from -1, an image's "cannot say", which makes every claim about it false

COLOUR_NAMES = tuple(COLOURS)
SIZE_WORDS = (("small", "tiny", "little"), ("large", "big", "huge"))
WEIGHT_WORDS = (("thin", "light"), ("bold", "thick", "heavy"))
LEAN_WORDS = (("upright", "straight"), ("left leaning",), ("right leaning", "slanted"))
FOCUS_WORDS = (("sharp", "clear"), ("blurry", "low resolution", "pixelated"))

# Phrases around the name; what they claim, if anything, is not checked against the image. Prompts of later studies
# are built from these.
OPENINGS = (
    "a photo of a", "a photo of the", "a photo of one", "a photo of my", "an image of a", "an image of the",
    "a picture of a", "a picture of the", "a drawing of a", "a sketch of a", "a rendering of a", "a scan of a",
    "a close-up photo of a", "a cropped photo of a", "a good photo of a", "a bad photo of a", "a nice photo of a",
    "a jpeg corrupted photo of a", "a painting of a", "art of a", "graffiti of a",
    "this is a", "there is a", "it is a", "here is a photo of a", "a", "the", "an example of a", "a figure of a",
    "a photo of a handwritten", "a photo of a hand written", "a photo of a printed", "a handwritten", "a printed",
    "a written", "itap of a", "a centered photo of a", "a satellite photo of a", "a type of",
)  # fmt: skip
KIND_NOUNS = {
    "digit": ("digit", "number", "numeral", "figure"),
    "letter": ("letter", "character"),
    "symbol": ("symbol", "sign", "character"),
    "shape": ("shape", "geometric shape"),
}
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Caption:
    """A sentence and its claims, one per entry of ``CLAIMS`` (``NO_CLAIM`` where it is silent)."""

    text: str
    claims: tuple[int, ...]


def words() -> list[str]:
    """Return every word that a caption can contain, sorted: the tower's vocabulary before sub-word splitting."""
    phrases: list[str] = [*OPENINGS, *COLOUR_NAMES, "on", "on a", "background", "in", "with", "of", "type", "."]
    phrases += [concept.name for concept in CONCEPTS] + list(SHORT_NAMES)
    for group in (*SIZE_WORDS, *WEIGHT_WORDS, *LEAN_WORDS, *FOCUS_WORDS, *KIND_NOUNS.values()):
        phrases += group
    phrases += [str(digit) for digit in range(len(DIGIT_NAMES))]
    return sorted({word for phrase in phrases for word in phrase.split()})


def truth(claims_TA: torch.Tensor, facts_BA: torch.Tensor) -> torch.Tensor:
    """Return which captions are true of which images, bool (B, T).

    Args:
        claims_TA: int64, one row per caption; ``NO_CLAIM`` where it is silent.
        facts_BA: int64, one row per image; -1 where nothing can be said.
    """
    silent = claims_TA[None] == NO_CLAIM
    return (silent | (claims_TA[None] == facts_BA[:, None])).all(-1)


def facts(concepts_B: torch.Tensor, attributes: Attributes) -> torch.Tensor:
    """Return what is true of each image, int64 (B, A), in the order of ``CLAIMS``."""
    shorts = torch.tensor([SHORT_NAMES.index(concept.short) for concept in CONCEPTS])
    kinds = torch.tensor([KINDS.index(concept.kind) for concept in CONCEPTS])
    a = attributes
    columns = [concepts_B, shorts[concepts_B], kinds[concepts_B], a.ink, a.paper, a.size, a.weight, a.lean, a.focus]
    return torch.stack(columns, -1)


def write_caption(row: list[int], rng: random.Random) -> Caption:
    """Write one caption that is true of an image.

    Args:
        row: the image's facts in the order of ``CLAIMS``.
        rng: chooses the phrasing.
    """
    known = dict(zip(CLAIMS, row, strict=True))
    claims = dict.fromkeys(CLAIMS, NO_CLAIM)
    concept = CONCEPTS[known["concept"]]
    kind = concept.kind

    def claim(attribute: str, probability: float) -> bool:
        if known[attribute] < 0 or rng.random() >= probability:
            return False
        claims[attribute] = known[attribute]
        return True

    noun = _noun(known, claims, rng)
    if rng.random() < 0.3:
        return Caption(TEMPLATE.format(noun), tuple(claims.values()))
    adjectives = []
    if claim("focus", 0.15):
        adjectives.append(rng.choice(FOCUS_WORDS[known["focus"]]))
    if claim("size", 0.2):
        adjectives.append(rng.choice(SIZE_WORDS[known["size"]]))
    if claim("weight", 0.2):
        adjectives.append(rng.choice(WEIGHT_WORDS[known["weight"]]))
    if claim("lean", 0.15):
        adjectives.append(rng.choice(LEAN_WORDS[known["lean"]]))
    if claim("ink", 0.35):
        adjectives.append(COLOUR_NAMES[known["ink"]])
    if claims["concept"] != NO_CLAIM and kind == "digit" and rng.random() < 0.25:
        noun = f"{rng.choice(KIND_NOUNS['digit'])} {noun}"
    ending = ""
    if claim("paper", 0.3):
        colour = COLOUR_NAMES[known["paper"]]
        ending = f" on a {colour} background" if rng.random() < 0.7 else f" on {colour}"
    opening = rng.choice(OPENINGS) if rng.random() < 0.85 else ""
    full_stop = "." if rng.random() < 0.85 else ""
    text = " ".join(part for part in (opening, *adjectives, noun) if part) + ending + full_stop
    return Caption(text, tuple(claims.values()))


def _noun(known: dict[str, int], claims: dict[str, int], rng: random.Random) -> str:
    """Choose how to call the thing shown and record the claim: its concept, its shared name, or only its kind."""
    concept = CONCEPTS[known["concept"]]
    draw = rng.random()
    if draw < 0.06:
        claims["kind"] = known["kind"]
        return rng.choice(KIND_NOUNS[concept.kind][:2])
    if concept.short != concept.name and draw < 0.4:
        claims["short"] = known["short"]
        return concept.short
    claims["concept"] = known["concept"]
    if concept.kind == "digit" and draw > 0.92:
        return str(DIGIT_NAMES.index(concept.name))
    return concept.name

"""Fonts on disk -> a set of normalised glyph bitmaps with their concepts.

Every font and every character is rendered once; all variation comes later, per batch, in ``augment``.
Legend of shape suffixes: G glyphs, S = ``BITMAP_SIDE`` pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFont

from ammpl.pretrain.concepts import CONCEPTS, KINDS, SHAPE_NAMES, Kind
from ammpl.pretrain.shapes import draw_shape

BITMAP_SIDE = 40  # pixels; the margin lets a glyph be sheared and shifted without leaving the bitmap
GLYPH_SIDE = 32  # pixels; the longer side of every glyph
SHAPE_VARIANTS = 120  # drawings of each shape
FONT_SUFFIXES = frozenset({".ttf", ".otf", ".ttc", ".pfb", ".t1"})

# Fonts whose glyphs are not plain letters and digits (symbols, outlines, ruled lines, other scripts under Latin
# code points), judged by the name alone.
_UNSUITABLE_NAMES = (
    "symbol", "dingbat", "emoji", "outline", "math", "icons", "zapf", "d050000l", "braille", "keyboard", "klaver",
    "cmex", "cmsy", "cmmi", "guiada", "pautada", "ellhnikh", "alfa-beta", "babel",
)  # fmt: skip
# Words of a family's name that tell its weight or width and not its design.
_STYLE_WORDS = frozenset({"light", "medium", "thin", "condensed", "narrow", "inclined", "upright", "text", "book"})
_RENDER_SIZE = 96  # points; rendered large, then scaled down
_MISSING = "\U0010fffe"  # a code point that no font assigns: shows the font's "missing glyph" box

Bitmap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GlyphSet:
    """All bitmaps that pretraining draws from.

    Attributes:
        bitmaps: uint8 (G, S, S), ink 255 on 0.
        concepts: int64 (G,), index into ``CONCEPTS``.
        family: int64 (G,), index into ``families``.
        families: font families, and one pseudo-family of drawn shapes.
        fonts: number of fonts that passed the checks.
    """

    bitmaps: torch.Tensor
    concepts: torch.Tensor
    family: torch.Tensor
    families: tuple[str, ...]
    fonts: int

    def __len__(self) -> int:
        return len(self.concepts)

    def sampling_weights(self, shares: Mapping[Kind, float]) -> torch.Tensor:
        """Return the probability of drawing each glyph, (G,), float64.

        A kind gets its share, split evenly over the kind's concepts, then over the families that have the
        concept, then over the family's glyphs: a family with forty weights counts no more than one with a single.
        """
        kinds = [KINDS.index(concept.kind) for concept in CONCEPTS]
        kind_G = torch.tensor(kinds)[self.concepts]
        pair_G = self.concepts * len(self.families) + self.family
        glyphs_of_pair = pair_G.bincount(minlength=len(CONCEPTS) * len(self.families)).double()
        families_of_concept = (glyphs_of_pair.view(len(CONCEPTS), -1) > 0).sum(-1).double()
        present = families_of_concept > 0
        concepts_of_kind = torch.tensor(kinds)[present].bincount(minlength=len(KINDS)).double()
        share = torch.tensor([shares[kind] for kind in KINDS], dtype=torch.float64)
        weights = share[kind_G] / concepts_of_kind[kind_G]
        weights = weights / families_of_concept[self.concepts] / glyphs_of_pair[pair_G]
        normalised: torch.Tensor = weights / weights.sum()
        return normalised


def find_fonts(directories: Iterable[Path]) -> list[Path]:
    """Return all font files below the directories, sorted by file name so that the order is the same everywhere.

    Raises:
        FileNotFoundError: a directory does not exist.
    """
    found = []
    for directory in directories:
        if not directory.is_dir():
            raise FileNotFoundError(f"fonts: {directory} is not a directory")
        found += [path for path in directory.rglob("*") if path.suffix.lower() in FONT_SUFFIXES and path.is_file()]
    unique = {path.name: path for path in sorted(found, reverse=True)}  # the same file in two places counts once
    return [unique[name] for name in sorted(unique)]


def normalise(image: Image.Image) -> Bitmap | None:
    """Crop the ink of a grey image and centre it in a square bitmap.

    Returns:
        uint8 (S, S), the ink's longer side ``GLYPH_SIDE`` pixels long; None for an image without ink.
    """
    box = image.getbbox()
    if box is None:
        return None
    ink = image.crop(box)
    scale = GLYPH_SIDE / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    ink = ink.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    canvas = Image.new("L", (BITMAP_SIDE, BITMAP_SIDE))
    canvas.paste(ink, ((BITMAP_SIDE - width) // 2, (BITMAP_SIDE - height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def _render(font: ImageFont.FreeTypeFont, character: str) -> Bitmap | None:
    side = 3 * _RENDER_SIZE
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top or right - left > side or bottom - top > side:
        return None
    mask = Image.Image()._new(font.getmask(character, mode="L"))
    return normalise(mask)


def render_font(path: Path) -> tuple[str, dict[str, Bitmap]] | None:
    """Render every character of every concept in one font.

    Returns:
        The family's name and a bitmap per character; None for fonts that cannot be read, that are symbol,
        emoji or outline fonts, or that lack one of the ten digits or show two of them alike.
    """
    try:
        font = ImageFont.truetype(str(path), _RENDER_SIZE)
        names = [name or "" for name in font.getname()]
        if any(word in " ".join([*names, path.stem]).lower() for word in _UNSUITABLE_NAMES):
            return None
        missing = _render(font, _MISSING)
        bitmaps: dict[str, Bitmap] = {}
        for character in dict.fromkeys("".join(concept.characters for concept in CONCEPTS)):
            bitmap = _render(font, character)
            if bitmap is not None and not (missing is not None and np.array_equal(bitmap, missing)):
                bitmaps[character] = bitmap
    except (OSError, ValueError):
        return None  # broken, bitmap-only or otherwise unreadable by FreeType
    digits = {bitmaps[digit].tobytes() for digit in "0123456789" if digit in bitmaps}
    return (_family(names[0]), bitmaps) if len(digits) == 10 else None


def _family(name: str) -> str:
    """Return a family's name without words of weight and width, so that such variants share one weight."""
    words = [word for word in name.split() if word.lower() not in _STYLE_WORDS]
    return " ".join(words) or name


def _shapes(seed: int) -> Iterator[tuple[str, Bitmap]]:
    rng = np.random.default_rng(seed)
    for name in SHAPE_NAMES:
        for _ in range(SHAPE_VARIANTS):
            bitmap = normalise(draw_shape(name, rng))
            if bitmap is not None:
                yield name, bitmap


def build_glyphs(fonts: Sequence[Path], seed: int = 0) -> GlyphSet:
    """Render all fonts and draw the shapes.

    Args:
        fonts: font files, as from :func:`find_fonts`.
        seed: decides the drawn shapes.

    Raises:
        ValueError: no font is usable.
    """
    concept_of = {character: i for i, concept in enumerate(CONCEPTS) for character in concept.characters}
    index_of_name = {concept.name: i for i, concept in enumerate(CONCEPTS)}
    bitmaps: list[Bitmap] = []
    concepts: list[int] = []
    families: list[int] = []
    names: dict[str, int] = {}
    used = 0
    for path in fonts:
        rendered = render_font(path)
        if rendered is None:
            continue
        used += 1
        family, glyphs = rendered
        family_index = names.setdefault(family, len(names))
        for character, bitmap in glyphs.items():
            bitmaps.append(bitmap)
            concepts.append(concept_of[character])
            families.append(family_index)
    if used == 0:
        raise ValueError(f"fonts: none of {len(fonts)} font files has the ten digits")
    shapes_index = len(names)
    for name, bitmap in _shapes(seed):
        bitmaps.append(bitmap)
        concepts.append(index_of_name[name])
        families.append(shapes_index)
    return GlyphSet(
        bitmaps=torch.from_numpy(np.stack(bitmaps)),
        concepts=torch.tensor(concepts),
        family=torch.tensor(families),
        families=(*names, "drawn shapes"),
        fonts=used,
    )

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from ammpl.pretrain.concepts import CONCEPTS, KINDS, SHAPE_NAMES
from ammpl.pretrain.glyphs import BITMAP_SIDE, GLYPH_SIDE, GlyphSet, build_glyphs, find_fonts, normalise, render_font
from ammpl.pretrain.shapes import draw_shape

SHARES = {"digit": 0.3, "letter": 0.4, "symbol": 0.15, "shape": 0.15}


def test_concepts_are_81_with_unique_names_and_characters() -> None:
    names = [concept.name for concept in CONCEPTS]
    characters = [character for concept in CONCEPTS for character in concept.characters]
    assert len(CONCEPTS) == len(set(names)) == 81
    assert len(characters) == len(set(characters))
    assert names[:10] == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_every_concept_has_glyphs_in_one_ordinary_font(glyphs: GlyphSet) -> None:
    assert glyphs.fonts == 3
    assert glyphs.families == ("DejaVu Sans", "DejaVu Serif", "drawn shapes")
    assert set(glyphs.concepts.tolist()) == set(range(len(CONCEPTS)))
    assert glyphs.bitmaps.shape == (len(glyphs), BITMAP_SIDE, BITMAP_SIDE)


def test_glyphs_fill_their_box_and_keep_a_margin(glyphs: GlyphSet) -> None:
    ink = glyphs.bitmaps > 0
    boxes = [Image.fromarray(bitmap.numpy()).getbbox() for bitmap in glyphs.bitmaps]
    sides = [max(right - left, bottom - top) for left, top, right, bottom in boxes]
    assert max(sides) == GLYPH_SIDE
    assert min(sides) >= GLYPH_SIDE - 2  # an edge fainter than half a grey level rounds to none
    margin = (BITMAP_SIDE - GLYPH_SIDE) // 2
    assert not ink[:, : margin - 1].any()
    assert not ink[:, :, -margin + 1 :].any()


def test_fonts_without_plain_digits_are_left_out() -> None:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    assert render_font(fonts / "DejaVuSans.ttf") is not None
    assert render_font(fonts / "cmsy10.ttf") is None  # symbols under the digits' code points
    assert render_font(fonts / "STIXSizOneSymReg.ttf") is None  # no digits


def test_files_that_are_no_fonts_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert render_font(tmp_path / "broken.ttf") is None
    with pytest.raises(ValueError, match="none of 1 font files has the ten digits"):
        build_glyphs(find_fonts([tmp_path]))


def test_fonts_are_found_once_and_in_order(font_directory: Path) -> None:
    found = find_fonts([font_directory, font_directory])
    assert [path.name for path in found] == sorted(path.name for path in font_directory.iterdir())
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        find_fonts([font_directory / "missing"])


def test_sampling_gives_kinds_their_shares_and_families_equal_parts(glyphs: GlyphSet) -> None:
    weights = glyphs.sampling_weights(SHARES)
    kinds = torch.tensor([KINDS.index(concept.kind) for concept in CONCEPTS])[glyphs.concepts]
    for index, kind in enumerate(KINDS):
        assert float(weights[kinds == index].sum()) == pytest.approx(SHARES[kind])
    seven = glyphs.concepts == 7
    by_family = [float(weights[seven & (glyphs.family == f)].sum()) for f in range(2)]
    assert by_family == pytest.approx([0.015, 0.015])  # two fonts of one family, one of the other


def test_normalise_without_ink() -> None:
    assert normalise(Image.new("L", (10, 10))) is None


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_shapes_vary_with_the_generator_and_stay_inside(name: str) -> None:
    drawings = [np.asarray(draw_shape(name, np.random.default_rng(seed))) for seed in (0, 0, 1, 2)]
    assert np.array_equal(drawings[0], drawings[1])
    assert not np.array_equal(drawings[0], drawings[2]) or not np.array_equal(drawings[0], drawings[3])
    for drawing in drawings:
        border = np.concatenate([drawing[0], drawing[-1], drawing[:, 0], drawing[:, -1]])
        assert drawing.any()
        assert not border.any()

from __future__ import annotations

import pytest
import torch

from ammpl.pretrain.augment import (
    BLACK,
    BOLD,
    IMAGE_SIDE,
    LARGE,
    SMALL,
    THIN,
    WHITE,
    Augmenter,
    AugmentSettings,
    ramp,
    stroke_weight,
)
from ammpl.pretrain.glyphs import GlyphSet


def augmenter(seed: int = 0, settings: AugmentSettings | None = None) -> Augmenter:
    return Augmenter(settings or AugmentSettings(), torch.Generator().manual_seed(seed))


def test_images_are_finite_in_range_and_repeatable(glyphs: GlyphSet) -> None:
    bitmaps = glyphs.bitmaps[:64]
    images, attributes = augmenter()(bitmaps)
    again, _ = augmenter()(bitmaps)
    other, _ = augmenter(1)(bitmaps)
    assert images.shape == (64, 3, IMAGE_SIDE, IMAGE_SIDE)
    assert torch.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    for values in vars(attributes).values():
        assert values.shape == (64,)
        assert values.dtype == torch.int64


def test_without_strength_glyphs_of_one_kind_are_all_alike(glyphs: GlyphSet) -> None:
    settings = AugmentSettings(white_on_black=1.0)
    images, attributes = augmenter(settings=settings)(glyphs.bitmaps[:1].expand(8, -1, -1), strength=0.0)
    assert torch.allclose(images / images.amax((1, 2, 3), keepdim=True), images[:1] / images[0].max(), atol=1e-5)
    assert (attributes.ink == WHITE).all()
    assert (attributes.paper == BLACK).all()


def test_white_on_black_is_grey_on_true_black(glyphs: GlyphSet) -> None:
    settings = AugmentSettings(white_on_black=1.0, noise=0.0, low_resolution=0.0, blur=0.0)
    images, _ = augmenter(settings=settings)(glyphs.bitmaps[:32])
    assert torch.equal(images[:, 0], images[:, 1])
    assert (images.flatten(1).quantile(0.1, dim=1) == 0).all()


def test_ink_and_paper_always_differ(glyphs: GlyphSet) -> None:
    _, attributes = augmenter()(glyphs.bitmaps[:200])
    assert (attributes.ink != attributes.paper).all()


def test_size_attribute_follows_the_ink(glyphs: GlyphSet) -> None:
    settings = AugmentSettings(white_on_black=1.0, noise=0.0, elastic=0.0, shift=0.0)
    images, attributes = augmenter(settings=settings)(glyphs.bitmaps[:1].expand(200, -1, -1))
    height = (images[:, 0] > 0.3).any(-1).sum(-1).float()
    assert height[attributes.size == SMALL].mean() + 4 < height[attributes.size == LARGE].mean()


@pytest.mark.parametrize(("width", "expected"), [(1, THIN), (2, -1), (5, BOLD)])
def test_weight_comes_from_the_stroke_width(width: int, expected: int) -> None:
    ink = torch.zeros(1, 1, IMAGE_SIDE, IMAGE_SIDE)
    ink[:, :, 3:25, 12 : 12 + width] = 1
    assert stroke_weight(ink).tolist() == [expected]


def test_ramp_rises_to_one_and_stays() -> None:
    assert ramp(0, 1000) == pytest.approx(0.15)
    assert ramp(150, 1000) == pytest.approx(0.575)
    assert ramp(300, 1000) == ramp(999, 1000) == 1.0

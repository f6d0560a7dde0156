"""Glyph bitmaps -> training images, in vectorised torch, with the attributes that captions may name.

Legend of shape suffixes: B images, S = side of a glyph bitmap, I = ``IMAGE_SIDE`` pixels.
Everything here works on ink in [0, 1]; colours come last. ``strength`` in [0, 1] scales every effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

IMAGE_SIDE = 28  # pixels

COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.97),
    "black": (0.03, 0.03, 0.03),
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.12, 0.20, 0.85),
    "yellow": (0.95, 0.90, 0.10),
    "orange": (0.95, 0.55, 0.08),
    "purple": (0.55, 0.15, 0.70),
    "gray": (0.50, 0.50, 0.50),
}
WHITE, BLACK = 0, 1  # indices into COLOURS

# Values of the attributes; -1 means that neither word is clearly true, so no caption says either.
SMALL, LARGE = 0, 1
THIN, BOLD = 0, 1
UPRIGHT, LEFT, RIGHT = 0, 1, 2
SHARP, BLURRY = 0, 1


@dataclass(frozen=True)
class Attributes:
    """What captions may say of B images; every tensor is int64 (B,), -1 for "cannot say"."""

    ink: torch.Tensor
    paper: torch.Tensor
    size: torch.Tensor
    weight: torch.Tensor
    lean: torch.Tensor
    focus: torch.Tensor


@dataclass(frozen=True)
class AugmentSettings:
    """Limits at full strength; lengths in fractions of the image's half side, angles in radians."""

    scale: tuple[float, float] = (0.7, 1.2)
    aspect: tuple[float, float] = (0.70, 1.15)
    shear: float = 0.35
    rotation: float = 0.26
    shift: float = 0.12
    elastic: float = 0.16
    elastic_grid: int = 4
    low_resolution: float = 0.5  # share of images reduced to ``low_sides`` pixels and enlarged again
    low_sides: tuple[int, int] = (7, 12)
    blur: float = 0.25  # share of images
    white_on_black: float = 0.45  # share of images
    noise: float = 0.08  # largest standard deviation, of a range of 1


class Augmenter:
    """Draws every random number from one generator: the same seed gives the same images.

    Args:
        settings: limits of all effects.
        generator: a CPU generator.
    """

    def __init__(self, settings: AugmentSettings, generator: torch.Generator):
        self.settings = settings
        self.generator = generator

    def _uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(n, generator=self.generator) * (high - low) + low

    def __call__(self, bitmaps_BSS: torch.Tensor, strength: float = 1.0) -> tuple[torch.Tensor, Attributes]:
        """Vary, warp, degrade and colour a batch of glyphs.

        Args:
            bitmaps_BSS: uint8, ink 255 on 0.
            strength: 0 = hardly any variation, 1 = the limits in the settings.

        Returns:
            Images, float32 (B, 3, I, I) in [0, 1], and their attributes.
        """
        ink_B1SS = bitmaps_BSS[:, None].float() / 255
        ink_B1SS = self._stroke(ink_B1SS, strength)
        ink_B1II, size, lean = self._warp(ink_B1SS, strength)
        weight = stroke_weight(ink_B1II)
        ink_B1II, coarse_B = self._low_resolution(ink_B1II, strength)
        ink_B1II, blurred_B = self._blur(ink_B1II, strength)
        focus = torch.where(coarse_B | blurred_B, BLURRY, SHARP)
        images_B3II, ink, paper = self._colour(ink_B1II)
        images_B3II = self._noise(images_B3II, strength)
        return images_B3II, Attributes(ink, paper, size, weight, lean, focus)

    def _stroke(self, ink_B1SS: torch.Tensor, strength: float) -> torch.Tensor:
        """Thicken a third of the glyphs and thin a quarter, never so far that strokes vanish."""
        n = len(ink_B1SS)
        choice_B = self._uniform(n)
        amount_B111 = (self._uniform(n, 0.3, 1.0) * strength)[:, None, None, None]
        thick = functional.max_pool2d(ink_B1SS, 3, 1, 1)
        thicker = functional.max_pool2d(thick, 3, 1, 1)
        thin = -functional.max_pool2d(-ink_B1SS, 3, 1, 1)
        survives_B = thin.sum((1, 2, 3)) > 0.35 * ink_B1SS.sum((1, 2, 3))
        target = ink_B1SS.clone()
        target[choice_B < 0.35] = thick[choice_B < 0.35]
        target[choice_B < 0.15] = thicker[choice_B < 0.15]
        eroded_B = (choice_B > 0.75) & survives_B
        target[eroded_B] = thin[eroded_B]
        return ink_B1SS + amount_B111 * (target - ink_B1SS)

    def _warp(self, ink_B1SS: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale, stretch, shear, turn, shift and bend in one resampling; returns ink (B, 1, I, I), size and lean."""
        s, n = self.settings, len(ink_B1SS)
        scale = 1 + strength * (self._uniform(n, *s.scale) - 1)
        aspect = 1 + strength * (self._uniform(n, *s.aspect) - 1)
        shear = strength * self._uniform(n, -s.shear, s.shear)
        angle = strength * self._uniform(n, -s.rotation, s.rotation)
        # grid_sample wants the map from image to bitmap, the inverse of turn * shear * stretch.
        cos, sin = torch.cos(angle), torch.sin(angle)
        forward = torch.stack(
            [
                torch.stack([scale * aspect * cos, scale * (-shear * cos - sin)], -1),
                torch.stack([scale * aspect * sin, scale * (-shear * sin + cos)], -1),
            ],
            -2,
        )
        inverse_B22 = torch.linalg.inv(forward)
        axis = (torch.arange(IMAGE_SIDE) + 0.5) / IMAGE_SIDE * 2 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points_PQ = torch.stack([x, y], -1).reshape(1, -1, 2)
        shift_B12 = strength * (torch.rand(n, 1, 2, generator=self.generator) * 2 - 1) * s.shift
        grid_BP2 = (points_PQ - shift_B12) @ inverse_B22.transpose(1, 2)
        field = torch.rand(n, 2, s.elastic_grid, s.elastic_grid, generator=self.generator) * 2 - 1
        bend_B = strength * s.elastic * self._uniform(n)
        field = functional.interpolate(field, (IMAGE_SIDE, IMAGE_SIDE), mode="bicubic", align_corners=True)
        grid = grid_BP2.view(n, IMAGE_SIDE, IMAGE_SIDE, 2) + (bend_B[:, None, None, None] * field).movedim(1, -1)
        warped = functional.grid_sample(ink_B1SS, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        size = torch.full((n,), -1)
        size[scale < 0.78] = SMALL
        size[scale > 0.98] = LARGE
        tilt = shear + angle
        lean = torch.full((n,), -1)
        lean[tilt.abs() < 0.08] = UPRIGHT
        lean[tilt < -0.2] = LEFT
        lean[tilt > 0.2] = RIGHT
        return warped, size, lean

    def _low_resolution(self, ink_B1II: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        s, n = self.settings, len(ink_B1II)
        chosen_B = self._uniform(n) < s.low_resolution * strength
        sides_B = torch.randint(s.low_sides[0], s.low_sides[1] + 1, (n,), generator=self.generator)
        out = ink_B1II.clone()
        for side in range(s.low_sides[0], s.low_sides[1] + 1):
            rows = (chosen_B & (sides_B == side)).nonzero()[:, 0]
            if len(rows):
                small = functional.interpolate(ink_B1II[rows], (side, side), mode="area")
                large = functional.interpolate(small, (IMAGE_SIDE, IMAGE_SIDE), mode="bicubic", align_corners=False)
                # Thin strokes fade when averaged; a scanner's threshold or a pen's width would keep them.
                peak = large.amax((1, 2, 3), keepdim=True).clamp(min=0.3)
                out[rows] = (large / peak).clamp(0, 1)
        return out, chosen_B

    def _blur(self, ink_B1II: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(ink_B1II)
        chosen_B = self._uniform(n) < self.settings.blur * strength
        sigma_B = self._uniform(n, 0.5, 1.3)
        offsets = torch.arange(-2, 3).float()
        kernel = torch.exp(-(offsets**2) / (2 * sigma_B[:, None] ** 2))
        kernel = kernel / kernel.sum(-1, keepdim=True)
        kernel_B155 = (kernel[:, :, None] * kernel[:, None, :])[:, None]
        blurred = functional.conv2d(ink_B1II.transpose(0, 1), kernel_B155, padding=2, groups=n).transpose(0, 1)
        return torch.where(chosen_B[:, None, None, None], blurred, ink_B1II), chosen_B

    def _colour(self, ink_B1II: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(ink_B1II)
        palette = torch.tensor(list(COLOURS.values()))
        ink = torch.randint(len(palette), (n,), generator=self.generator)
        paper = (ink + torch.randint(1, len(palette), (n,), generator=self.generator)) % len(palette)
        plain_B = self._uniform(n) < self.settings.white_on_black
        ink[plain_B], paper[plain_B] = WHITE, BLACK
        jitter = 0.12 * (torch.rand(2, n, 3, generator=self.generator) - 0.5)
        jitter[:, plain_B] = 0
        ink_rgb, paper_rgb = palette[ink] + jitter[0], palette[paper] + jitter[1]
        # Plain images are exactly grey: ink 0.75..1 on 0, as scanned handwriting is after scaling.
        level_B = self._uniform(n, 0.75, 1.0)
        ink_rgb[plain_B] = level_B[plain_B, None].expand(-1, 3)
        paper_rgb[plain_B] = 0.0
        images = paper_rgb[:, :, None, None] + ink_B1II * (ink_rgb - paper_rgb)[:, :, None, None]
        return images, ink, paper

    def _noise(self, images_B3II: torch.Tensor, strength: float) -> torch.Tensor:
        n = len(images_B3II)
        level_B = strength * self.settings.noise * self._uniform(n) * (self._uniform(n) < 0.5)
        noise = torch.randn(n, 1, IMAGE_SIDE, IMAGE_SIDE, generator=self.generator)
        return (images_B3II + level_B[:, None, None, None] * noise).clamp(0, 1)


def stroke_weight(ink_B1II: torch.Tensor) -> torch.Tensor:
    """Return THIN, BOLD or -1 from the mean stroke width, which is twice the area over the outline's length."""
    area_B = ink_B1II.sum((1, 2, 3))
    dx = ink_B1II[:, :, 1:, 1:] - ink_B1II[:, :, 1:, :-1]
    dy = ink_B1II[:, :, 1:, 1:] - ink_B1II[:, :, :-1, 1:]
    outline_B = (dx**2 + dy**2).sqrt().sum((1, 2, 3)).clamp(min=1e-3)
    width_B = 2 * area_B / outline_B  # pixels
    weight = torch.full((len(width_B),), -1)
    weight[width_B < THIN_BELOW] = THIN
    weight[width_B > BOLD_ABOVE] = BOLD
    return weight


# Pixels; about the lower and the upper quartile over all glyphs. Pure functions of the image, so captions stay true.
THIN_BELOW = 1.8
BOLD_ABOVE = 3.0


def ramp(step: int, steps: int, start: float = 0.15, share: float = 0.3) -> float:
    """Return the augmentation's strength: linear from ``start`` to 1 over the first ``share`` of the steps.

    Without the ramp training stays at chance: contrast over warped, blurred glyphs gives no first foothold.
    """
    if math.isclose(share, 0):
        return 1.0
    return min(1.0, start + (1 - start) * step / (share * steps))

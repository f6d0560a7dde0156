"""Twelve geometric shapes drawn with variations, in the same form as glyph bitmaps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
_SIDE = 160  # pixels of the drawing canvas; scaled down afterwards, which smooths the edges


def _polygon(corners: int, start: float = -math.pi / 2) -> Points:
    """Return the corners of a regular polygon in [-1, 1]^2, the first one at angle ``start``."""
    return [
        (math.cos(start + 2 * math.pi * k / corners), math.sin(start + 2 * math.pi * k / corners))
        for k in range(corners)
    ]


def _star(corners: int, depth: float) -> Points:
    """Return a star whose inner corners lie at radius ``depth``."""
    points = []
    for k in range(2 * corners):
        radius = 1.0 if k % 2 == 0 else depth
        angle = -math.pi / 2 + math.pi * k / corners
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart(steps: int = 60) -> Points:
    points = []
    for k in range(steps):
        t = 2 * math.pi * k / steps
        x = math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
        points.append((x, y))
    return points


def _arrow(shaft: float, head: float) -> Points:
    return [
        (-1, -shaft),
        (1 - head, -shaft),
        (1 - head, -0.7),
        (1, 0),
        (1 - head, 0.7),
        (1 - head, shaft),
        (-1, shaft),
    ]


def _crescent(bite: float, steps: int = 40) -> Points:
    """Return a circle without the disk of equal height that is shifted by ``bite``."""
    outer = [(-math.sin(math.pi * k / steps), -math.cos(math.pi * k / steps)) for k in range(steps + 1)]
    inner = [(bite * x, y) for x, y in reversed(outer)]
    return outer + inner


def _cross(arm: float) -> Points:
    a = arm
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


_OUTLINES: dict[str, Callable[[np.random.Generator], Points]] = {
    "circle": lambda rng: _polygon(48),
    "disk": lambda rng: _polygon(48),
    "square": lambda rng: _polygon(4, math.pi / 4),
    "triangle": lambda rng: _polygon(3),
    "diamond": lambda rng: [(x * rng.uniform(0.5, 0.8), y) for x, y in _polygon(4)],
    "star": lambda rng: _star(int(rng.integers(5, 7)), float(rng.uniform(0.35, 0.55))),
    "heart": lambda rng: _heart(),
    "arrow": lambda rng: _arrow(float(rng.uniform(0.12, 0.3)), float(rng.uniform(0.6, 0.9))),
    "crescent": lambda rng: _crescent(float(rng.uniform(0.1, 0.6))),
    "cross": lambda rng: _cross(float(rng.uniform(0.15, 0.35))),
    "hexagon": lambda rng: _polygon(6),
    "line": lambda rng: [(-1, -0.06), (1, -0.06), (1, 0.06), (-1, 0.06)],
}
_ANY_ANGLE = frozenset({"arrow", "line", "crescent"})  # still themselves when turned all the way round
_OUTLINED_ONLY = frozenset({"circle"})
_FILLED_ONLY = frozenset({"disk", "line"})


def draw_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """Draw one shape, white on black, with random proportions, angle, and fill or outline.

    Args:
        name: one of ``SHAPE_NAMES``.
        rng: decides everything that varies.

    Returns:
        A grey image ("L"); the shape fills most of it, with a margin.
    """
    points = _OUTLINES[name](rng)
    angle = rng.uniform(0, 2 * math.pi) if name in _ANY_ANGLE else rng.uniform(-0.2, 0.2)
    cos, sin = math.cos(angle), math.sin(angle)
    radius = 0.42 * _SIDE
    corners = [(_SIDE / 2 + radius * (cos * x - sin * y), _SIDE / 2 + radius * (sin * x + cos * y)) for x, y in points]
    image = Image.new("L", (_SIDE, _SIDE))
    draw = ImageDraw.Draw(image)
    filled = name in _FILLED_ONLY or (name not in _OUTLINED_ONLY and rng.random() < 0.5)
    if filled:
        draw.polygon(corners, fill=255)
    else:
        width = int(rng.integers(8, 22))
        draw.line([*corners, corners[0], corners[1]], fill=255, width=width, joint="curve")
    return image

"""A picture of learned masks over sample images, for people who review a trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ammpl.data.dataset import Split
from ammpl.model.ammpl import AMMPL

CELL = 84
"""Pixels a side of each picture in the sheet."""
CAPTION = 14
MOST_CLASSES = 12


@torch.no_grad()
def draw_masks(model: AMMPL, split: Split, path: Path) -> None:
    """Draw, for up to 12 classes: a sample image, its class's probabilities, the image as evaluation shows it.

    Probabilities run from 0 (dark blue) to 1 (yellow); masked patches are grey. Nothing is drawn for a model without
    a learned mask.

    Args:
        model: the trained model.
        split: where the first image of each class is taken from.
        path: a PNG file to write.
    """
    prompt = model.image_prompt
    if prompt is None or prompt.mask.config.kind not in ("learned", "binary"):
        return
    names = split.class_names[:MOST_CLASSES]
    p_GN = model.probabilities(model.classes(split.class_names))
    height, width = model.backbone.grid
    sheet = Image.new("RGB", (len(names) * (CELL + 4), 3 * CELL + 8 + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        of_class = (split.labels == column).nonzero()
        if not len(of_class):
            continue
        index = int(of_class[0])
        image = split.pixels(slice(index, index + 1))[0].permute(1, 2, 0).numpy()
        p = p_GN[column if len(p_GN) > 1 else 0].float().cpu().reshape(height, width).numpy()
        keep = np.kron(p >= 0.5, np.ones((image.shape[0] // height, image.shape[1] // width), bool))[..., None]
        grey = np.full_like(image, 128)
        x = column * (CELL + 4)
        pen.text((x + 2, 1), name[:13], fill="black")
        for row, picture in enumerate((image, _heat(p), np.where(keep, image, grey))):
            cell = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (x, CAPTION + row * (CELL + 4)))
    sheet.save(path)


def _heat(p: np.ndarray) -> np.ndarray:
    """Colour probabilities (h, w) in [0, 1], dark blue over green to yellow; uint8 (h, w, 3)."""
    stops = np.array([[48, 18, 90], [33, 125, 140], [250, 230, 60]], dtype=float)
    position = np.clip(p, 0, 1) * (len(stops) - 1)
    low = np.minimum(position.astype(int), len(stops) - 2)
    weight = (position - low)[..., None]
    mixed: np.ndarray = (1 - weight) * stops[low] + weight * stops[low + 1]
    return mixed.round().astype(np.uint8)

"""Data sets in the published format, small enough for a test, and settings of short trials on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

VIT = "ViT-small-test"
NAMES = ("annual crop land", "forest", "river", "sea or lake", "highway", "pasture", "town")
PER_CLASS = {"train": 3, "val": 2, "test": 2}
VALUES = {
    "backbone.name": VIT,
    "backbone.pretrained": "random",
    "data.name": "eurosat",
    "data.shots": 2,
    "model.mask.scope": "task",
    "training.steps": 3,
    "training.batch_size": 4,
    "training.evaluate_every": 3,
}


def write_published(root: Path, folder: str, images: str, split_file: str, names: tuple[str, ...]) -> None:
    """Write a data set with its split file; every picture has a size and a pattern of its own."""
    split: dict[str, list[list[object]]] = {part: [] for part in PER_CLASS}
    for label, name in enumerate(names):
        for part, count in PER_CLASS.items():
            for number in range(count):
                path = f"{name}/{part}_{number}.jpg"
                (root / folder / images / name).mkdir(parents=True, exist_ok=True)
                stream = np.random.default_rng([label, number, len(part)])
                small = stream.integers(0, 256, (6, 5, 3), dtype=np.uint8)
                size = (40 + 3 * label, 48 - 2 * number)
                Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(root / folder / images / path)
                split[part].append([path, label, name])
    (root / folder / split_file).write_text(json.dumps(split))

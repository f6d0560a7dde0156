"""Few-shot tasks: which images of a data set a trial trains on, validates on and is tested on.

The rule of sampling is the CoOp family's (docs/protocol.md): Python's ``random`` seeded with the data seed; classes in
the order in which they first appear in the list; ``random.sample`` of k images each; all classes of the training
list first, then of the validation list, from the same stream; before base and new classes are told apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from ammpl.config import DataConfig
from ammpl.data.dataset import Dataset, Split
from ammpl.data.registry import open_dataset
from ammpl.errors import UserError

PROTOCOL_VALIDATION_SHOTS = 4


@dataclass(frozen=True)
class Task:
    """The training and validation images of one trial.

    Attributes:
        train: the few shots.
        validation: what tuning may look at.
        template: the data set's zero-shot sentence.
        mean_pixel: the data set's mean colour in [0, 1].
    """

    train: Split
    validation: Split
    template: str
    mean_pixel: tuple[float, float, float]


def base_and_new(class_count: int) -> tuple[list[int], list[int]]:
    """Split labels into base (first half, rounded up) and new, as CoCoOp does."""
    half = -(-class_count // 2)
    return list(range(half)), list(range(half, class_count))


def sample_shots(split: Split, shots: int, stream: random.Random) -> list[int]:
    """Draw ``shots`` positions a class, or all of a class that has fewer, in the published order."""
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(split.labels.tolist()):
        positions.setdefault(label, []).append(position)
    drawn: list[int] = []
    for of_class in positions.values():
        drawn += stream.sample(of_class, shots) if len(of_class) >= shots else of_class
    return drawn


def check_shots(config: DataConfig, dataset: Dataset) -> None:
    """Refuse shots beyond what every class has.

    Raises:
        UserError: with the field, the class and both numbers.
    """
    wanted = {"data.shots": (config.shots, dataset.train)}
    if config.validation_shots is not None:
        wanted["data.validation_shots"] = (config.validation_shots, dataset.validation)
    for field, (shots, split) in wanted.items():
        counts = torch.bincount(split.labels, minlength=len(split.class_names))
        fewest = int(counts.argmin())
        if shots > int(counts[fewest]):
            raise UserError(
                field,
                f"class {split.class_names[fewest]!r} of {dataset.name} has {int(counts[fewest])} images there",
                got=shots,
                fix=f"at most {int(counts[fewest])}",
            )


@lru_cache(maxsize=8)  # the repeats of a study; a few megabytes each on few-shot data
def load_task(config: DataConfig, seed: int, size: int, interpolation: str = "bicubic") -> Task:
    """Draw the few-shot task of one repeat.

    Args:
        config: data set, shots, classes.
        seed: the data seed; 0 is a seed like any other.
        size: pixels a side that the backbone expects.
        interpolation: of the resize.

    Raises:
        UserError: unknown data set, or more shots than images.
    """
    dataset = open_dataset(config.name)
    check_shots(config, dataset)
    stream = random.Random(seed)
    train = dataset.train.at(sample_shots(dataset.train, config.shots, stream))
    validation_shots = config.validation_shots or min(config.shots, PROTOCOL_VALIDATION_SHOTS)
    validation = dataset.validation.at(sample_shots(dataset.validation, validation_shots, stream))
    if config.task == "base_to_new":
        base, _ = base_and_new(len(dataset.class_names))
        train, validation = train.of_classes(base), validation.of_classes(base)
    return Task(
        fit(train, size, interpolation), fit(validation, size, interpolation), dataset.template, dataset.mean_pixel
    )


@lru_cache(maxsize=2)
def load_test(config: DataConfig, size: int, interpolation: str = "bicubic") -> dict[str, Split]:
    """Open the sealed test list: ``{"": all}``, or ``{"base": ..., "new": ...}`` each among its own names."""
    dataset = open_dataset(config.name)
    test = fit(dataset.open_test(), size, interpolation)
    if config.task == "all":
        return {"": test}
    base, new = base_and_new(len(dataset.class_names))
    return {"base": test.of_classes(base), "new": test.of_classes(new)}


def fit(split: Split, size: int, interpolation: str) -> Split:
    """Resize the shorter side to ``size`` and cut the centre square, the protocol's test transform."""
    if tuple(split.images.shape[-2:]) == (size, size):
        return split
    images = transforms.resize(split.images, [size], InterpolationMode(interpolation), antialias=True)
    return Split(transforms.center_crop(images, [size, size]), split.labels, split.class_names)

"""Few-shot tasks: which images of a data set a trial trains on, validates on and is tested on.

The rule of sampling is the CoOp family's (docs/protocol.md): Python's ``random`` seeded with the data seed; classes in
the order in which they first appear in the list; ``random.sample`` of k images each; all classes of the training
list first, then of the validation list, from the same stream; before base and new classes are told apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ammpl.config import DataConfig
from ammpl.data.dataset import Dataset, Originals, Pictures, Split
from ammpl.data.home import DataHome
from ammpl.data.registry import open_dataset
from ammpl.data.transform import AUGMENTATION, ImageTransform
from ammpl.errors import UserError

PROTOCOL_VALIDATION_SHOTS = 4
CHUNK = 256
"""Images that are read at a time."""
HOLDOUTS = 5
"""Of pseudo-new validation: fewer would make the choice depend on a class or two."""
TARGETS = {
    "cross_dataset": (
        "caltech101",
        "oxford_pets",
        "stanford_cars",
        "oxford_flowers",
        "food101",
        "fgvc_aircraft",
        "sun397",
        "dtd",
        "eurosat",
        "ucf101",
    ),
    "domain_generalisation": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
}
"""What the protocol tests a model on that was trained on ImageNet."""


@dataclass(frozen=True)
class Task:
    """The training and validation images of one trial.

    Attributes:
        dataset: what they were drawn from.
        train: the few shots; :class:`Originals` where training crops at random.
        validation: what tuning may look at.
        pseudo_new: validation images of the base classes that were held out, among their own names; else None.
        transform: of the backbone.
    """

    dataset: Dataset
    train: Split
    validation: Split
    pseudo_new: Split | None
    transform: ImageTransform

    @property
    def augmented(self) -> bool:
        """Whether training crops and mirrors at random."""
        return isinstance(self.train.images, Originals)

    @cached_property
    def mean_color(self) -> tuple[float, float, float]:
        """The mean colour of the training images as evaluation shows them, three values in [0, 1]."""
        chunks = [slice(start, start + CHUNK) for start in range(0, len(self.train), CHUNK)]
        sums = torch.stack([self.train.pixels(chunk).double().mean((2, 3)).sum(0) for chunk in chunks])
        r, g, b = (sums.sum(0) / len(self.train) / 255).tolist()
        return r, g, b

    def record(self) -> dict[str, Any]:
        """Return what a reader of the results should know of the data, as plain values."""
        return {
            "dataset": self.dataset.name,
            "source": self.dataset.source,
            "split": self.dataset.split_source,
            "warnings": list(self.dataset.warnings),
            "classes": len(self.train.class_names),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "transform": asdict(self.transform),
            "augmentation": AUGMENTATION if self.augmented else None,
        }


def crops(config: DataConfig, dataset: Dataset) -> bool:
    """Return whether training crops and mirrors at random."""
    return dataset.augmented if config.augmentation is None else config.augmentation == "crop_and_mirror"


def base_and_new(class_count: int) -> tuple[list[int], list[int]]:
    """Split labels into base (first half, rounded up) and new, as CoCoOp does.

    Raises:
        UserError: fewer than four: one class among itself is always right.
    """
    if class_count < 4:
        raise UserError("data.task", "base and new classes are two each or more", got=class_count, fix="all")
    half = -(-class_count // 2)
    return list(range(half)), list(range(half, class_count))


def hold_out(class_count: int, holdout: int) -> tuple[list[int], list[int]]:
    """Split the base labels 0, 1, ... into kept ones and held-out ones: a fifth, at least two, beside each other.

    Args:
        class_count: of base classes.
        holdout: 0 to HOLDOUTS - 1; together they hold out every label, the last one may go on at the first.

    Raises:
        UserError: fewer than five base classes: two would not be left on both sides, five times differently.
    """
    if class_count < HOLDOUTS:
        raise UserError(
            "data.task", f"'pseudo_new' needs {HOLDOUTS} base classes or more", got=class_count, fix="base_to_new"
        )
    start, end = holdout * class_count // HOLDOUTS, (holdout + 1) * class_count // HOLDOUTS
    width = max(2, end - start)
    held_out = {(start + offset) % class_count for offset in range(width)}
    return [label for label in range(class_count) if label not in held_out], sorted(held_out)


def sample_shots(labels: Tensor, shots: int, stream: random.Random) -> list[int]:
    """Draw ``shots`` positions a class, or all of a class that has fewer, in the published order.

    Args:
        labels: int64 (n,), of a list in its order.
        shots: k.
        stream: what is drawn from.
    """
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        positions.setdefault(label, []).append(position)
    drawn: list[int] = []
    for of_class in positions.values():
        drawn += stream.sample(of_class, shots) if len(of_class) >= shots else of_class
    return drawn


@lru_cache(maxsize=8)  # the repeats of a study
def load_task(config: DataConfig, seed: int, transform: ImageTransform, home: DataHome) -> Task:
    """Draw the few-shot task of one repeat.

    Args:
        config: data set, shots, classes.
        seed: the data seed; 0 is a seed like any other.
        transform: of the backbone.
        home: where data lie.

    Raises:
        UserError: unknown data set, files that are not as they should be, or more shots than images.
    """
    dataset = open_dataset(config.name, home, config.skip_broken)
    if not len(dataset.train.labels):
        raise UserError("data.name", "has a test list only, nothing to train on", got=config.name)
    stream = random.Random(seed)

    labels, choose = _pool(dataset.train, transform, originals=crops(config, dataset))
    _check_shots(dataset, labels, config)
    drawn = sample_shots(labels, config.shots, stream)
    train = choose(drawn)

    shots = config.validation_shots or min(config.shots, PROTOCOL_VALIDATION_SHOTS)
    if len(dataset.validation.labels):
        labels, choose = _pool(dataset.validation, transform)
        unused = torch.ones(len(labels), dtype=torch.bool)
    else:  # then from what training has left
        labels, choose = _pool(dataset.train, transform)
        unused = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, torch.tensor(drawn), False)
    rows = unused.nonzero()[:, 0]
    validation = choose(rows[sample_shots(labels[unused], shots, stream)].tolist())

    pseudo_new = None
    if config.task in ("base_to_new", "pseudo_new"):
        base, _ = base_and_new(len(dataset.class_names))
        if config.task == "pseudo_new":
            base, held_out = hold_out(len(base), seed % HOLDOUTS if config.holdout is None else config.holdout)
            pseudo_new = validation.of_classes(held_out)
        train, validation = train.of_classes(base), validation.of_classes(base)
    task = Task(dataset, train, validation, pseudo_new, transform)
    _check_filled(task, config)
    return task


def _check_filled(task: Task, config: DataConfig) -> None:
    """Refuse a task that could not be trained, or not be chosen by.

    Raises:
        UserError: a class has no training image, or a validation list no image at all.
    """
    counts = torch.bincount(task.train.labels, minlength=len(task.train.class_names)).tolist()
    where = f"{task.dataset.name}, data.task {config.task!r}"
    for name, count in zip(task.train.class_names, counts, strict=True):
        if not count:
            raise UserError(where, "has no training image that can be read of a class", got=name)
    lists = {"validation image of the trained classes": task.validation, "validation image held out": task.pseudo_new}
    for what, split in lists.items():
        if split is not None and not len(split):
            raise UserError(where, f"has no {what}", fix="give each class some validation pictures")


def _pool(
    pictures: Pictures, transform: ImageTransform, *, originals: bool = False
) -> tuple[Tensor, Callable[[list[int]], Split]]:
    """Return the labels of a list, and what makes chosen positions of it readable."""
    if pictures.drawn_first:
        return pictures.labels, lambda positions: pictures.at(positions).open(transform, originals=originals)
    split = pictures.open(transform, originals=originals)
    return split.labels, split.at


def _check_shots(dataset: Dataset, labels: Tensor, config: DataConfig) -> None:
    """Refuse shots beyond what every class has, unless the user has agreed to do without some pictures."""
    if config.skip_broken:
        return  # then such a class gives all it has, as in published code
    counts = torch.bincount(labels, minlength=len(dataset.class_names))
    fewest = int(counts.argmin())
    if config.shots > int(counts[fewest]):
        raise UserError(
            "data.shots",
            f"class {dataset.class_names[fewest]!r} of {dataset.name} has {int(counts[fewest])} images there",
            got=config.shots,
            fix=f"at most {int(counts[fewest])}",
        )


def target_names(config: DataConfig) -> tuple[str, ...]:
    """Return the other data sets that a configuration is tested on.

    Raises:
        UserError: a blank name, or the data set that is trained on.
    """
    if not config.transfers:
        return ()
    if config.targets is None:
        return tuple(name for name in TARGETS[config.task] if name != config.name)
    names = tuple(name.strip() for name in config.targets.split(","))
    for name in names:
        if not name:
            raise UserError("data.targets", "must be names joined by commas", got=config.targets)
        if name == config.name:
            raise UserError("data.targets", "names what is trained on, which is tested anyway", got=name)
    return names


def check_tests(config: DataConfig, home: DataHome) -> dict[str, Dataset]:
    """Look at the names and labels of what a configuration will be tested on; no picture is opened.

    Returns:
        The data sets by name: its own, then the targets.

    Raises:
        UserError: files that are not as they should be, two data sets of one name, or a test list that lacks what
            would be scored.
    """
    datasets: dict[str, Dataset] = {}
    for name in (config.name, *target_names(config)):
        field = "data.targets" if datasets else "data.name"
        dataset = open_dataset(name, home, config.skip_broken, field)
        if dataset.name in datasets:
            raise UserError(field, "names two data sets whose figures would be called alike", got=name)
        datasets[dataset.name] = dataset
        labels, count = dataset.open_test().labels, len(dataset.class_names)
        halves = base_and_new(count) if config.task in ("base_to_new", "pseudo_new") else (list(range(count)),)
        for half in halves:
            if not torch.isin(labels, torch.tensor(half)).any():
                names = ", ".join(dataset.class_names[label] for label in half[:3])
                raise UserError(f"{dataset.name}/test", f"has no picture of the classes to score: {names}, ...")
    return datasets


class TestList(NamedTuple):
    """A sealed test list, opened; the name of its data set, and the zero-shot sentence."""

    name: str
    split: Split
    template: str


@lru_cache(maxsize=2)
def load_test(config: DataConfig, transform: ImageTransform, home: DataHome) -> dict[str, TestList]:
    """Open the sealed test lists.

    Returns:
        ``{"": all}``; or ``{"base": ..., "new": ...}``, each among its own names; or ``""`` and every target by name.
    """

    def opened(name: str, field: str) -> TestList:
        dataset = open_dataset(name, home, config.skip_broken, field)
        return TestList(dataset.name, dataset.open_test().open(transform), dataset.template)

    own = opened(config.name, "data.name")
    if config.task in ("base_to_new", "pseudo_new"):
        base, new = base_and_new(len(own.split.class_names))
        return {
            "base": own._replace(split=own.split.of_classes(base)),
            "new": own._replace(split=own.split.of_classes(new)),
        }
    targets = [opened(name, "data.targets") for name in target_names(config)]
    return {"": own, **{target.name: target for target in targets}}

"""The methods by name: what makes each that method, and the settings that it was published with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ammpl.config.sections import DataConfig, Scalar

Published = Callable[[DataConfig], Mapping[str, Scalar]]
"""The settings that a method was published with, for a task on a data set."""


def _coop(data: DataConfig) -> dict[str, Scalar]:
    """CoOp: 16 random vectors for all classes, "a photo of a" where new ones are scored; ImageNet takes 50 epochs."""
    all_classes = data.task == "all"
    epochs = (50 if data.shots == 1 else 100 if data.shots <= 4 else 200) if all_classes else 200
    return {
        **_COOP_SGD,
        "training.batch_size": 32,
        "training.epochs": 50 if data.name == "imagenet" or data.transfers else epochs,
        "model.text.init": "random" if all_classes else "a photo of a",
        "model.text.length": 16 if all_classes else None,
    }


def _cocoop(data: DataConfig) -> dict[str, Scalar]:
    return {**_COOP_SGD, "training.batch_size": 1, "training.epochs": 10, "model.interaction.width": 32}


_COOP_SGD: dict[str, Scalar] = {
    "training.optimizer": "sgd",
    "training.learning_rate": 0.002,
    "training.weight_decay": 5e-4,
    "training.schedule": "coop",
    "training.evaluate_every": 100,
    "training.steps": None,
}


@dataclass(frozen=True)
class Method:
    """A named method: what makes it that method, and the settings it was published with.

    Attributes:
        defining: dotted names with the values they may take; anything else would make the name untrue.
        published: the settings to start from (reference: the CoOp family's protocol, docs/protocol.md).
    """

    defining: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    published: Published = lambda data: {}


METHODS: dict[str, Method] = {
    "ammpl": Method(),
    "coop": Method(
        defining={
            "model.text.context": ("shared", "class"),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
        },
        published=_coop,
    ),
    "cocoop": Method(
        defining={
            "model.text.context": ("shared",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("image_to_text",),
            "model.interaction.image_source": ("pooled",),
        },
        published=_cocoop,
    ),
    "zero_shot": Method(
        defining={
            "model.text.context": ("fixed",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
            "training.steps": (0,),
        },
    ),
}

"""The methods by name: what makes each that method, and the settings that it was published with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ammpl.config.sections import BackboneConfig, DataConfig, Scalar

Published = Callable[[DataConfig, BackboneConfig], Mapping[str, Scalar]]
"""The settings that a method was published with, for a task on a data set, with a backbone."""


def _coop(data: DataConfig, backbone: BackboneConfig) -> dict[str, Scalar]:
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


def _cocoop(data: DataConfig, backbone: BackboneConfig) -> dict[str, Scalar]:
    return {**_COOP_SGD, "training.batch_size": 1, "training.epochs": 10, "model.interaction.width": 32}


def _vpt(data: DataConfig, backbone: BackboneConfig) -> dict[str, Scalar]:
    """VPT as the MaPLe authors ran it, for base-to-new; there is no other setting, so it serves every task."""
    return {
        **_COOP_SGD,
        "training.learning_rate": 0.0025,
        "training.batch_size": 4,
        "training.epochs": 5,
        "model.text.template": "a photo of a {}.",  # on every data set
        "model.tokens.count": 8,
        "model.tokens.depth": _blocks(12, backbone),
    }


def _maple(data: DataConfig, backbone: BackboneConfig) -> dict[str, Scalar]:
    """MaPLe: for base-to-new, and for transfer. No few-shot setting is published: there it has base-to-new's."""
    return {
        **_COOP_SGD,
        "training.learning_rate": 0.0026 if data.transfers else 0.0035,
        "training.batch_size": 4,
        "training.epochs": 2 if data.transfers else 5,
        "model.text.length": 2,  # of "a photo of a"; "of a" stays
        "model.tokens.depth": _blocks(3 if data.transfers else 9, backbone),
    }


def _blocks(published: int, backbone: BackboneConfig) -> int:
    """Return a depth published for the 12 blocks of ViT-B/16; the embedded backbone has 4, and gets the same share."""
    return published // 3 if backbone.name == BackboneConfig().name else published


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
    published: Published = lambda data, backbone: {}


METHODS: dict[str, Method] = {
    "ammpl": Method(),
    "coop": Method(
        defining={
            "model.text.context": ("shared", "class"),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
            "model.tokens.kind": ("none",),
        },
        published=_coop,
    ),
    "cocoop": Method(
        defining={
            "model.text.context": ("shared",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("image_to_text",),
            "model.interaction.image_source": ("pooled",),
            "model.tokens.kind": ("none",),
        },
        published=_cocoop,
    ),
    "vpt": Method(
        defining={
            "model.tokens.kind": ("visual",),
            "model.text.context": ("fixed",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
        },
        published=_vpt,
    ),
    "maple": Method(
        defining={
            "model.tokens.kind": ("coupled",),
            "model.text.context": ("shared",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
        },
        published=_maple,
    ),
    "zero_shot": Method(
        defining={
            "model.text.context": ("fixed",),
            "model.mask.kind": ("none",),
            "model.interaction.direction": ("none",),
            "model.tokens.kind": ("none",),
            "training.steps": (0,),
        },
    ),
}

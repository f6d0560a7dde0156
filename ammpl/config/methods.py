"""The methods by name: what makes each that method, and the settings that it was published with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ammpl.config.sections import BackboneConfig, DataConfig, Scalar
from ammpl.errors import UserError

ENTRY_POINTS = "ammpl.methods"
"""Where installed packages name methods of their own."""

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
        model: what computes it, a subclass of :class:`~ammpl.model.ammpl.AMMPL` with the same arguments; None is that
            class itself.
        reads: dotted names of fields under ``model`` that such a class reads, whatever the switches of the others say.
    """

    defining: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    published: Published = lambda data, backbone: {}
    model: type[Any] | None = None
    reads: tuple[str, ...] = ()


class Methods(Mapping[str, Method]):
    """Methods by name: this package's own, and those that installed packages add (docs/add_method.md).

    Nothing of another package is imported before its method is asked for.

    Args:
        own: this package's, whose names no other can take.
    """

    def __init__(self, own: Mapping[str, Method]):
        self._own = dict(own)
        self._loaded: dict[str, Method] = {}

    @cached_property
    def _added(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in self._own}

    @property
    def packages(self) -> list[str]:
        """The packages that add methods."""
        return sorted({entry.dist.name for entry in self._added.values() if entry.dist is not None})

    def __getitem__(self, name: str) -> Method:
        """Return a method; raises KeyError for an unknown one, UserError for one that its package does not give."""
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            entry = self._added[name]
            try:
                method = entry.load()
            except Exception as error:  # of whatever that package does
                rule = f"cannot be imported from {entry.value} ({type(error).__name__}: {error})"
                raise UserError(f"method {name}", rule, fix="mend or remove the package that adds it") from error
            if not isinstance(method, Method):
                raise UserError(f"method {name}", f"must be a Method, {entry.value} is not", got=method)
            self._loaded[name] = method
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a method of that name."""
        return name in self._own or name in self._added

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        yield from self._own
        yield from self._added

    def __len__(self) -> int:
        """How many there are."""
        return len(self._own) + len(self._added)


_OWN: dict[str, Method] = {
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

METHODS = Methods(_OWN)

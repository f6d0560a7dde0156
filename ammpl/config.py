"""The configuration of one trial: everything that decides a number, typed, frozen, and checked as a whole.

A :class:`TrialConfig` is written with dotted names (``model.mask.temperature``), in a space file, in ``--set`` and in
the results alike. :func:`resolve` layers such values over a method's published settings and over the defaults below.
Equal configurations have equal hashes; trials of one study differ by hyperparameters, not by data noise.

What the AMMPL paper says and what this project chose is marked field by field; docs/method.md has the whole list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ammpl.errors import UserError, did_you_mean, from_validation_error

Scalar = bool | int | float | str | None


class _Config(BaseModel):
    # strict: "16" is not 16 and True is not 1; a typed file should say what it means.
    # allow_inf_nan: a NaN in a configuration would make it unequal to itself.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BackboneConfig(_Config):
    """The frozen CLIP.

    Attributes:
        name: ``tiny-glyph`` (embedded, no download) or an open_clip ViT architecture such as ``ViT-B-16``.
        pretrained: a pretrained tag of open_clip, the path of a checkpoint, or ``random`` (benchmarks). None takes
            the embedded backbone's own weights; open_clip architectures need a value.
    """

    name: str = "tiny-glyph"
    pretrained: str | None = None


class DataConfig(_Config):
    """The few-shot task.

    Attributes:
        name: a registered data set.
        shots: training images a class (the protocol uses 1, 2, 4, 8, 16).
        validation_shots: validation images a class, of a class with fewer all; None is the protocol's min(shots, 4).
        task: ``all`` trains and scores every class; ``base_to_new`` trains on the first half of the labels
            (rounded up) and tests both halves, each among its own names; ``pseudo_new`` tunes for that without
            looking at new classes: some base classes are held out, and validation scores both parts;
            ``cross_dataset`` and ``domain_generalisation`` train on every class and test on other data sets too.
        holdout: with ``pseudo_new``, which of the five hold-outs; None takes the data seed modulo five, so that
            repeats rotate.
        targets: with the last two tasks, the data sets to test on, joined by commas; None takes the protocol's.
        augmentation: of training images: ``crop_and_mirror`` (the CoOp family's) or ``none``; None takes the data
            set's own: the former for photographs, the latter for the embedded digits.
        skip_broken: leave out pictures that cannot be read, rather than stop.
    """

    name: str = "digits"
    shots: int = Field(16, ge=1)
    validation_shots: int | None = Field(None, ge=1)
    task: Literal["all", "base_to_new", "pseudo_new", "cross_dataset", "domain_generalisation"] = "all"
    holdout: int | None = Field(None, ge=0, le=4)
    targets: str | None = Field(None, min_length=1)
    augmentation: Literal["crop_and_mirror", "none"] | None = None
    skip_broken: bool = False

    @property
    def transfers(self) -> bool:
        """Whether other data sets are tested on too."""
        return self.task in ("cross_dataset", "domain_generalisation")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.holdout is not None and self.task != "pseudo_new":
            raise ValueError(f"'holdout' goes with 'task: pseudo_new' only, and task is {self.task!r}")
        if self.targets is not None and not self.transfers:
            raise ValueError(
                "'targets' goes with 'task: cross_dataset' or 'task: domain_generalisation' only, and task is "
                f"{self.task!r}"
            )
        return self


class TextConfig(_Config):
    """The text prompt: context vectors, then the class name.

    Attributes:
        context: ``shared`` M x T for all classes; ``class`` C x M x T (cannot score classes it was not trained on);
            ``fixed`` is a hand-written sentence, nothing learned.
        init: the phrase whose token embeddings the context starts from, one vector a token, or ``random``,
            N(0, .02^2) as in CoOp. Unused when fixed.
        length: M, context vectors, with ``init: random`` (else the phrase decides).
        template: with ``fixed``, the sentence with ``{}`` for the name; None takes the data set's own.
    """

    context: Literal["shared", "class", "fixed"] = "shared"
    init: str = Field("a photo of a", min_length=1)
    length: int | None = Field(None, ge=1, le=64)
    template: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.init == "random") != (self.length is not None):
            raise ValueError("'length' goes with 'init: random' and only with it (a phrase decides its own length)")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError("'template' must hold '{}' exactly once")
        return self


class MaskConfig(_Config):
    """The probability matrices and how masks are drawn from them.

    The paper: one matrix a class, one probability a patch, Bernoulli samples, gradients back to the matrix. Everything
    else here is our choice.

    Attributes:
        kind: ``learned``; ``binary`` (deterministic threshold with straight-through gradients, no sampling);
            ``random`` (fixed keep rate, not learned); ``none``.
        scope: ``class`` (the paper: an image pass a class) or ``task`` (one matrix for all classes: one pass).
        parameterization: ``sigmoid`` of free logits, or ``clamp`` of raw probabilities to [1e-4, 1 - 1e-4] with the
            gradient passed straight through outside.
        initial_probability: p of every patch before training.
        temperature: tau of the binary-concrete sample. With ``straight_through`` it shapes the gradient only.
        estimator: ``straight_through`` (0/1 forward, as the paper's Bernoulli) or ``relaxed`` (soft forward).
        evaluation: ``threshold`` (keep where p >= .5), ``expectation`` (mix by p), ``samples`` (mean over draws).
        samples: S, the number of draws with ``evaluation: samples``.
        keep_rate: the rate of ``kind: random``, in training and evaluation alike.
    """

    kind: Literal["learned", "binary", "random", "none"] = "learned"
    scope: Literal["class", "task"] = "class"
    parameterization: Literal["sigmoid", "clamp"] = "sigmoid"
    initial_probability: float = Field(0.9, gt=0, lt=1)
    temperature: float = Field(1.0, gt=0)
    estimator: Literal["straight_through", "relaxed"] = "straight_through"
    evaluation: Literal["threshold", "expectation", "samples"] = "threshold"
    samples: int = Field(8, ge=1)
    keep_rate: float = Field(0.7, gt=0, le=1)


class PaddingConfig(_Config):
    """What stands where a mask hides a patch.

    Attributes:
        content: ``learned+text`` (the paper: a trainable patch plus N2 of the text feature), ``learned``, ``text``;
            or pixels through the patch embedding: ``zero`` (black), ``mean`` (the training images' mean colour),
            ``noise`` (Gaussian, redrawn each step, fixed at evaluation).
        depth: J. 1 pads the input only (the paper), J > 1 pads again before each of the first J blocks, 0 never:
            masked patches are then plain zero vectors before the position embedding.
    """

    content: Literal["learned+text", "learned", "text", "zero", "mean", "noise"] = "learned+text"
    depth: int = Field(1, ge=0)


class InteractionConfig(_Config):
    """The light-weight networks N1 (image to text context) and N2 (text to padding).

    Attributes:
        direction: which of the two exist.
        width: r, the hidden width of both.
        strength: a fixed factor on what both add.
        image_source: what N1 reads: ``per_class`` X_bc (the paper) or ``pooled``, the frozen feature of the unmasked
            image (CoCoOp's way).
    """

    direction: Literal["both", "image_to_text", "text_to_image", "none"] = "both"
    width: int = Field(16, ge=1)
    strength: float = Field(1.0, ge=0)
    image_source: Literal["per_class", "pooled"] = "per_class"


class ModelConfig(_Config):
    """The prompts around the frozen backbone.

    Modalities of an ablation are combinations, not a switch of their own: text only = ``mask.kind: none``; image only
    = ``text.context: fixed`` with ``interaction.direction: text_to_image`` or ``none``; zero-shot = neither.
    """

    text: TextConfig = TextConfig()
    mask: MaskConfig = MaskConfig()
    padding: PaddingConfig = PaddingConfig()
    interaction: InteractionConfig = InteractionConfig()

    @property
    def image_to_text(self) -> bool:
        """Whether N1 exists."""
        return self.interaction.direction in ("both", "image_to_text")

    @property
    def text_to_image(self) -> bool:
        """Whether N2 exists: it writes into paddings, so it needs masks and a padding that reads the text."""
        return (
            self.interaction.direction in ("both", "text_to_image")
            and self.mask.kind != "none"
            and self.padding.content in ("learned+text", "text")
            and self.padding.depth > 0
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_to_text and self.text.context == "fixed":
            raise ValueError(
                f"interaction.direction {self.interaction.direction!r} adds to a learned text context, and "
                "text.context is 'fixed': use 'text_to_image' or 'none'"
            )
        if self.mask.kind != "none" and self.padding.content == "text" and not self.text_to_image:
            raise ValueError(
                "padding.content 'text' is what N2 writes, so it needs interaction.direction 'both' or "
                f"'text_to_image' and depth >= 1, got {self.interaction.direction!r} and {self.padding.depth}"
            )
        return self


class TrainingConfig(_Config):
    """The optimisation of the learnables.

    Attributes:
        steps: optimiser steps; or
        epochs: passes over the training set (the CoOp family's unit). Exactly one of the two is set.
        batch_size: images a step.
        optimizer: ``adamw`` or ``sgd`` (momentum .9, the CoOp family's).
        learning_rate: of every group but the mask's.
        mask_lr_multiplier: the mask's learning rate over the common one; at 1 the matrix hardly moves.
        weight_decay: on everything but the mask.
        schedule: ``cosine`` to zero, each step; ``coop``: stepped each epoch, the first at 1e-5, then cosine
            (needs ``epochs``); ``constant``.
        evaluate_every: steps between validations, which are what the pruner sees; the last step is always one.
        grad_tolerance: with masks of scope ``class``, (image, class) pairs whose score moves the loss by less get no
            gradient, |dL/ds| < tolerance; 0 is exact.
        chunk: with masks of scope ``class``, pairs in flight: bounds the memory, and changes sums in their last digits
            only. None takes what two gigabytes hold, on a GPU half of its free memory.
    """

    steps: int | None = Field(None, ge=0)
    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-2, gt=0)
    mask_lr_multiplier: float = Field(25.0, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "coop", "constant"] = "cosine"
    evaluate_every: int = Field(20, ge=1)
    grad_tolerance: float = Field(0.0, ge=0)
    chunk: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs', not both and not neither")
        if self.schedule == "coop" and self.epochs is None:
            raise ValueError("'schedule: coop' is stepped by the epoch: set 'epochs' (and 'steps' to null)")
        return self


class SeedConfig(_Config):
    """Where each kind of randomness comes from. 0 is a seed like any other.

    Attributes:
        data: the repeat's listed seed (1, 2, 3, ...): picks the few-shot sample, shared by all trials of a study.
        init: starting values of the learnables.
        noise: mask samples, padding noise, order of the batches.
    """

    data: int = Field(1, ge=0)
    init: int = Field(1, ge=0)
    noise: int = Field(1, ge=0)

    @classmethod
    def of_repeat(cls, study_seed: int, repeat: int) -> SeedConfig:
        """Return the seeds of one repeat of a study: ``data`` is the repeat, the others are hashed from both."""

        def derived(purpose: str) -> int:
            digest = hashlib.sha256(f"{study_seed}/{repeat}/{purpose}".encode()).digest()
            return int.from_bytes(digest[:4], "big")

        return cls(data=repeat, init=derived("init"), noise=derived("noise"))


class TrialConfig(_Config):
    """One trial, complete: two equal configurations give the same numbers on the same machine.

    Build it with :func:`resolve`, which knows each method's published settings.
    """

    method: Literal["ammpl", "coop", "cocoop", "zero_shot"] = "ammpl"
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig(steps=100)
    seeds: SeedConfig = SeedConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = self.flat()
        for name, allowed in METHODS[self.method].defining.items():
            if values[name] not in allowed:
                raise ValueError(
                    f"method {self.method!r} is defined by {name} = {' or '.join(map(repr, allowed))}, "
                    f"got {values[name]!r}: use method 'ammpl' to combine freely"
                )
        if self.model.text.context == "class" and self.data.task != "all":
            raise ValueError(
                f"model.text.context 'class' has no context for new classes, and data.task is {self.data.task!r}: "
                "use 'shared'"
            )
        learns_image = self.model.mask.kind in ("learned", "binary") or (
            self.model.mask.kind == "random" and self.model.padding.content in ("learned+text", "learned", "text")
        )
        if self.model.text.context == "fixed" and not learns_image and self.training.steps != 0:
            raise ValueError("nothing is learned here (text fixed, no mask): set training.steps to 0")
        return self

    def flat(self) -> dict[str, Scalar]:
        """Return all values by dotted name, in declaration order."""
        return dict(_flatten(self.model_dump()))

    def canonical_json(self) -> str:
        """Return the one JSON text of this configuration: sorted keys, no spaces."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        """The identity of the configuration: the hash of its canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def with_values(self, values: Mapping[str, Any], where: str = "trial") -> TrialConfig:
        """Return this configuration with some dotted names changed, checked again as a whole."""
        return _build({**self.flat(), **values}, where)


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


def resolve(method: str, values: Mapping[str, Any], where: str = "trial") -> TrialConfig:
    """Build a configuration: field defaults, then the method's published settings, then ``values``.

    Args:
        method: a key of :data:`METHODS`.
        values: dotted names and their values.
        where: what is being read, for error texts (``default.yaml: fixed``).

    Raises:
        UserError: unknown method or name, wrong type or range, or values that contradict each other.

    Example:
        >>> resolve("coop", {"data.shots": 1}).training.epochs
        50
    """
    if method not in METHODS:
        raise UserError(f"{where}: method", "unknown method", got=method, fix=did_you_mean(method, METHODS))
    chosen = METHODS[method]
    layered: dict[str, Any] = {"method": method, **FIELD_DEFAULTS}
    layered.update({name: allowed[0] for name, allowed in chosen.defining.items()})
    layered.update(chosen.published(_data(values)))
    # The two budgets exclude each other, and so do a phrase and a length: naming one takes the other's default back.
    for name, other in (("training.steps", "training.epochs"), ("training.epochs", "training.steps")):
        if values.get(name) is not None and other not in values:
            layered[other] = None
            if name == "training.steps" and layered["training.schedule"] == "coop":
                layered["training.schedule"] = "cosine"
    if values.get("model.text.init", "random") != "random":
        layered["model.text.length"] = None
    layered.update({"method": method, **values})
    return _build(layered, where)


def _data(values: Mapping[str, Any]) -> DataConfig:
    """Return what the values say of the data; the defaults where that is not valid, which :func:`_build` tells of."""
    named = {name.removeprefix("data."): value for name, value in values.items() if name.startswith("data.")}
    try:
        return DataConfig.model_validate(named)
    except ValidationError:
        return DataConfig()


def _build(flat: Mapping[str, Any], where: str) -> TrialConfig:
    """Validate dotted names and values as a TrialConfig."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if not isinstance(name, str) or name not in FIELD_NAMES:
            raise UserError(f"{where}: {name}", "unknown name", fix=did_you_mean(str(name), FIELD_NAMES))
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    try:
        return TrialConfig.model_validate(nested)
    except ValidationError as error:
        raise from_validation_error(error, where, FIELD_NAMES) from None


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Scalar]]:
    pairs: list[tuple[str, Scalar]] = []
    for key, value in nested.items():
        name = prefix + key
        pairs += _flatten(value, name + ".") if isinstance(value, dict) else [(name, value)]
    return pairs


FIELD_DEFAULTS: dict[str, Scalar] = TrialConfig().flat()
"""Every dotted name of a trial with its default, in declaration order."""

FIELD_NAMES: tuple[str, ...] = tuple(FIELD_DEFAULTS)

"""The sections of a trial's configuration, and what each field means.

What the AMMPL paper says and what this project chose is marked field by field; docs/method.md has the whole list.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = bool | int | float | str | None


class Section(BaseModel):
    """A typed, frozen part of a configuration, strict about its keys and values."""

    # strict: "16" is not 16 and True is not 1; a typed file should say what it means.
    # allow_inf_nan: a NaN in a configuration would make it unequal to itself.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BackboneConfig(Section):
    """The frozen CLIP.

    Attributes:
        name: ``tiny-glyph`` (embedded, no download) or an open_clip ViT architecture such as ``ViT-B-16``.
        pretrained: a pretrained tag of open_clip, the path of a checkpoint, or ``random`` (benchmarks). None takes
            the embedded backbone's own weights; open_clip architectures need a value.
        precision: in which its transformer blocks compute: ``fp32``, the exact reference; ``tf32``, fp32 whose
            products a GPU computes from factors of 10 bits, without one the same as fp32; ``bf16``, slow where the
            processor has no instructions for it; ``auto``, bf16 where it has. The rest is always fp32: learnables,
            masks, features, logits.
        compile: whether a GPU runs the image tower's blocks through torch.compile, which takes its time at a worker's
            first step and then serves all of its trials; without a GPU it means nothing.
    """

    name: str = "tiny-glyph"
    pretrained: str | None = None
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    compile: bool = False


class DataConfig(Section):
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
        duplicates: whether to ``warn``, or to ``refuse``, where one picture is in two of the three lists.
    """

    name: str = "digits"
    shots: int = Field(16, ge=1)
    validation_shots: int | None = Field(None, ge=1)
    task: Literal["all", "base_to_new", "pseudo_new", "cross_dataset", "domain_generalisation"] = "all"
    holdout: int | None = Field(None, ge=0, le=4)
    targets: str | None = Field(None, min_length=1)
    augmentation: Literal["crop_and_mirror", "none"] | None = None
    skip_broken: bool = False
    duplicates: Literal["warn", "refuse"] = "warn"

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


class TextConfig(Section):
    """The text prompt: context vectors, then the class name.

    Attributes:
        context: ``shared`` M x T for all classes; ``class`` C x M x T (cannot score classes it was not trained on);
            ``fixed`` is a hand-written sentence, nothing learned.
        init: the phrase whose token embeddings the context starts from, one vector a token, or ``random``,
            N(0, .02^2) as in CoOp. Unused when fixed.
        length: M, context vectors. ``init: random`` needs it; of a phrase it is how many of the first tokens are
            learned, the others staying as they are (MaPLe), and None learns them all.
        template: with ``fixed``, the sentence with ``{}`` for the name; None takes the data set's own.
    """

    context: Literal["shared", "class", "fixed"] = "shared"
    init: str = Field("a photo of a", min_length=1)
    length: int | None = Field(None, ge=1, le=64)
    template: str | None = Field(None, json_schema_extra={"pattern": r"^(?!.*\{\}.*\{\}).*\{\}"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init == "random" and self.length is None:
            raise ValueError("'init: random' needs a 'length': how many context vectors there are")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError("'template' must hold '{}' exactly once")
        return self


class MaskConfig(Section):
    """The probability matrices and how masks are drawn from them.

    The paper: one matrix a class, one probability a patch, Bernoulli samples, gradients back to the matrix. Everything
    else here is our choice.

    Attributes:
        kind: ``learned``; ``binary`` (deterministic threshold with straight-through gradients, no sampling);
            ``random`` (fixed keep rate, not learned); ``none``.
        scope: ``class`` (the paper: an image pass a class); ``text`` (a pass a class too: one matrix and padding, to
            which small networks add what they make of each class's name, so that new classes have their own);
            ``task`` (one matrix for all classes: one pass).
        width: hidden width of the networks of scope ``text``.
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
    scope: Literal["class", "text", "task"] = "class"
    width: int = Field(16, ge=1)
    parameterization: Literal["sigmoid", "clamp"] = "sigmoid"
    initial_probability: float = Field(0.9, gt=0, lt=1)
    temperature: float = Field(1.0, gt=0)
    estimator: Literal["straight_through", "relaxed"] = "straight_through"
    evaluation: Literal["threshold", "expectation", "samples"] = "threshold"
    samples: int = Field(8, ge=1)
    keep_rate: float = Field(0.7, gt=0, le=1)


class PaddingConfig(Section):
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


class InteractionConfig(Section):
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


class TokensConfig(Section):
    """Learnable tokens among those of the towers, new ones in each of the first blocks: VPT and MaPLe.

    They have no position embedding; what a block makes of them is dropped, and the next block's tokens stand there.
    Not of the AMMPL paper, and not combined with its masks and networks.

    Attributes:
        kind: ``none``; ``visual`` (VPT, deep): after the patches; ``coupled`` (MaPLe): the context vectors before the
            first text block, others in their place before the next ones, and after the patches what a linear layer a
            block makes of these.
        count: tokens with ``visual``; ``coupled`` has as many as context vectors.
        depth: J, the first blocks, which have tokens of their own.
    """

    kind: Literal["none", "visual", "coupled"] = "none"
    count: int = Field(8, ge=1)
    depth: int = Field(1, ge=1)


class ModelConfig(Section):
    """The prompts around the frozen backbone.

    Modalities of an ablation are combinations, not a switch of their own: text only = ``mask.kind: none``; image only
    = ``text.context: fixed`` with ``interaction.direction: text_to_image`` or ``none``; zero-shot = neither.

    Attributes:
        candidates: with masks of scope ``class`` or ``text``, K: an image is scored only for the K classes that the
            frozen zero-shot model ranks highest, in training for its true class too; the softmax runs over these, and
            a true class that evaluation missed counts as wrong. None, or K >= C, is every class.
    """

    candidates: int | None = Field(None, ge=2)
    text: TextConfig = TextConfig()
    mask: MaskConfig = MaskConfig()
    padding: PaddingConfig = PaddingConfig()
    interaction: InteractionConfig = InteractionConfig()
    tokens: TokensConfig = TokensConfig()

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
        if self.candidates is not None and (self.mask.kind == "none" or self.mask.scope == "task"):
            raise ValueError(
                "'candidates' spares image passes where each class has its own: it needs mask.scope 'class' or 'text' "
                f"and a mask.kind other than 'none', got {self.mask.scope!r} and {self.mask.kind!r}"
            )
        if self.tokens.kind != "none" and (self.mask.kind != "none" or self.interaction.direction != "none"):
            raise ValueError(
                f"tokens.kind {self.tokens.kind!r} needs mask.kind 'none' and interaction.direction 'none', got "
                f"{self.mask.kind!r} and {self.interaction.direction!r}"
            )
        if self.tokens.kind == "coupled" and self.text.context != "shared":
            raise ValueError(
                f"tokens.kind 'coupled' reads the context that all classes share, and text.context is "
                f"{self.text.context!r}: use 'shared'"
            )
        return self


class TrainingConfig(Section):
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
        probe_masks: whether the last evaluation also measures what learned masks mean
            (:mod:`ammpl.training.mask_probe`).
        grad_tolerance: with masks of scope ``class`` or ``text``, (image, class) pairs whose score moves the
            loss by less get no gradient, |dL/ds| < tolerance; 0 is exact. ``train/skipped_pairs`` and
            ``train/skipped_gradient`` are then their number and the sum of their |dL/ds|, means over steps.
        chunk: with masks of scope ``class`` or ``text``, pairs in flight: bounds the memory, and changes sums in their
            last digits only. None takes what two gigabytes hold, on a GPU four fifths of this process's share of it.
        deterministic: whether a GPU takes only algorithms that give the same bits each time; a processor always does.
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
    probe_masks: bool = False
    grad_tolerance: float = Field(0.0, ge=0)
    chunk: int | None = Field(None, ge=1)
    deterministic: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs', not both and not neither")
        if self.schedule == "coop" and self.epochs is None:
            raise ValueError("'schedule: coop' is stepped by the epoch: set 'epochs' (and 'steps' to null)")
        return self


class SeedConfig(Section):
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

"""AMMPL: how text prompt, image prompt and interaction compose; images in, scores out.

The order of the computation (choice 1 of docs/method.md):

    Z0_c = text tower(context, name c)                       text alone
    X_bc = image tower(mask_c, padding_c + N2(Z0_c))         the image as class c's mask shows it
    Z_bc = text tower(context + N1(X_bc), name c)            text, informed by the image
    s_bc = exp(logit scale) * cos(X_bc, Z_bc)                class c is compared with its own image only

Zero-shot CLIP, CoOp and CoCoOp are this model with parts left out (:data:`ammpl.config.METHODS`); VPT and MaPLe have
tokens in the towers instead (:mod:`ammpl.model.tokens`).

Shapes: B images, C classes, G 1 or C, N patches, T text width, V vision width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammpl.config import METHODS, ModelConfig, SeedConfig
from ammpl.errors import UserError
from ammpl.model.backbone import Backbone
from ammpl.model.image_prompt import ImagePrompt, seeded_generator, to_device
from ammpl.model.interaction import LightNetwork
from ammpl.model.text_prompt import Classes, TextPrompt, sentence_features
from ammpl.model.tokens import CoupledTokens, VisualTokens

MaskChange = Callable[[Tensor], Tensor]
"""Evaluation masks (G, N) -> those that stand in for them."""


@dataclass(frozen=True)
class Draws:
    """What one training step draws at random, on the device: a function of seed and step alone.

    Attributes:
        uniform_BGN: what masks are drawn from, uniform in (0, 1); None without masks.
        filler_NV: the step's padding of pixels; None where there is none.
    """

    uniform_BGN: Tensor | None = None
    filler_NV: Tensor | None = None


def check_model(config: ModelConfig, backbone: Backbone) -> None:
    """Refuse what a configuration alone cannot know to be impossible on this backbone.

    Raises:
        UserError: padding or tokens deeper than a tower.
    """
    towers = {"image": backbone.vision_layers, "text": backbone.text_layers}
    reached = {"none": (), "visual": ("image",), "coupled": ("image", "text")}[config.tokens.kind]
    for tower in reached:
        if config.tokens.depth > towers[tower]:
            raise UserError(
                "model.tokens.depth",
                f"the {tower} tower of {backbone.name} has {towers[tower]} blocks",
                got=config.tokens.depth,
                fix=f"at most {min(towers[tower] for tower in reached)}",
            )
    if config.mask.kind != "none" and config.padding.depth > backbone.vision_layers:
        raise UserError(
            "model.padding.depth",
            f"{backbone.name} has {backbone.vision_layers} blocks to pad before",
            got=config.padding.depth,
            fix=f"at most {backbone.vision_layers}",
        )


def model_class(method: str) -> type[AMMPL]:
    """Return what computes a method: AMMPL, or the subclass that an installed package adds."""
    return METHODS[method].model or AMMPL


class AMMPL(nn.Module):
    """Prompts around a frozen CLIP; its parameters are the learnables and nothing else.

    Args:
        config: which prompts exist.
        backbone: the frozen towers.
        class_names: the classes to train on.
        seeds: ``init`` draws the start, ``noise`` everything random afterwards.
        template: the data set's zero-shot sentence, for a fixed context and for ranking candidates.
        mean_pixel: the training images' mean colour in [0, 1], for ``padding.content: mean``.

    Raises:
        UserError: see :func:`check_model` and :class:`~ammpl.model.text_prompt.TextPrompt`.
    """

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        class_names: Sequence[str],
        seeds: SeedConfig,
        template: str = "a photo of a {}.",
        mean_pixel: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ):
        super().__init__()
        check_model(config, backbone)
        self.config = config
        self.backbone = backbone
        self.seeds = seeds
        self.mean_pixel = mean_pixel

        # Each part draws from a generator of its own: adding one never moves another's start.
        def start(part: str) -> torch.Generator:
            return seeded_generator(seeds.init, part)

        self.text_prompt = TextPrompt(config.text, backbone, class_names, template, start("text"))
        self.image_prompt: ImagePrompt | None = None
        self.tokens: VisualTokens | CoupledTokens | None = None
        self.image_to_text: LightNetwork | None = None  # N1
        self.text_to_image: LightNetwork | None = None  # N2
        if config.mask.kind != "none":
            self.image_prompt = ImagePrompt(
                config.mask, config.padding, backbone, len(class_names), mean_pixel, start("image"), seeds.noise
            )
        if config.tokens.kind == "visual":
            self.tokens = VisualTokens(config.tokens, backbone, start("tokens"))
        elif config.tokens.kind == "coupled":
            self.tokens = CoupledTokens(config.tokens, backbone, self.text_prompt.length, start("tokens"))
        D, r, strength = backbone.joint_width, config.interaction.width, config.interaction.strength
        if config.image_to_text:
            self.image_to_text = LightNetwork(
                D, r, backbone.text_width, strength=strength, generator=start("N1"), dtype=backbone.dtype
            )
        if config.text_to_image:
            self.text_to_image = LightNetwork(
                D, r, backbone.vision_width, strength=strength, generator=start("N2"), dtype=backbone.dtype
            )
        self.to(backbone.device)

    @property
    def reads_patches(self) -> bool:
        """Whether scoring needs patch tokens: there is an image prompt, or tokens."""
        return self.image_prompt is not None or self.tokens is not None

    @property
    def reads_pooled(self) -> bool:
        """Whether scoring needs the frozen features of the unmasked images."""
        pooled = self.image_to_text is not None and self.config.interaction.image_source == "pooled"
        return not self.reads_patches or pooled or self.config.candidates is not None

    @property
    def masks_each_class(self) -> bool:
        """Whether every class has an image pass of its own, as in the paper."""
        return self.image_prompt is not None and self.config.mask.scope in ("class", "text")

    def classes(self, names: Sequence[str]) -> Classes:
        """Prepare class names for scoring; see :meth:`TextPrompt.classes`.

        With masks of scope ``text``, their networks read what sets a class's name apart: its frozen sentence's
        normalised feature less the mean of the trained classes'. What all classes share would give all the same mask.
        """
        classes = self.text_prompt.classes(names)
        if self.config.candidates is not None:
            ranking_CD = sentence_features(self.backbone, self.text_prompt.template, classes.names)
            classes = replace(classes, ranking_CD=ranking_CD)
        if self.image_prompt is None or self.config.mask.scope != "text":
            return classes

        def sentences(names: tuple[str, ...]) -> Tensor:
            return F.normalize(sentence_features(self.backbone, self.text_prompt.template, names), dim=-1)

        return replace(classes, apart_CD=sentences(classes.names) - sentences(self.text_prompt.class_names).mean(0))

    def forward(self, patches_BNV: Tensor | None, pooled_BD: Tensor | None, classes: Classes, step: int) -> Tensor:
        """Return training logits (B, C) of every class, candidate or not; masks are drawn with the step's noise.

        Args:
            patches_BNV: patch tokens, where :attr:`reads_patches`.
            pooled_BD: frozen image features, where :attr:`reads_pooled`.
            classes: from :meth:`classes`.
            step: the training step, from 0; with the noise seed it decides every random draw.
        """
        images = len(patches_BNV) if patches_BNV is not None else 0
        return self.scores(patches_BNV, pooled_BD, classes, self.draws(images, classes, step))

    def draws(self, images: int, classes: Classes, step: int) -> Draws:
        """Return what a training step draws: noise for every image and class, candidate or not.

        It is drawn on the CPU, the same on every device, and on its way to a GPU when this returns.
        """
        if self.image_prompt is None:
            return Draws()
        groups = len(self.image_prompt.rows(classes.trained_C))
        return Draws(self.training_noise(images, groups, step), self.image_prompt.filler(step))

    def scores(self, patches_BNV: Tensor | None, pooled_BD: Tensor | None, classes: Classes, draws: Draws) -> Tensor:
        """Return training logits (B, C) like :meth:`forward`, from what the step has drawn: nothing random is left."""
        mask_BGN = None
        if self.image_prompt is not None:
            assert draws.uniform_BGN is not None
            rows_G = self.image_prompt.rows(classes.trained_C)
            mask_BGN = self.image_prompt.mask.sample(rows_G, draws.uniform_BGN, classes.apart_CD)
        return self._score(patches_BNV, pooled_BD, classes, mask_BGN, draws.filler_NV)

    @torch.no_grad()
    def predict(
        self,
        patches_BNV: Tensor | None,
        pooled_BD: Tensor | None,
        classes: Classes,
        change: MaskChange | None = None,
        every_class: bool = False,
    ) -> Tensor:
        """Return evaluation logits (B, C), the same however images are batched.

        With ``mask.evaluation: samples``, the log of the probabilities' mean over the draws (a Monte-Carlo estimate
        of the predictive distribution).

        Args:
            patches_BNV: patch tokens, where :attr:`reads_patches`.
            pooled_BD: frozen image features, where :attr:`reads_pooled`.
            classes: from :meth:`classes`.
            change: what masks pass through.
            every_class: score the classes that are no candidates too; else these get minus infinity.
        """
        if self.image_prompt is None:
            return self._score(patches_BNV, pooled_BD, classes, None, None)
        top_BK = None if every_class else self.candidates(pooled_BD, classes)
        filler_NV = self.image_prompt.filler(None)
        logits = []
        for mask_GN in self._evaluation_masks(classes):
            if change is not None:
                mask_GN = change(mask_GN)
            whole = self.image_prompt.whole(mask_GN)
            logits.append(self.score_masked(patches_BNV, pooled_BD, classes, top_BK, mask_GN, whole, filler_NV))
        if len(logits) == 1:
            return logits[0]
        return torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def _evaluation_masks(self, classes: Classes) -> Iterator[Tensor]:
        """Yield the masks (G, N) of each draw that evaluation takes."""
        assert self.image_prompt is not None
        rows_G = self.image_prompt.rows(classes.trained_C)
        sampled = self.config.mask.evaluation == "samples" and self.config.mask.kind == "learned"
        for draw in range(self.config.mask.samples if sampled else 1):
            uniform_GN = self._uniform((len(rows_G),), "evaluation mask", draw)
            yield self.image_prompt.mask.evaluate(rows_G, uniform_GN, classes.apart_CD)

    def score_masked(
        self,
        patches_BNV: Tensor | None,
        pooled_BD: Tensor | None,
        classes: Classes,
        top_BK: Tensor | None,
        mask_GN: Tensor,
        whole: Sequence[bool],
        filler_NV: Tensor | None,
    ) -> Tensor:
        """Return evaluation logits (B, C) with these masks, minus infinity of classes that are no candidates.

        Args:
            patches_BNV: patch tokens.
            pooled_BD: frozen image features, where :attr:`reads_pooled`.
            classes: from :meth:`classes`.
            top_BK: from :meth:`candidates`.
            mask_GN: 1 keeps.
            whole: which of the masks keep everything.
            filler_NV: see :attr:`Draws.filler_NV`.
        """
        if top_BK is None:
            return self._score(patches_BNV, pooled_BD, classes, mask_GN[None], filler_NV, whole)
        assert patches_BNV is not None
        (B, K), C = top_BK.shape, len(classes.names)
        image_R = torch.arange(B, device=top_BK.device).repeat_interleave(K, output_size=B * K)
        class_R = top_BK.flatten()
        mask_RN = mask_GN[class_R]
        scores_R = self._score_pairs(patches_BNV, pooled_BD, classes, image_R, class_R, mask_RN, filler_NV, whole)
        return scores_R.new_full((B, C), -torch.inf).scatter(1, top_BK, scores_R.view(B, K))

    @torch.no_grad()
    def candidates(self, pooled_BD: Tensor | None, classes: Classes) -> Tensor | None:
        """Return the classes that are scored for each image, (B, K); None is every class.

        Args:
            pooled_BD: frozen image features.
            classes: from :meth:`classes`.
        """
        K = self.config.candidates
        if K is None or len(classes.names) <= K:
            return None
        assert pooled_BD is not None and classes.ranking_CD is not None
        return (F.normalize(pooled_BD, dim=-1) @ F.normalize(classes.ranking_CD, dim=-1).T).topk(K).indices

    def text_alone(self, classes: Classes, deeper_JMT: Tensor | None = None) -> Tensor | None:
        """Return the text features Z0 (C, D) of the context alone; None where nothing reads them."""
        read = self.text_to_image is not None or self.image_to_text is None
        return self.text_prompt(classes, deeper_JMT=deeper_JMT) if read else None

    def probabilities(self, classes: Classes) -> Tensor:
        """Return the probabilities (G, N) with which learned masks keep each patch."""
        assert self.image_prompt is not None
        rows_G, mask = self.image_prompt.rows(classes.trained_C), self.image_prompt.mask
        return mask.logits_and_probabilities(rows_G, classes.apart_CD)[1]

    def _score(
        self,
        patches_BNV: Tensor | None,
        pooled_BD: Tensor | None,
        classes: Classes,
        mask_BGN: Tensor | None,
        filler_NV: Tensor | None,
        whole: Sequence[bool] = (),
    ) -> Tensor:
        extra_JnV = deeper_JMT = None
        if self.tokens is not None:
            extra_JnV, deeper_JMT = self.tokens(getattr(self.text_prompt, "context", None))
        alone_CD = self.text_alone(classes, deeper_JMT)

        if extra_JnV is not None:
            assert patches_BNV is not None
            image_BGD = self.backbone.image_features(patches_BNV, extra_JnV=extra_JnV)[:, None]
        elif self.image_prompt is None or mask_BGN is None:
            assert pooled_BD is not None
            image_BGD = pooled_BD[:, None]
        else:
            assert patches_BNV is not None
            text_GV = None
            if self.text_to_image is not None:
                text_GV = self.text_to_image(alone_CD)
                if len(text_GV) != mask_BGN.shape[1]:  # scope task: one padding hears all classes
                    text_GV = text_GV.mean(0, keepdim=True)
            rows_G = self.image_prompt.rows(classes.trained_C)
            paddings = self.image_prompt.paddings(rows_G, text_GV, filler_NV, classes.apart_CD)
            image_BGD = self.image_prompt(patches_BNV, mask_BGN, paddings, whole)

        if self.image_to_text is None:
            text_BCD = alone_CD
        else:
            pooled = self.config.interaction.image_source == "pooled" and pooled_BD is not None
            source_BGD = pooled_BD[:, None] if pooled and pooled_BD is not None else image_BGD
            text_BCD = self.text_prompt(classes, self.image_to_text(source_BGD))

        assert text_BCD is not None
        cosine_BC = (F.normalize(image_BGD, dim=-1) * F.normalize(text_BCD, dim=-1)).sum(-1)
        return self.backbone.logit_scale * cosine_BC

    def score_pairs(
        self,
        patches_BNV: Tensor,
        pooled_BD: Tensor | None,
        classes: Classes,
        image_R: Tensor,
        class_R: Tensor,
        draws: Draws,
    ) -> Tensor:
        """Return the training logits (R,) of some (image, class) pairs, each of which has an image pass of its own.

        Args:
            patches_BNV: patch tokens.
            pooled_BD: frozen image features, where :attr:`reads_pooled`.
            classes: from :meth:`classes`.
            image_R: each pair's image.
            class_R: each pair's class.
            draws: from :meth:`draws`, those of every image and class.
        """
        assert self.image_prompt is not None and draws.uniform_BGN is not None
        rows_C = self.image_prompt.rows(classes.trained_C)
        apart_RD = None if classes.apart_CD is None else classes.apart_CD[class_R]
        uniform_1RN = draws.uniform_BGN[image_R, class_R][None]
        mask_RN = self.image_prompt.mask.sample(rows_C[class_R], uniform_1RN, apart_RD)[0]
        return self._score_pairs(patches_BNV, pooled_BD, classes, image_R, class_R, mask_RN, draws.filler_NV)

    def _score_pairs(
        self,
        patches_BNV: Tensor,
        pooled_BD: Tensor | None,
        classes: Classes,
        image_R: Tensor,
        class_R: Tensor,
        mask_RN: Tensor,
        filler_NV: Tensor | None,
        whole_C: Sequence[bool] = (),
    ) -> Tensor:
        assert self.image_prompt is not None
        whole_R: Sequence[bool] = ()
        if whole_C and all(whole_C):
            whole_R = [True] * len(class_R)
        elif any(whole_C) and not self.backbone.static_shapes:
            whole_R = [whole_C[index] for index in class_R.tolist()]
        chosen, place_R = classes, class_R
        if not self.backbone.static_shapes:  # only what these pairs need
            few, place_R = class_R.unique(return_inverse=True)
            chosen = classes.at(few)
        rows_C = self.image_prompt.rows(chosen.trained_C)

        alone_CD = self.text_alone(chosen)
        text_CV = self.text_to_image(alone_CD) if self.text_to_image is not None else None
        paddings = self.image_prompt.paddings(rows_C, text_CV, filler_NV, chosen.apart_CD)
        image_RD = self.image_prompt.of_pairs(patches_BNV, image_R, mask_RN, paddings, place_R, whole_R)

        if self.image_to_text is None:
            assert alone_CD is not None
            text_RD = alone_CD[place_R]
        else:
            pooled = self.config.interaction.image_source == "pooled" and pooled_BD is not None
            source_RD = pooled_BD[image_R] if pooled and pooled_BD is not None else image_RD
            text_RD = self.text_prompt.of_pairs(chosen, place_R, self.image_to_text(source_RD))
        cosine_R = (F.normalize(image_RD, dim=-1) * F.normalize(text_RD, dim=-1)).sum(-1)
        return self.backbone.logit_scale * cosine_R

    def training_noise(self, images: int, groups: int, step: int) -> Tensor:
        """Return what a step's masks are drawn from: uniform noise (B, G, N)."""
        return self._uniform((images, groups), "mask", step)

    def _uniform(self, leading: tuple[int, ...], *purpose: object) -> Tensor:
        generator = seeded_generator(self.seeds.noise, *purpose)
        # Drawn in fp32 whatever the weights are: the same masks in every precision.
        noise = torch.rand((*leading, self.backbone.patch_count), generator=generator)
        return to_device(noise.to(self.backbone.dtype), self.backbone.device)

"""The image prompt: probability matrices draw masks over patches, paddings stand where a patch is masked.

Known (paper): one probability a patch, one matrix a class; a Bernoulli sample keeps (1) or masks (0) each patch, and
gradients flow back to the matrix; each class has one trainable padding patch, broadcast to its masked positions, to
which N2 of the text feature is added. Estimator, evaluation, parameterisation, scopes ``text`` and ``task``, depth and
the other fillings are our choices (docs/method.md).

Shapes: B images, C classes, G masks (C with scopes ``class`` and ``text``, 1 with ``task``), N patches, V vision
width, D joint width, J padding depth. Learnables have a row a class with scope ``class``, else one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ammpl.config import MaskConfig, PaddingConfig
from ammpl.model.backbone import Backbone
from ammpl.model.interaction import LightNetwork

CLAMP = 1e-4


def seeded_generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the purpose alone, not on what was drawn before.

    Noise is always drawn on the CPU, for a whole step at once: the same on every device, and independent of
    chunks, skipped pairs and candidates.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a CPU tensor to a device; with a GPU, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class ProbabilityMatrix(nn.Module):
    """The probabilities of keeping each patch and the masks drawn from them.

    Args:
        config: see :class:`~ammpl.config.MaskConfig`; ``kind: none`` has no matrix and is refused here.
        rows: of the matrix.
        patches: N.
        dtype: of the parameter.
        from_name: with scope ``text``, the network g from a class's name to what is added to the matrix.
    """

    temperature: Tensor

    def __init__(
        self, config: MaskConfig, rows: int, patches: int, dtype: torch.dtype, from_name: LightNetwork | None = None
    ):
        super().__init__()
        self.config = config
        # A tensor: what a GPU has recorded for one trial serves others, whatever theirs is.
        self.register_buffer("temperature", torch.tensor(config.temperature, dtype=dtype), persistent=False)
        if config.kind in ("learned", "binary"):
            p = torch.tensor(config.initial_probability, dtype=dtype)
            start = p.logit() if config.parameterization == "sigmoid" else p
            self.matrix_GN = nn.Parameter(start.expand(rows, patches).clone())
            self.from_name = from_name

    def logits_and_probabilities(self, rows_G: Tensor, names_GD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (logits, p) of G masks, each (G, N).

        Args:
            rows_G: rows of the matrix; -1, a new class, is the mean of all rows.
            names_GD: with scope ``text``, what sets the classes' names apart.
        """
        matrix_GN = _rows_or_mean(self.matrix_GN, rows_G)
        if self.from_name is not None:
            assert names_GD is not None
            matrix_GN = matrix_GN + self.from_name(names_GD)
        if self.config.parameterization == "sigmoid":
            return matrix_GN, matrix_GN.sigmoid()
        # Clamped forward, straight through backward: a probability pushed outside can still come back.
        p_GN = matrix_GN + (matrix_GN.clamp(CLAMP, 1 - CLAMP) - matrix_GN).detach()
        return p_GN.logit(), p_GN

    def sample(self, rows_G: Tensor, uniform_BGN: Tensor, names_GD: Tensor | None = None) -> Tensor:
        """Draw training masks (B, G, N): 1 keeps, 0 masks.

        ``learned``: a binary-concrete sample (Maddison et al. 2017, eq. 10; Jang et al. 2017),
        y = sigmoid((logit p + logit u) / tau), whose threshold y > .5 is exactly Bernoulli(p). The straight-through
        form has that hard value and y's gradient.

        Args:
            rows_G: rows of the matrix, -1 for a new class.
            uniform_BGN: the step's noise, uniform in (0, 1).
            names_GD: with scope ``text``, what sets the classes' names apart.
        """
        if self.config.kind == "random":
            return (uniform_BGN < self.config.keep_rate).to(uniform_BGN.dtype)
        logits_GN, p_GN = self.logits_and_probabilities(rows_G, names_GD)
        if self.config.kind == "binary":
            hard_GN = (p_GN >= 0.5).to(p_GN.dtype)
            return _straight_through(hard_GN, p_GN).expand_as(uniform_BGN)
        # The noise has finitely many values: 0 would have an infinite logit.
        noise_BGN = uniform_BGN.clamp(1e-7, 1 - 1e-7).logit()
        soft_BGN = ((logits_GN + noise_BGN) / self.temperature).sigmoid()
        if self.config.estimator == "relaxed":
            return soft_BGN
        hard_BGN = (soft_BGN > 0.5).to(soft_BGN.dtype)
        return _straight_through(hard_BGN, soft_BGN)

    def evaluate(self, rows_G: Tensor, uniform_GN: Tensor, names_GD: Tensor | None = None) -> Tensor:
        """Return evaluation masks (G, N), the same for every image.

        Args:
            rows_G: rows of the matrix, -1 for a new class.
            uniform_GN: one fixed draw, for ``kind: random`` and ``evaluation: samples``; unused otherwise.
            names_GD: with scope ``text``, what sets the classes' names apart.
        """
        if self.config.kind == "random":
            return (uniform_GN < self.config.keep_rate).to(uniform_GN.dtype)
        _, p_GN = self.logits_and_probabilities(rows_G, names_GD)
        if self.config.kind == "binary" or self.config.evaluation == "threshold":
            return (p_GN >= 0.5).to(p_GN.dtype)
        if self.config.evaluation == "expectation":
            return p_GN
        return (uniform_GN < p_GN).to(p_GN.dtype)


class ImagePrompt(nn.Module):
    """Masks and paddings around the frozen image tower.

    Args:
        mask: see :class:`~ammpl.config.MaskConfig`, kind other than ``none``.
        padding: see :class:`~ammpl.config.PaddingConfig`.
        backbone: the frozen tower; J may not exceed its number of blocks (checked before, see
            :func:`ammpl.model.ammpl.check_model`).
        class_count: classes to train on.
        mean_pixel: the training images' mean colour, three values in [0, 1], for ``content: mean``.
        generator: draws learned paddings, N(0, .02^2), and the start of the networks of scope ``text``.
        noise_seed: seed of the pixels of ``content: noise``.
    """

    def __init__(
        self,
        mask: MaskConfig,
        padding: PaddingConfig,
        backbone: Backbone,
        class_count: int,
        mean_pixel: tuple[float, float, float],
        generator: torch.Generator,
        noise_seed: int,
    ):
        super().__init__()
        self.padding_config = padding
        self.backbone = backbone
        self.noise_seed = noise_seed
        self.mean_pixel = mean_pixel
        self._plain_1V: Tensor | None = None  # one patch of a plain picture, once it was asked for
        J, V, dtype = padding.depth, backbone.vision_width, backbone.dtype
        rows = class_count if mask.scope == "class" else 1
        learned = padding.content in ("learned+text", "learned") and J > 0
        if learned:
            self.padding_JGV = nn.Parameter(0.02 * torch.randn(J, rows, V, generator=generator, dtype=dtype))

        def from_name(output_width: int) -> LightNetwork | None:
            if mask.scope != "text":
                return None
            D, r = backbone.joint_width, mask.width
            return LightNetwork(D, r, output_width, strength=1.0, generator=generator, dtype=dtype)

        self.mask = ProbabilityMatrix(mask, rows, backbone.patch_count, dtype, from_name(backbone.patch_count))
        self.padding_from_name = from_name(J * V) if learned else None

    def rows(self, trained_C: Tensor) -> Tensor:
        """Return which row of matrix and padding serves each of G masks; -1 is the mean of all."""
        if self.mask.config.scope == "class":
            return trained_C
        shared_C = torch.zeros_like(trained_C)
        return shared_C if self.mask.config.scope == "text" else shared_C[:1]

    def paddings(
        self, rows_G: Tensor, text_GV: Tensor | None, filler_NV: Tensor | None, names_GD: Tensor | None = None
    ) -> Tensor | None:
        """Return what stands on masked positions: (J, G, 1 or N, V), or None for depth 0.

        Args:
            rows_G: rows, -1 for a new class.
            text_GV: N2 of the text features, shared by the depths; None where N2 does not exist.
            filler_NV: from :meth:`filler`.
            names_GD: with scope ``text``, what sets the classes' names apart.
        """
        config, J, G = self.padding_config, self.padding_config.depth, len(rows_G)
        if J == 0:
            return None
        V = self.backbone.vision_width
        if filler_NV is not None:
            return filler_NV.expand(J, G, *filler_NV.shape)
        content = torch.zeros(J, G, V, dtype=self.backbone.dtype, device=rows_G.device)
        if config.content != "text":
            content = _rows_or_mean(self.padding_JGV, rows_G, dim=1)
        if self.padding_from_name is not None:
            assert names_GD is not None
            content = content + self.padding_from_name(names_GD).view(G, J, V).transpose(0, 1)
        if text_GV is not None:
            content = content + text_GV
        return content[:, :, None]

    @torch.no_grad()
    def filler(self, step: int | None) -> Tensor | None:
        """Embed a picture of nothing: black, the mean colour, or Gaussian pixels; (1 or N, V).

        Args:
            step: the training step, with which noise is drawn again; None at evaluation.

        Returns:
            None where paddings are no pixels, or there are none.
        """
        if self.padding_config.content not in ("zero", "mean", "noise") or self.padding_config.depth == 0:
            return None
        size = self.backbone.preprocessing.size
        if self.padding_config.content == "noise":
            # Standard normal in the tower's normalised pixel space, redrawn each step, fixed at evaluation.
            generator = seeded_generator(self.noise_seed, "padding noise", step)
            pixels = torch.randn(1, 3, size, size, generator=generator)
            pixels = to_device(pixels.to(self.backbone.dtype), self.backbone.device)
            return self.backbone.embed_patches(pixels)[0]
        if self._plain_1V is not None:
            return self._plain_1V
        colour = (0.0, 0.0, 0.0) if self.padding_config.content == "zero" else self.mean_pixel
        # In [0, 255] but not rounded: normalize() divides by 255.
        plain = torch.tensor(colour).mul(255).view(1, 3, 1, 1).expand(1, 3, size, size)
        self._plain_1V = self.backbone.embed_patches(self.backbone.normalize(plain))[0, :1]
        return self._plain_1V

    def whole(self, mask_GN: Tensor) -> list[bool]:
        """Return which masks keep everything: their images are the plain one, one pass for all of them.

        The one thing that evaluation waits for a GPU to tell.
        """
        return cast(list[bool], (mask_GN == 1).all(-1).tolist())

    def forward(
        self, patches_BNV: Tensor, mask_BGN: Tensor, paddings_JGNV: Tensor | None, whole: Sequence[bool] = ()
    ) -> Tensor:
        """Return image features X (B, G, D), not normalised.

        Args:
            patches_BNV: patch tokens before positions.
            mask_BGN: 1 keeps; B may be 1.
            paddings_JGNV: from :meth:`paddings`.
            whole: from :meth:`whole`, where all images have the same masks.
        """
        B, G = len(patches_BNV), mask_BGN.shape[1]
        if any(whole):
            features_BGD = self.backbone.image_features(patches_BNV)[:, None].expand(-1, G, -1)
            if rest := [group for group, keeps in enumerate(whole) if not keeps]:
                paddings = None if paddings_JGNV is None else paddings_JGNV[:, rest]
                features_BGD = features_BGD.clone()
                features_BGD[:, rest] = self.forward(patches_BNV, mask_BGN[:, rest], paddings)
            return features_BGD
        keep_RN1 = mask_BGN.expand(B, -1, -1).reshape(B * G, -1, 1)
        patches_RNV = patches_BNV[:, None].expand(-1, G, -1, -1).flatten(0, 1)

        def padding(depth: int) -> Tensor:
            assert paddings_JGNV is not None
            return paddings_JGNV[depth][None].expand(B, -1, -1, -1).flatten(0, 1)

        depths = 0 if paddings_JGNV is None else len(paddings_JGNV)
        return self._features(patches_RNV, keep_RN1, padding, depths).view(B, G, -1)

    def of_pairs(
        self,
        patches_BNV: Tensor,
        image_R: Tensor,
        mask_RN: Tensor,
        paddings_JGNV: Tensor | None,
        groups_R: Tensor,
        whole_R: Sequence[bool] = (),
    ) -> Tensor:
        """Return image features (R, D) of (image, mask) pairs, not normalised.

        Args:
            patches_BNV: patch tokens before positions.
            image_R: each pair's image.
            mask_RN: each pair's mask, 1 keeps.
            paddings_JGNV: from :meth:`paddings`.
            groups_R: which of the G paddings each pair gets.
            whole_R: which masks keep everything.
        """
        if any(whole_R):
            features_RD = self.backbone.image_features(patches_BNV)[image_R]
            if rest := [pair for pair, keeps in enumerate(whole_R) if not keeps]:
                features_RD[rest] = self.of_pairs(
                    patches_BNV, image_R[rest], mask_RN[rest], paddings_JGNV, groups_R[rest]
                )
            return features_RD

        def padding(depth: int) -> Tensor:
            assert paddings_JGNV is not None
            return paddings_JGNV[depth][groups_R]

        depths = 0 if paddings_JGNV is None else len(paddings_JGNV)
        return self._features(patches_BNV[image_R], mask_RN[:, :, None], padding, depths)

    def _features(
        self, patches_RNV: Tensor, keep_RN1: Tensor, padding: Callable[[int], Tensor], depths: int
    ) -> Tensor:
        """Return image features (R, D) of masked images.

        Args:
            patches_RNV: patch tokens before positions.
            keep_RN1: masks, 1 keeps.
            padding: depth -> what stands on masked positions there, (R, 1 or N, V).
            depths: J.
        """
        tokens = keep_RN1 * patches_RNV
        if depths == 0:
            return self.backbone.image_features(tokens)
        tokens = tokens + (1 - keep_RN1) * padding(0)
        positions_NV = self.backbone.vision_positions_NV

        def repad(block: int, tokens: Tensor) -> Tensor | None:
            if block >= depths:
                return None
            return keep_RN1 * tokens + (1 - keep_RN1) * (padding(block) + positions_NV)

        return self.backbone.image_features(tokens, repad if depths > 1 else None)


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` with the gradient of ``soft``; exactly 0 and 1, for hard = (soft >= .5) makes 1 - soft exact."""
    return soft + (hard - soft).detach()


def _rows_or_mean(values: Tensor, rows_G: Tensor, dim: int = 0) -> Tensor:
    """Select rows along ``dim``; row -1 is the mean over all rows (a class that was never trained)."""
    with_mean = torch.cat([values, values.mean(dim, keepdim=True)], dim)
    return with_mean.index_select(dim, torch.where(rows_G < 0, values.shape[dim], rows_G))

"""What is measured of a model: accuracy and loss over a split, and diagnostics of its prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ammpl.data.dataset import Split
from ammpl.model.ammpl import AMMPL, MaskChange
from ammpl.training.features import Pixels, chunks, patch_tokens, patches, pooled, pooled_features

RECALL_IMAGES = 32
"""At most so many images are scored among all classes, to see whether candidates hold the winner."""


def scores(
    model: AMMPL,
    pixels: Pixels,
    count: int,
    class_names: Sequence[str],
    pooled_nD: Tensor | None = None,
    patches_nNV: Tensor | None = None,
    change: MaskChange | None = None,
    every_class: bool = False,
) -> Tensor:
    """Return evaluation logits (n, C) in fp32 on the CPU.

    Args:
        pixels: returns some of the images, uint8 (B, 3, S, S).
        count: n, images in all.
        class_names: among which to decide.
        pooled_nD: frozen features of the unmasked images where they are known; computed where they are read.
        patches_nNV: patch tokens of all images where they are known; computed where they are read.
        change: makes others of the evaluation masks.
        every_class: score the classes that are no candidates too; else these get minus infinity.
    """
    model.eval()
    classes = model.classes(class_names)
    if pooled_nD is None and model.reads_pooled:
        pooled_nD = pooled(model.backbone, pixels, count)
    scored = len(class_names) if every_class else min(model.config.candidates or len(class_names), len(class_names))
    passes = scored if model.masks_each_class else 1 if model.reads_patches else 0
    texts = scored if model.image_to_text is not None else 0
    logits = []
    for chosen in chunks(model.backbone, count, passes, texts):
        patches_BNV = None if patches_nNV is None else patches_nNV[chosen]
        if patches_BNV is None and model.reads_patches:
            patches_BNV = patches(model.backbone, pixels(chosen))
        pooled_BD = pooled_nD[chosen] if pooled_nD is not None else None
        logits.append(model.predict(patches_BNV, pooled_BD, classes, change, every_class))
    return torch.cat(logits).float().cpu()


def evaluate(model: AMMPL, split: Split, change: MaskChange | None = None) -> dict[str, float]:
    """Score every image of a split among the split's class names.

    Args:
        model: trained or not.
        split: what to score.
        change: makes others of the evaluation masks.

    Returns:
        ``accuracy`` in [0, 1] over all images (not a mean over classes), and ``loss``, the mean cross-entropy in nats.
        Where candidates leave out classes, an image whose class is none of its candidates is wrong, and its loss is as
        if its class were one more candidate with the lowest of their scores; and in addition ``winner_recall``: the
        share of images whose winner among all classes is a candidate, of 32 at most, evenly spread over the split.
    """
    pooled_nD = pooled_features(model.backbone, split) if model.reads_pooled else None
    patches_nNV = patch_tokens(model.backbone, split) if model.reads_patches else None
    logits_nC = scores(model, split.pixels, len(split), split.class_names, pooled_nD, patches_nNV, change)
    correct = int((logits_nC.argmax(-1) == split.labels).sum())
    result = {"accuracy": correct / len(split)}
    if model.config.candidates is not None and model.config.candidates < len(split.class_names):
        lowest_n1 = logits_nC.where(logits_nC > -torch.inf, torch.inf).amin(-1, keepdim=True)
        missed_nC = F.one_hot(split.labels, logits_nC.shape[1]).bool() & (logits_nC == -torch.inf)
        logits_nC = logits_nC.where(~missed_nC, lowest_n1)
        if change is None:
            assert pooled_nD is not None
            result["winner_recall"] = _winner_recall(model, split, pooled_nD)
    return {**result, "loss": F.cross_entropy(logits_nC, split.labels).item()}


def _winner_recall(model: AMMPL, split: Split, pooled_nD: Tensor) -> float:
    """Return the share of some images whose winner among all classes is a candidate."""
    every = math.ceil(len(split) / RECALL_IMAGES)
    some, pooled_mD = split.at(range(0, len(split), every)), pooled_nD[::every]
    logits_mC = scores(model, some.pixels, len(some), split.class_names, pooled_mD, every_class=True)
    top_mK = model.candidates(pooled_mD, model.classes(split.class_names))
    assert top_mK is not None
    return (top_mK.cpu() == logits_mC.argmax(-1, keepdim=True)).any(-1).float().mean().item()


def harmonic_mean(base: float, new: float) -> float:
    """Return H = 2 base new / (base + new), 0 where either is."""
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


def above_chance(accuracy: float, classes: int) -> float:
    """Return (accuracy - 1/C) / (1 - 1/C): 0 for guessing among C classes, 1 for all correct; not below 0."""
    return max(0.0, (accuracy - 1 / classes) / (1 - 1 / classes))


@torch.no_grad()
def diagnostics(model: AMMPL) -> dict[str, float]:
    """Return how the image prompt stands; empty without one.

    Returns:
        ``mask/keep_rate``: the share of patches that evaluation keeps (above .99 the image prompt is inactive);
        ``mask/probability``: mean p; ``mask/entropy``: mean entropy of a patch's Bernoulli, in bits;
        ``padding/norm``: mean length of the learned padding vectors.
    """
    if model.image_prompt is None:
        return {}
    result: dict[str, float] = {}
    mask = model.image_prompt.mask
    if mask.config.kind in ("learned", "binary"):
        p = model.probabilities(model.classes(model.text_prompt.class_names)).double().clamp(1e-12, 1 - 1e-12)
        kept = p if mask.config.kind == "learned" and mask.config.evaluation != "threshold" else (p >= 0.5).double()
        result["mask/keep_rate"] = kept.mean().item()
        result["mask/probability"] = p.mean().item()
        result["mask/entropy"] = -(p * p.log2() + (1 - p) * (1 - p).log2()).mean().item()
    else:
        result["mask/keep_rate"] = mask.config.keep_rate
    padding = getattr(model.image_prompt, "padding_JGV", None)
    if padding is not None:
        result["padding/norm"] = padding.norm(dim=-1).mean().item()
    return result

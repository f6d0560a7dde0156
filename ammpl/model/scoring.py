"""Exact training steps of class and text scope whose memory does not grow with the number of classes.

With a mask a class, every image passes the tower once for every class, and one graph holds all B x C passes. But the
loss needs only the B x C scores s: a first pass without gradients gives them, and with them dL/ds; a second pass
repeats a chunk of (image, class) pairs at a time with gradients, and back-propagates sum(dL/ds * s) of the chunk.
The noise of a pair is a function of seed, step and pair, so that both passes see the same masks. The gradients are
those of one graph, up to the order of additions (tests/model/test_scoring.py).

Most pairs hardly matter once a model knows anything: softmax gives them a probability near 0. ``tolerance`` leaves
pairs with |dL/ds| below it out of the second pass, and says how much that leaves out.

Shapes: B images, C classes, R pairs, N patches, V vision width, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone
from ammpl.model.text_prompt import Classes


@dataclass(frozen=True)
class Backward:
    """What one step's backward pass did.

    Attributes:
        loss: mean cross-entropy in nats, a scalar tensor without gradient.
        skipped: share of pairs left out of the second pass.
        skipped_gradient: share of the sum of |dL/ds| that they had.
    """

    loss: Tensor
    skipped: float = 0.0
    skipped_gradient: float = 0.0


def backward(
    model: AMMPL,
    patches_BNV: Tensor,
    pooled_BD: Tensor | None,
    classes: Classes,
    labels_B: Tensor,
    step: int,
    *,
    chunk: int,
    tolerance: float = 0.0,
) -> Backward:
    """Add the gradients of one step's mean cross-entropy to the learnables.

    Args:
        model: with masks of scope ``class`` or ``text``.
        patches_BNV: patch tokens.
        pooled_BD: frozen image features, where the model reads them.
        classes: what to score.
        labels_B: the true classes.
        step: the training step, from 0.
        chunk: R, pairs in flight: bounds the memory.
        tolerance: pairs with |dL/ds| below it get no gradient; 0 is exact.
    """
    B, C = len(patches_BNV), len(classes.names)
    uniform_BCN = model.training_noise(B, C, step)

    def scores(pairs_R: Tensor) -> Tensor:
        # Class by class, so that a chunk needs the text features of few classes.
        image_R, class_R = pairs_R % B, pairs_R // B
        return score_pairs(model, patches_BNV, pooled_BD, classes, image_R, class_R, uniform_BCN, step)

    everything = torch.arange(B * C, device=patches_BNV.device)
    if chunk >= B * C and tolerance == 0:  # one graph holds it all
        loss = F.cross_entropy(_precise(scores(everything).view(C, B).T), labels_B)
        loss.backward()
        return Backward(loss.detach())
    with torch.no_grad():
        logits_BC = torch.cat([scores(pairs_R) for pairs_R in everything.split(chunk)]).view(C, B).T
    leaf_BC = _precise(logits_BC).requires_grad_()
    loss = F.cross_entropy(leaf_BC, labels_B)
    (slope_BC,) = torch.autograd.grad(loss, leaf_BC)

    slope_R = slope_BC.T.reshape(-1)
    size_R = slope_R.abs()
    kept_R = (size_R >= tolerance).nonzero()[:, 0] if tolerance > 0 else everything
    for pairs_R in kept_R.split(chunk) if len(kept_R) else ():
        scored_R = scores(pairs_R)
        scored_R.backward(slope_R[pairs_R].to(scored_R.dtype))
    if tolerance == 0:
        return Backward(loss.detach())
    left_out = 1 - (size_R[kept_R].sum() / size_R.sum()).item()
    return Backward(loss.detach(), 1 - len(kept_R) / (B * C), left_out)


def _precise(logits: Tensor) -> Tensor:
    """Return logits in single precision at least: the softmax is never computed in less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pairs_in_flight(backbone: Backbone) -> int:
    """Return how many pairs' graphs two gigabytes hold, or half of the memory that a GPU has free.

    A pair's graph keeps some 14 tensors of (tokens, width) for each block of the image tower (measured on ViT-B/16's
    shapes: 12.5, its share of the text tower included).
    """
    values = (backbone.patch_count + 1) * backbone.vision_width * backbone.vision_layers
    budget = 2e9
    if backbone.device.type == "cuda":
        budget = torch.cuda.mem_get_info(backbone.device)[0] / 2
    return max(1, int(budget // (14 * values * backbone.block_dtype.itemsize)))


def score_pairs(
    model: AMMPL,
    patches_BNV: Tensor,
    pooled_BD: Tensor | None,
    classes: Classes,
    image_R: Tensor,
    class_R: Tensor,
    uniform_BCN: Tensor,
    step: int,
) -> Tensor:
    """Return the training logits (R,) of some (image, class) pairs; the same as :meth:`AMMPL.forward` gives them.

    Args:
        image_R: each pair's image.
        class_R: each pair's class.
        uniform_BCN: the step's mask noise, from :meth:`AMMPL.training_noise`.
    """
    assert model.image_prompt is not None
    few, place_R = class_R.unique(return_inverse=True)
    chosen = classes.at(few)
    rows_C = model.image_prompt.rows(chosen.trained_C)

    alone_CD = model.text_alone(chosen)
    alone_RD = alone_CD[place_R] if alone_CD is not None else None
    mask_RN = model.image_prompt.mask.sample(rows_C[place_R], uniform_BCN[image_R, class_R][None], alone_RD)[0]
    text_CV = model.text_to_image(alone_CD) if model.text_to_image is not None else None
    paddings = model.image_prompt.paddings(rows_C, text_CV, step, alone_CD)
    image_RD = model.image_prompt.features(patches_BNV[image_R], mask_RN, paddings, place_R)

    if model.image_to_text is None:
        assert alone_CD is not None
        text_RD = alone_CD[place_R]
    else:
        pooled = model.config.interaction.image_source == "pooled" and pooled_BD is not None
        source_RD = pooled_BD[image_R] if pooled and pooled_BD is not None else image_RD
        text_RD = model.text_prompt.of_pairs(chosen, place_R, model.image_to_text(source_RD))
    cosine_R = (F.normalize(image_RD, dim=-1) * F.normalize(text_RD, dim=-1)).sum(-1)
    return model.backbone.logit_scale * cosine_R

"""Training steps of class and text scope whose memory does not grow with the number of classes.

With a mask a class, every image passes the tower once for every class, and one graph holds all B x C passes. But the
loss needs only the B x C scores s: a first pass without gradients gives them, and with them dL/ds; a second pass
repeats a chunk of (image, class) pairs at a time with gradients, and back-propagates sum(dL/ds * s) of the chunk.
The noise of a pair is a function of seed, step and pair, so that both passes see the same masks. The gradients are
those of one graph, up to the order of additions (tests/model/test_scoring.py).

Most pairs hardly matter once a model knows anything: softmax gives them a probability near 0. ``tolerance`` leaves
pairs with |dL/ds| below it out of the second pass, and says how much that leaves out. With candidates, only theirs
and the true classes' pairs exist at all.

Shapes: B images, C classes, R pairs, N patches, V vision width, D joint width.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

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
        skipped: how many pairs were left out of the second pass.
        skipped_gradient: the sum of their |dL/ds|; that of all pairs is at most 2.
    """

    loss: Tensor
    skipped: int = 0
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
    """Add the gradients of one step's mean cross-entropy to the learnables; without tolerance they are exact.

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

    # A pair is a place in (C, B): class by class, so that a chunk needs the text features of few classes.
    candidates_BC = model.candidates(pooled_BD, classes)
    if candidates_BC is None:
        everything = torch.arange(B * C, device=patches_BNV.device)
    else:
        candidates_BC = candidates_BC | F.one_hot(labels_B, C).bool()
        everything = candidates_BC.T.flatten().nonzero()[:, 0]

    def scores(pairs_R: Tensor) -> Tensor:
        image_R, class_R = pairs_R % B, pairs_R // B
        noise_RN = uniform_BCN[image_R, class_R]
        return model.score_pairs(patches_BNV, pooled_BD, classes, image_R, class_R, noise_RN, step)

    def logits(scores_R: Tensor) -> Tensor:
        # The softmax in single precision at least; a class that is no candidate has no part in it.
        scores_R = scores_R.to(torch.promote_types(scores_R.dtype, torch.float32))
        return scores_R.new_full((C * B,), -torch.inf).index_put((everything,), scores_R).view(C, B).T

    if chunk >= len(everything) and tolerance == 0:  # one graph holds it all
        loss = F.cross_entropy(logits(scores(everything)), labels_B)
        loss.backward()
        return Backward(loss.detach())
    with torch.no_grad():
        leaf_BC = logits(torch.cat([scores(pairs_R) for pairs_R in everything.split(chunk)]))
    leaf_BC.requires_grad_()
    loss = F.cross_entropy(leaf_BC, labels_B)
    (slope_BC,) = torch.autograd.grad(loss, leaf_BC)

    slope_R = slope_BC.T.reshape(-1)
    size_R = slope_R.abs()
    kept_R = everything[size_R[everything] >= tolerance] if tolerance > 0 else everything
    for pairs_R in kept_R.split(chunk) if len(kept_R) else ():
        give_back_memory()
        scored_R = scores(pairs_R)
        scored_R.backward(slope_R[pairs_R].to(scored_R.dtype))
    if tolerance == 0:
        return Backward(loss.detach())
    left_out = (size_R[everything].sum() - size_R[kept_R].sum()).item()
    return Backward(loss.detach(), len(everything) - len(kept_R), left_out)


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


@cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back_memory() -> None:
    """Give the system the pages that freed tensors on the CPU have left in glibc's heap; elsewhere nothing.

    Prompts of many lengths fray that heap: with 397 classes it grew to 1.4 times what it took with 37,
    although no more tensors are alive at a time.
    """
    trim = _trim()
    if trim is not None:
        trim(0)

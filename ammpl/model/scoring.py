"""Training steps of class and text scope whose memory does not grow with the number of classes.

With a mask a class, every image passes the tower once for every class, and one graph holds all B x C passes. But the
loss needs only the B x C scores s: a first pass without gradients gives them, and with them dL/ds; a second pass
repeats a chunk of (image, class) pairs at a time with gradients, and back-propagates sum(dL/ds * s) of the chunk. The
first chunk's graph is kept from the first pass: where one chunk holds all, there is no second pass. The noise of a
pair is a function of seed, step and pair, so that both passes see the same masks. The gradients are those of one
graph, up to the order of additions (tests/model/test_scoring.py).

Most pairs hardly matter once a model knows anything: softmax gives them a probability near 0. ``tolerance`` leaves
pairs with |dL/ds| below it out of the second pass, and says how much that leaves out. With candidates, only theirs
and the true classes' pairs exist at all.

Shapes: B images, C classes, R pairs, N patches, V vision width, D joint width.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ammpl.model.ammpl import AMMPL, Draws
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
    draws: Draws,
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
        draws: the step's, from :meth:`AMMPL.draws <ammpl.model.ammpl.AMMPL.draws>`.
        chunk: R, pairs in flight: bounds the memory.
        tolerance: pairs with |dL/ds| below it get no gradient; 0 is exact.
    """
    top_BK = model.candidates(pooled_BD, classes)
    if not model.backbone.static_shapes or tolerance > 0:
        return _of_pairs(model, patches_BNV, pooled_BD, classes, labels_B, top_BK, draws, chunk, tolerance)
    if top_BK is None:
        return _of_all(model, patches_BNV, pooled_BD, classes, labels_B, draws, chunk)
    return _of_candidates(model, patches_BNV, pooled_BD, classes, labels_B, top_BK, draws, chunk)


Part = TypeVar("Part")


def _backward(
    parts: Sequence[Part], scores: Callable[[Part], Tensor], loss_of: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """Add the gradients of a loss of many scores, whose graphs exist a part at a time; return the loss.

    Args:
        parts: what ``scores`` is called with, the first as large as any: its graph is kept, and not made twice.
        scores: part -> its scores, in single precision at least.
        loss_of: scores of all parts, in order -> the loss.
    """
    first, *others = parts
    with torch.no_grad():
        leaves = [scores(part) for part in others]
    graph = scores(first)
    leaves = [leaf.requires_grad_() for leaf in (graph.detach(), *leaves)]
    loss = loss_of(leaves)
    slope, *slopes = torch.autograd.grad(loss, leaves)
    graph.backward(slope)
    del graph
    for part, slope in zip(others, slopes, strict=True):
        give_back_memory(slope.device)
        scores(part).backward(slope)
    return loss.detach()


def _of_all(
    model: AMMPL,
    patches_BNV: Tensor,
    pooled_BD: Tensor | None,
    classes: Classes,
    labels_B: Tensor,
    draws: Draws,
    chunk: int,
) -> Backward:
    """Score every class of every image; a part is some classes of some images, its shape no data's."""
    B, C = len(patches_BNV), len(classes.names)
    # All images at a time where they fit: what depends on a class alone is then computed once a part.
    images, width = min(B, chunk), max(1, min(C, chunk // B))
    parts = [(slice(b, b + images), slice(c, c + width)) for b in range(0, B, images) for c in range(0, C, width)]

    def scores(part: tuple[slice, slice]) -> Tensor:
        some, few = part
        assert draws.uniform_BGN is not None
        pooled = None if pooled_BD is None else pooled_BD[some]
        drawn = replace(draws, uniform_BGN=draws.uniform_BGN[some, few])
        return _logits(model.scores(patches_BNV[some], pooled, classes.at(few), drawn))

    def loss_of(scores: list[Tensor]) -> Tensor:
        across = -(-C // width)
        rows = [torch.cat(scores[start : start + across], 1) for start in range(0, len(scores), across)]
        return F.cross_entropy(torch.cat(rows), labels_B)

    return Backward(_backward(parts, scores, loss_of))


def _of_candidates(
    model: AMMPL,
    patches_BNV: Tensor,
    pooled_BD: Tensor | None,
    classes: Classes,
    labels_B: Tensor,
    top_BK: Tensor,
    draws: Draws,
    chunk: int,
) -> Backward:
    """Score each image's candidates, then its true class, as many pairs whether that is among them or not."""
    B, K = top_BK.shape
    class_R = torch.cat([top_BK, labels_B[:, None]], 1).flatten()
    image_R = torch.arange(B, device=class_R.device).repeat_interleave(K + 1, output_size=B * (K + 1))

    def scores(part: slice) -> Tensor:
        return _logits(model.score_pairs(patches_BNV, pooled_BD, classes, image_R[part], class_R[part], draws))

    def loss_of(scores: list[Tensor]) -> Tensor:
        twice_BK = top_BK == labels_B[:, None]
        logits_BL = torch.cat(scores).view(B, K + 1)
        logits_BL = torch.cat([logits_BL[:, :K].masked_fill(twice_BK, -torch.inf), logits_BL[:, K:]], 1)
        return F.cross_entropy(logits_BL, torch.full_like(labels_B, K))

    return Backward(_backward([slice(r, r + chunk) for r in range(0, B * (K + 1), chunk)], scores, loss_of))


def _of_pairs(
    model: AMMPL,
    patches_BNV: Tensor,
    pooled_BD: Tensor | None,
    classes: Classes,
    labels_B: Tensor,
    top_BK: Tensor | None,
    draws: Draws,
    chunk: int,
    tolerance: float,
) -> Backward:
    """Score the pairs that there are, each once, and those of no weight without gradients."""
    B, C = len(patches_BNV), len(classes.names)
    # A pair is a place in (C, B): class by class, so that a part needs the text features of few classes.
    if top_BK is None:
        everything = torch.arange(B * C, device=patches_BNV.device)
    else:
        candidates_BC = F.one_hot(labels_B, C).scatter_(1, top_BK, 1).bool()
        everything = candidates_BC.T.flatten().nonzero()[:, 0]

    def scores(pairs_R: Tensor) -> Tensor:
        image_R, class_R = pairs_R % B, pairs_R // B
        return _logits(model.score_pairs(patches_BNV, pooled_BD, classes, image_R, class_R, draws))

    def loss_of(scores: list[Tensor]) -> Tensor:
        scores_R = torch.cat(scores)  # a class that is no candidate has no part in the softmax
        logits_BC = scores_R.new_full((C * B,), -torch.inf).index_put((everything,), scores_R).view(C, B).T
        return F.cross_entropy(logits_BC, labels_B)

    parts = everything.split(chunk)
    if tolerance == 0:
        return Backward(_backward(parts, scores, loss_of))
    with torch.no_grad():
        leaf_R = torch.cat([scores(pairs_R) for pairs_R in parts])
    loss = loss_of([leaf_R.requires_grad_()])
    (slope_R,) = torch.autograd.grad(loss, leaf_R)
    kept_R = slope_R.abs() >= tolerance
    for pairs_R, slope_r in zip(everything[kept_R].split(chunk), slope_R[kept_R].split(chunk), strict=True):
        if len(pairs_R):
            give_back_memory(slope_R.device)
            scores(pairs_R).backward(slope_r)
    return Backward(loss.detach(), int((~kept_R).sum()), slope_R[~kept_R].abs().sum().item())


def _logits(scores: Tensor) -> Tensor:
    """Return scores in single precision at least, for the softmax."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def pairs_in_flight(backbone: Backbone) -> int:
    """Return how many pairs' graphs two gigabytes hold, or four fifths of this process's share of a GPU.

    A pair's graph keeps some tensors of (tokens, width) for each block of the image tower: measured on ViT-B/16's
    shapes, its share of the text tower included, 12.5 on a processor and 10.5 on a GPU. Of a GPU's memory all is
    counted, not what is free now: the same trial is cut the same way again.
    """
    values = (backbone.patch_count + 1) * backbone.vision_width * backbone.vision_layers
    tensors, budget = 14, 2e9
    if backbone.device.type == "cuda":
        total = torch.cuda.get_device_properties(backbone.device).total_memory
        tensors, budget = 11, total * torch.cuda.get_per_process_memory_fraction(backbone.device) * 4 / 5
    return max(1, int(budget // (tensors * values * backbone.block_dtype.itemsize)))


@cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back_memory(device: torch.device) -> None:
    """Give the system the pages that freed tensors on a CPU have left in glibc's heap; elsewhere nothing.

    Prompts of many lengths fray that heap: with 397 classes it grew to 1.4 times what it took with 37,
    although no more tensors are alive at a time.
    """
    trim = _trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)

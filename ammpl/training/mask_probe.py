"""What learned masks mean: whether they tell useless patches, and whether a class's mask is its own.

The question is the paper's: does one patch mean different things to different classes and tasks? If it does, classes'
matrices lie apart and a class does worse with the mask of another; a task does worse with the mask of a task whose
pictures lie elsewhere. On the data sets of :mod:`ammpl.data.distractor` the useless patches are known, and that task
is the mirror image.

Shapes: G masks, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ammpl.data.dataset import Split
from ammpl.data.distractor import DISTRACTORS, GRID, meaningless_patches
from ammpl.model.ammpl import AMMPL
from ammpl.training.evaluation import evaluate


@torch.no_grad()
def probe_masks(model: AMMPL, split: Split, dataset: str, accuracy: float) -> dict[str, float]:
    """Measure learned masks on validation images; empty without such masks.

    Args:
        model: trained.
        split: validation images.
        dataset: its name tells which patches are useless, where that is known.
        accuracy: on these images, as the masks are.

    Returns:
        ``validation/mask_distance``: mean |p - p'| of a patch over pairs of classes, and ``validation/swap_cost``: the
        accuracy lost when each class's mask is replaced by the next one's, paddings and texts staying; both where
        classes have masks of their own. ``validation/mask_auc``: area under the ROC curve of p, useful against useless
        patches, mean over the masks, .5 for a mask that knows nothing, and ``validation/mirror_cost``: the accuracy
        lost when masks are mirrored left to right; both where useless patches are known.
    """
    if model.image_prompt is None or model.config.mask.kind not in ("learned", "binary"):
        return {}
    p_GN = model.probabilities(model.classes(split.class_names)).double().cpu()
    found: dict[str, float] = {}
    if len(p_GN) > 1:
        found["mask_distance"] = (torch.pdist(p_GN, p=1) / p_GN.shape[1]).mean().item()
        found["swap_cost"] = accuracy - evaluate(model, split, lambda mask_GN: mask_GN.roll(1, 0))["accuracy"]
    height, width = model.backbone.grid
    if dataset in DISTRACTORS and height % GRID == 0 and width % GRID == 0:
        useless = meaningless_patches(dataset).view(GRID, GRID)
        useless_N = useless.repeat_interleave(height // GRID, 0).repeat_interleave(width // GRID, 1).flatten()
        found["mask_auc"] = _auc(p_GN[:, ~useless_N], p_GN[:, useless_N])

        def mirrored(mask_GN: Tensor) -> Tensor:
            return mask_GN.view(-1, height, width).flip(-1).reshape(mask_GN.shape)

        found["mirror_cost"] = accuracy - evaluate(model, split, mirrored)["accuracy"]
    return {f"validation/{name}": value for name, value in found.items()}


def _auc(high_Gn: Tensor, low_Gm: Tensor) -> float:
    """Return how often the first are above the second, ties counting half; the mean over masks."""
    pairs_Gnm = high_Gn[:, :, None] - low_Gm[:, None]
    return ((pairs_Gnm.sign() + 1) / 2).mean().item()

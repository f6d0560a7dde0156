"""What a frozen tower makes of a split's images, computed once a process, and how many images it takes at a time.

Trials of one study read the same images through the same backbone: an actor keeps their patch tokens and pooled
features from one trial to the next, as far as they fit.

Shapes: n images of a split, B of a batch, N patches, V vision width, D joint width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ammpl.data.dataset import Split
from ammpl.model.backbone import Backbone

KEPT_BYTES = 2**28
"""Of all tensors that a process keeps; the one unused for longest goes first."""
CACHE_BYTES = 2**25
"""What activations without a graph may take on a CPU: beyond its last cache they are no faster, and often slower."""

Pixels = Callable[[slice], Tensor]
"""Some images of many, uint8 (B, 3, S, S)."""


def patches(backbone: Backbone, images: Tensor) -> Tensor:
    """Return patch tokens (B, N, V) of uint8 images (B, 3, S, S)."""
    return backbone.embed_patches(backbone.normalize(images))


@torch.no_grad()
def pooled(backbone: Backbone, pixels: Pixels, count: int) -> Tensor:
    """Return the frozen features (count, D) of unmasked images."""
    found = [backbone.image_features(patches(backbone, pixels(chunk))) for chunk in chunks(backbone, count)]
    return torch.cat(found)


def pooled_features(backbone: Backbone, split: Split) -> Tensor:
    """Return the frozen features (n, D) of a split's unmasked images; kept."""
    size = len(split) * backbone.joint_width * backbone.dtype.itemsize
    return _kept(("pooled", backbone, split), size, lambda: pooled(backbone, split.pixels, len(split)))


def patch_tokens(backbone: Backbone, split: Split) -> Tensor | None:
    """Return the patch tokens (n, N, V) of a split; kept. None where they are too many to be."""
    size = len(split) * backbone.patch_count * backbone.vision_width * backbone.dtype.itemsize
    if size > KEPT_BYTES / 2:
        return None

    def compute() -> Tensor:
        return torch.cat([patches(backbone, split.pixels(chunk)) for chunk in chunks(backbone, len(split))])

    return _kept(("patches", backbone, split), size, compute)


def chunks(backbone: Backbone, count: int, passes: int = 1, texts: int = 0) -> list[slice]:
    """Cut images so that the activations of a batch without a graph fit: a processor's caches, a quarter of a GPU.

    Args:
        backbone: the towers.
        count: images in all.
        passes: of the image tower, for each image.
        texts: passes of the text tower, for each image.
    """
    # The widest activation is inside the MLP, four widths a token.
    vision = passes * (backbone.patch_count + 1) * backbone.vision_width
    text = texts * backbone.context_length * backbone.text_width
    each, budget = 4 * max(vision, text) * backbone.block_dtype.itemsize, CACHE_BYTES
    if backbone.device.type == "cuda":  # there some four of them at once
        each, budget = 4 * each, torch.cuda.mem_get_info(backbone.device)[0] // 4
    size = max(1, budget // max(1, each))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def forget() -> None:
    """Let go of all that is kept."""
    _values.clear()


_Key = tuple[str, Backbone, Split]
_values: OrderedDict[_Key, Tensor] = OrderedDict()


def _kept(key: _Key, size: int, compute: Callable[[], Tensor]) -> Tensor:
    if key not in _values:
        while _values and size + sum(value.nbytes for value in _values.values()) > KEPT_BYTES:
            _values.popitem(last=False)
        _values[key] = compute()
    _values.move_to_end(key)
    return _values[key]

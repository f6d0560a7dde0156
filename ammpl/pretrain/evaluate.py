"""Zero-shot accuracy on the pool of scikit-learn's digits: judges the recipe, trains nothing.

The pool is the first 90 images of each class in the data set's order. The other 897 images are the sealed test
of later studies; they are dropped before anything looks at them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import open_clip
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from ammpl.model.tiny_glyph import Tokenizer
from ammpl.pretrain.captions import TEMPLATE
from ammpl.pretrain.concepts import DIGIT_NAMES

POOL_PER_CLASS = 90
MEAN = STD = 0.5  # inputs lie in [-1, 1]


@dataclass(frozen=True)
class PoolAccuracy:
    """Shares of correct images: among all ten classes, and 0-4 and 5-9 among their own five."""

    pool: float
    base: float
    new: float

    def as_dict(self) -> dict[str, float]:
        """Return the three figures, rounded to four digits."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def digit_pool() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pool: images, float32 (900, 3, 28, 28) in [0, 1], and labels, int64 (900,)."""
    digits = load_digits()
    rows = np.sort(np.concatenate([np.flatnonzero(digits.target == c)[:POOL_PER_CLASS] for c in range(10)]))
    small = torch.from_numpy(digits.images[rows]).float()[:, None] / 16  # values are counts 0..16
    labels = torch.from_numpy(digits.target[rows]).long()
    large = functional.interpolate(small, scale_factor=3, mode="bicubic", align_corners=False).clamp(0, 1)
    return functional.pad(large, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), labels


@torch.no_grad()
def pool_accuracy(model: open_clip.CLIP, tokenizer: Tokenizer) -> PoolAccuracy:
    """Classify the pool with the prompt ``"a photo of a {}."``; leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    images, labels = digit_pool()
    image_features = model.encode_image((images - MEAN) / STD, normalize=True)
    text_features = model.encode_text(tokenizer([TEMPLATE.format(name) for name in DIGIT_NAMES]), normalize=True)
    scores = image_features @ text_features.T
    model.train(was_training)
    base = labels < 5
    return PoolAccuracy(
        pool=_accuracy(scores, labels),
        base=_accuracy(scores[base, :5], labels[base]),
        new=_accuracy(scores[~base, 5:], labels[~base] - 5),
    )


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(-1) == labels).double().mean())

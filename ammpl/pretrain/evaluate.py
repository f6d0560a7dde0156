"""Zero-shot accuracy on the pool of the embedded digits: judges the recipe, trains nothing.

The pool is the data set's training and validation list. Its sealed test list stays closed here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import open_clip
import torch

from ammpl.data.digits import open_digits
from ammpl.data.transform import ImageTransform
from ammpl.model.tiny_glyph import Tokenizer

SIZE = 28
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
    digits = open_digits()
    train, validation = (part.open(ImageTransform(SIZE)) for part in (digits.train, digits.validation))
    images = torch.cat([train.pixels(), validation.pixels()])
    labels = torch.cat([train.labels, validation.labels])
    return images.float() / 255, labels


@torch.no_grad()
def pool_accuracy(model: open_clip.CLIP, tokenizer: Tokenizer) -> PoolAccuracy:
    """Classify the pool with the data set's own prompt; leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    digits = open_digits()
    images, labels = digit_pool()
    prompts = [digits.template.format(name) for name in digits.class_names]
    image_features = model.encode_image((images - MEAN) / STD, normalize=True)
    scores = image_features @ model.encode_text(tokenizer(prompts), normalize=True).T
    model.train(was_training)
    base = labels < 5
    return PoolAccuracy(
        pool=_accuracy(scores, labels),
        base=_accuracy(scores[base, :5], labels[base]),
        new=_accuracy(scores[~base, 5:], labels[~base] - 5),
    )


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(-1) == labels).double().mean())

"""Contrastive training of the tiny tower on glyph images and their captions.

Legend of shape suffixes: B images (and captions) of a batch, T captions, D joint width, L text length.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ammpl.model.tiny_glyph import (
    CONFIG_FILE,
    NAME,
    WEIGHTS_FILE,
    Tokenizer,
    Vocabulary,
    build,
)
from ammpl.pretrain import captions
from ammpl.pretrain.augment import IMAGE_SIDE, Augmenter, AugmentSettings, ramp
from ammpl.pretrain.concepts import CONCEPTS, Kind
from ammpl.pretrain.evaluate import MEAN, STD
from ammpl.pretrain.glyphs import GlyphSet

log = logging.getLogger(__name__)

CONTEXT_LENGTH = 24
MAX_LOGIT_SCALE = math.log(100)  # CLIP's cap on the learned temperature


@dataclass(frozen=True)
class TrainSettings:
    """Everything besides the fonts that decides the result."""

    steps: int = 1800
    seed: int = 0
    batch: int = 96
    lr: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05  # matrices only
    warmup: int = 50  # steps
    clip_norm: float = 1.0
    concept_weight: float = 0.5  # of the auxiliary concept head's loss; the head is not shipped
    shares: dict[Kind, float] = field(
        default_factory=lambda: {"digit": 0.4, "letter": 0.3, "symbol": 0.15, "shape": 0.15}
    )
    augment: AugmentSettings = field(default_factory=AugmentSettings)


def architecture(vocab_size: int) -> dict[str, Any]:
    """Return the arguments of ``open_clip.CLIP`` for the tiny tower: 1.46 M parameters."""
    return {
        "embed_dim": 128,
        "quick_gelu": False,
        "vision_cfg": {"image_size": IMAGE_SIDE, "patch_size": 4, "width": 128, "layers": 4, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def contrastive_loss(logits_BT: torch.Tensor, positive_BT: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric loss with several positives: cross-entropy against the uniform mix of them.

    Args:
        logits_BT: scaled similarities, B images against T captions.
        positive_BT: bool, caption is true of image; every row and every column has at least one.
    """
    target = positive_BT.float()
    by_image = -(target * logits_BT.log_softmax(1)).sum(1) / target.sum(1)
    by_caption = -(target * logits_BT.log_softmax(0)).sum(0) / target.sum(0)
    return (by_image.mean() + by_caption.mean()) / 2


def encode_text(model: open_clip.CLIP, tokens_TL: torch.Tensor) -> torch.Tensor:
    """Return normalised text features (T, D), reading no further than the batch's longest caption.

    Attention is causal and the end token is pooled, so the padding that is cut off never counted.
    """
    length = int((tokens_TL != 0).sum(1).max())
    tokens_TL = tokens_TL[:, :length]
    x = model.token_embedding(tokens_TL) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    pooled = x[torch.arange(len(x)), tokens_TL.argmax(-1)]
    return functional.normalize(pooled @ model.text_projection, dim=-1)


def _parameter_groups(modules: list[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for module in modules for p in module.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return linear warm-up, then a cosine to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (1 + math.cos(math.pi * progress)) / 2


def train(
    glyphs: GlyphSet,
    settings: TrainSettings,
    on_report: Callable[[int, dict[str, float]], None] | None = None,
    report_every: int = 100,
) -> tuple[open_clip.CLIP, Tokenizer]:
    """Train a tower from scratch on the CPU; a function of its arguments alone, up to rounding between machines.

    Args:
        glyphs: what images show.
        settings: the recipe.
        on_report: called with the step and the mean losses since the last report.
        report_every: steps between reports.

    Returns:
        The model in eval mode and its tokenizer.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    vocabulary = Vocabulary.from_words(captions.words(), CONTEXT_LENGTH)
    tokenizer = Tokenizer(vocabulary)
    model = build(architecture(vocabulary.size)).train()
    concept_head = nn.Linear(model.text_projection.shape[1], len(CONCEPTS))
    groups = _parameter_groups([model, concept_head], settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    parameters = [p for group in groups for p in group["params"]]
    augmenter = Augmenter(settings.augment, generator)
    weights_G = glyphs.sampling_weights(settings.shares)
    sums: dict[str, float] = {}
    for step in range(settings.steps):
        drawn_B = torch.multinomial(weights_G, settings.batch, replacement=True, generator=generator)
        concepts_B = glyphs.concepts[drawn_B]
        images, attributes = augmenter(glyphs.bitmaps[drawn_B], ramp(step, settings.steps))
        facts_BA = captions.facts(concepts_B, attributes)
        written = [captions.write_caption(row, rng) for row in facts_BA.tolist()]
        positive_BT = captions.truth(torch.tensor([caption.claims for caption in written]), facts_BA)

        features_BD = model.encode_image((images - MEAN) / STD)
        text_TD = encode_text(model, tokenizer([caption.text for caption in written]))
        logits_BT = model.logit_scale.exp() * functional.normalize(features_BD, dim=-1) @ text_TD.T
        contrast = contrastive_loss(logits_BT, positive_BT)
        concept = functional.cross_entropy(concept_head(features_BD), concepts_B)
        loss = contrast + settings.concept_weight * concept
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {float(loss)} at step {step}")

        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        for name, value in (("contrastive", contrast), ("concept", concept)):
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if (step + 1) % report_every == 0 and on_report is not None:
            on_report(step + 1, {name: total / report_every for name, total in sums.items()})
            sums = {}
    return model.eval(), tokenizer


def export(model: open_clip.CLIP, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights (fp16), config and vocabulary, in the form that ``ammpl.model.tiny_glyph.load`` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt", "name": NAME})
    (directory / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it readable to its owner alone
    tokenizer.vocabulary.write(directory)
    config = {
        "model_cfg": architecture(tokenizer.vocab_size),
        "preprocess_cfg": {
            "size": IMAGE_SIDE,
            "mode": "RGB",
            "interpolation": "bicubic",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
        },
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_record(directory: Path, settings: TrainSettings, glyphs: GlyphSet, results: dict[str, Any]) -> None:
    """Write ``training.json``: settings, what the glyphs were, and results; not needed to load the model."""
    record = {
        "settings": asdict(settings),
        "glyphs": {"bitmaps": len(glyphs), "fonts": glyphs.fonts, "families": len(glyphs.families) - 1},
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **results,
    }
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

"""The text side of a step: ours against the published CoCoOp loop, written plainly.

The 37 names of OxfordPets, four context vectors, ViT-B/16's text tower with random weights, fp32, one thread; forward
and backward. Published: for each image all prompts at the tower's full length of 77, through open_clip's own modules.
Both sides must give the same loss and gradients. Seconds are CPU time, which other work on the machine moves less;
sides alternate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import open_clip
import torch
import torch.nn.functional as F

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import Backbone, Preprocessing
from tests.benchmarks.record import Record

PETS = (
    "abyssinian", "american bulldog", "american pit bull terrier", "basset hound", "beagle", "bengal", "birman",
    "bombay", "boxer", "british shorthair", "chihuahua", "egyptian mau", "english cocker spaniel", "english setter",
    "german shorthaired", "great pyrenees", "havanese", "japanese chin", "keeshond", "leonberger", "maine coon",
    "miniature pinscher", "newfoundland", "persian", "pomeranian", "pug", "ragdoll", "russian blue", "saint bernard",
    "samoyed", "scottish terrier", "shiba inu", "siamese", "sphynx", "staffordshire bull terrier", "wheaten terrier",
    "yorkshire terrier",
)  # fmt: skip
CASES = ((1, 12, 3), (4, 12, 1), (16, 2, 1))  # images, blocks, runs of each side: the last would take minutes


def benchmark() -> Iterator[Record]:
    """Yield the time of a step for each number of images."""
    torch.set_num_threads(1)
    for images, blocks, runs in CASES:
        model, pooled, labels = _setting(images, blocks)
        sides = _sides(model, pooled, labels)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(runs):
            results = []
            for side, times in zip(sides, seconds, strict=True):
                model.zero_grad()
                began = time.process_time()
                loss = side()
                loss.backward()
                times.append(time.process_time() - began)
                results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
            _check_equal(*results)
        case = f"forward and backward, 37 names, {images} images, {blocks} blocks"
        yield Record("text_side", case, *map(statistics.median, seconds), "CPU s")


def _setting(images: int, blocks: int) -> tuple[AMMPL, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},  # not run
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": blocks},
    )
    half = (0.5, 0.5, 0.5)
    backbone = Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(32, half, half), "text tower")
    model = AMMPL(resolve("cocoop", {}).model, backbone, PETS, SeedConfig())
    with torch.no_grad():  # away from the zero start, so that every gradient is one
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model, torch.randn(images, 512), torch.arange(images)


def _sides(
    model: AMMPL, pooled_BD: torch.Tensor, labels_B: torch.Tensor
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Return our loss and the published one, as functions."""
    clip, context, net = model.backbone.clip, model.text_prompt.context, model.image_to_text
    assert net is not None
    classes, C, M = model.classes(PETS), len(PETS), len(context)
    ids = model.backbone.tokenizer([" ".join(["X"] * M) + f" {name}." for name in PETS])
    embedded = clip.token_embedding(ids)
    prefix, suffix = embedded[:, :1], embedded[:, 1 + M :]

    def ours() -> torch.Tensor:
        return F.cross_entropy(model(None, pooled_BD, classes, 0), labels_B)

    def published() -> torch.Tensor:
        rows = []
        for image_D, shift_T in zip(F.normalize(pooled_BD, dim=-1), net(pooled_BD), strict=True):
            prompts = torch.cat([prefix, (context + shift_T).expand(C, -1, -1), suffix], dim=1)
            x = clip.transformer(prompts + clip.positional_embedding, attn_mask=clip.attn_mask)
            text = clip.ln_final(x)[torch.arange(C), ids.argmax(-1)] @ clip.text_projection
            rows.append(model.backbone.logit_scale * F.normalize(text, dim=-1) @ image_D)
        return F.cross_entropy(torch.stack(rows), labels_B)

    return ours, published


def _check_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        error = ((one - other).norm() / other.norm()).item()
        assert error < 1e-5, f"the sides differ by {error:.1e}, relative"

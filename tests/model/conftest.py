"""A small CLIP with random weights: every shape distinct, so that a swapped axis cannot pass."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from ammpl.model.backbone import Backbone, Preprocessing, load_backbone

NAMES = ("cat", "sea lion", "a very long name", "dog")


def small_clip(quick_gelu: bool = False) -> open_clip.CLIP:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=20,
        vision_cfg={"image_size": 16, "patch_size": 4, "width": 24, "layers": 3, "head_width": 8},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
        quick_gelu=quick_gelu,
    )
    # open_clip starts biases at zero and norms at one; a test should notice when either is left out.
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def small_backbone(quick_gelu: bool = False, dtype: torch.dtype = torch.float32) -> Backbone:
    preprocessing = Preprocessing(16, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    tokenizer = SimpleTokenizer(context_length=16)
    return Backbone(small_clip(quick_gelu), tokenizer, preprocessing, "small").to(dtype=dtype)


@pytest.fixture
def backbone() -> Backbone:
    return small_backbone()


@pytest.fixture(params=[False, True], ids=["", "static"])
def backbone64(request: pytest.FixtureRequest) -> Backbone:
    """In double precision, laid out for a processor and for a GPU: both equal the reference."""
    backbone = small_backbone(dtype=torch.float64)
    backbone.static_shapes = request.param
    return backbone


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture
def small_architecture(tmp_path):
    """An architecture of open_clip's registry that is small enough to write to disk in a test."""
    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 24, "layers": 3, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
    }
    (tmp_path / "ViT-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "ViT-test.json")
    yield "ViT-test"
    load_backbone.cache_clear()

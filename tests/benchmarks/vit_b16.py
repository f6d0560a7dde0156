"""ViT-B/16's shapes with random weights, the same ones everywhere."""

from __future__ import annotations

import open_clip
import torch

from ammpl.model.backbone import Backbone, Preprocessing


def vit_b16() -> Backbone:
    """Return the backbone, in fp32 on the CPU."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    )
    half = (0.5, 0.5, 0.5)
    return Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(224, half, half), "B16")

from __future__ import annotations

import open_clip
import pytest
import torch

from ammpl.config import BackboneConfig
from ammpl.errors import UserError
from ammpl.model.backbone import Backbone, Preprocessing, computes_bf16, load_backbone
from ammpl.model.blocks import run_block
from tests.model.conftest import NAMES, small_backbone

SENTENCES = [f"a photo of a {name}." for name in NAMES]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_towers_equal_open_clip(quick_gelu, images):
    backbone = small_backbone(quick_gelu)
    pixels = backbone.normalize(images)
    with torch.no_grad():
        expected_images = backbone.clip.encode_image(pixels)
        expected_texts = backbone.clip.encode_text(backbone.tokenizer(SENTENCES))
        found_images = backbone.image_features(backbone.embed_patches(pixels))
    torch.testing.assert_close(found_images, expected_images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.encode_texts(SENTENCES), expected_texts, rtol=1e-5, atol=1e-5)


def test_gradients_equal_open_clip(backbone64, images):
    pixels = backbone64.normalize(images)
    visual = backbone64.clip.visual
    patches = backbone64.embed_patches(pixels).requires_grad_()
    backbone64.image_features(patches).square().sum().backward()
    reference = patches.detach().clone().requires_grad_()
    class_token = visual.class_embedding.expand(len(images), 1, -1)
    tokens = visual.ln_pre(torch.cat([class_token, reference], 1) + visual.positional_embedding)
    features = visual.ln_post(visual.transformer(tokens)[:, 0]) @ visual.proj
    features.square().sum().backward()
    torch.testing.assert_close(patches.grad, reference.grad, rtol=1e-8, atol=1e-12)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_bf16_blocks_are_near_fp32_and_the_rest_stays_fp32(backbone, images):
    """Values and gradients of both towers; attention to all rows, causal, and after a prefix."""

    def run():
        generator = torch.Generator().manual_seed(0)
        patches = backbone.embed_patches(backbone.normalize(images)).requires_grad_()
        prefixes = torch.randn(3, 5, 32, generator=generator, requires_grad=True)
        suffixes = torch.randn(4, 6, 32, generator=generator)
        image = backbone.image_features(patches, lambda block, tokens: tokens * torch.ones(1))
        text = backbone.text_features_of_prefixes(prefixes, suffixes, torch.tensor([2, 5, 3, 2]))
        whole = backbone.text_features(torch.cat([prefixes, suffixes[:3]], 1), torch.tensor([7, 10, 8]))
        outputs = (image, text, whole)
        weights = [torch.randn(output.shape, generator=generator) for output in outputs]
        loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        return *(output.detach() for output in outputs), *torch.autograd.grad(loss, (patches, prefixes))

    expected, scale = run(), backbone.logit_scale
    backbone.cast_blocks(torch.bfloat16)
    assert (backbone.precision, backbone.dtype) == ("bf16", torch.float32)
    for found, reference in zip(run(), expected, strict=True):
        assert found.dtype == torch.float32
        assert 0 < relative(found, reference) < 0.03
    assert backbone.logit_scale == scale


def test_compiled_blocks_equal_the_function_in_one_graph(backbone, images):
    """As traced: what a GPU's compiler makes of it needs a GPU. Other numbers of images need no other graph."""

    def run(count):
        patches = backbone.embed_patches(backbone.normalize(images[:count])).requires_grad_()
        features = backbone.image_features(patches)
        return features.detach(), *torch.autograd.grad(features.square().sum(), patches)

    expected = [run(count) for count in (3, 5, 4)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backbone.compile_blocks("aot_eager")
    found = [run(count) for count in (3, 5, 4)]
    for pair, reference in zip(found, expected, strict=True):
        assert all(map(torch.equal, pair, reference))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_means_nothing_without_a_gpu():
    backbone = load_backbone(BackboneConfig(compile=True))
    if backbone.device.type == "cpu":
        assert backbone._run_block is run_block


def test_auto_precision_is_what_the_processor_computes():
    auto = load_backbone(BackboneConfig(precision="auto"))
    assert auto.precision == ("bf16" if computes_bf16("cpu") else "fp32")
    assert load_backbone(BackboneConfig()).precision == "fp32"


def test_text_does_not_depend_on_what_follows_the_end_token(backbone):
    ids = backbone.tokenizer(SENTENCES)
    ends = ids.argmax(-1)
    short = backbone.text_features(backbone.embed_ids(ids[:, : ends.max() + 1]), ends)
    filled = ids.clone()
    filled[torch.arange(16)[None] > ends[:, None]] = 1234
    long = backbone.text_features(backbone.embed_ids(filled), ends)
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


def test_shared_prefixes_equal_whole_prompts(backbone64):
    """Values, and gradients of prefixes and suffixes."""
    generator = torch.Generator().manual_seed(0)
    prefixes = torch.randn(3, 5, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    suffixes = torch.randn(4, 6, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([2, 5, 3, 2])
    found = backbone64.text_features_of_prefixes(prefixes, suffixes, ends)
    whole = torch.cat([prefixes[:, None].expand(3, 4, 5, 32), suffixes.expand(3, 4, 6, 32)], 2).reshape(12, 11, 32)
    expected = backbone64.text_features(whole, (ends + 5).repeat(3)).view(3, 4, -1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for gradient, reference in zip(
        torch.autograd.grad((found * weights).sum(), (prefixes, suffixes)),
        torch.autograd.grad((expected * weights).sum(), (prefixes, suffixes)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-10)


def test_no_prompt_pays_for_a_longer_one(backbone):
    """Blocks see each prompt up to its own end token, shared prefixes once, and the last block ends alone."""
    seen = []
    for block in backbone.clip.transformer.resblocks:
        block.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(len(inputs[0])))
    ends = torch.tensor([2, 5, 3, 2])
    backbone.text_features_of_prefixes(torch.zeros(3, 4, 32), torch.zeros(4, 9, 32), ends)
    rows = 3 * 4 + 3 * (3 + 6 + 4 + 3)
    assert seen == [rows, rows, 3 * 4]
    seen.clear()
    backbone.text_features(torch.zeros(4, 9, 32), ends)
    assert seen == [16, 16, 4]


def test_a_published_architecture_with_quick_gelu():
    backbone = load_backbone(BackboneConfig(name="ViT-B-32-quickgelu", pretrained="random"))
    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        pixels = backbone.normalize(images)
        found = backbone.image_features(backbone.embed_patches(pixels))
        torch.testing.assert_close(found, backbone.clip.encode_image(pixels), rtol=1e-4, atol=1e-4)
        expected = backbone.clip.encode_text(backbone.tokenizer(SENTENCES))
        torch.testing.assert_close(backbone.encode_texts(SENTENCES), expected, rtol=1e-4, atol=1e-4)
    load_backbone.cache_clear()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BackboneConfig(name="ViT-B-61"),
            r"backbone.name: unknown backbone, got 'ViT-B-61'. Fix: did you mean 'ViT-B-16'",
        ),
        (BackboneConfig(name="ViT-B-16"), "backbone.pretrained: ViT-B-16 needs a pretrained tag .*openai"),
        (BackboneConfig(name="ViT-B-16", pretrained="opena"), "did you mean 'openai'"),
        (BackboneConfig(name="tiny-glyph", pretrained="openai"), "has only its own weights"),
        (BackboneConfig(name="RN50", pretrained="random"), "image tower is not a plain ViT"),
    ],
)
def test_unusable_backbones_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        load_backbone(config)


def test_other_towers_are_refused():
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        text_cfg={"context_length": 8, "vocab_size": 10, "width": 16, "heads": 2, "layers": 1},
    )
    with pytest.raises(UserError, match="model class is CustomTextCLIP, and only CLIP models"):
        Backbone(clip, lambda texts: torch.zeros(1, 8), Preprocessing(16, (0, 0, 0), (1, 1, 1)), "custom")


def test_too_long_texts_are_refused(backbone):
    with pytest.raises(UserError, match="14 tokens at most"):
        backbone.encode_texts(["word " * 20])

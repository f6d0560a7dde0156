"""VPT and MaPLe against plain references of their published formulas, and what is particular to their tokens."""

from __future__ import annotations

import pytest
import torch

from ammpl.config import resolve
from ammpl.errors import UserError
from ammpl.model.ammpl import AMMPL
from tests.model import reference
from tests.model.conftest import NAMES, small_backbone
from tests.model.test_ammpl import SEEDS, assert_same, gradients, randomize

DTYPES = {torch.float64: {"rtol": 1e-8, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def model_of(backbone, method, **values):
    settings = {f"model.{name.replace('__', '.')}": value for name, value in values.items()}
    return AMMPL(resolve(method, settings).model, backbone, NAMES, SEEDS)


def logits_of(model, images):
    patches = model.backbone.embed_patches(model.backbone.normalize(images))
    return model(patches, None, model.classes(NAMES), step=0)


def maple_reference(model, images, phrase="a photo of a"):
    tokens = model.tokens
    contexts = [model.text_prompt.context, *(() if tokens.deeper_JMT is None else tokens.deeper_JMT)]
    layers = list(zip(tokens.weight_JVT, tokens.bias_JV, strict=True))
    return reference.maple(model.backbone, model.backbone.normalize(images), phrase, contexts, layers, NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_vpt_equals_its_plain_reference(images, depth, dtype):
    backbone = small_backbone(dtype=dtype)
    model = randomize(model_of(backbone, "vpt", tokens__depth=depth, tokens__count=2))
    assert {name: p.shape for name, p in model.named_parameters()} == {"tokens.visual_JnV": (depth, 2, 24)}
    found = logits_of(model, images)
    sentences = [f"a photo of a {name}." for name in NAMES]
    expected = reference.vpt(backbone, backbone.normalize(images), model.tokens.visual_JnV, sentences)
    check(model, found, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_maple_equals_its_plain_reference(images, depth, dtype):
    model = randomize(model_of(small_backbone(dtype=dtype), "maple", tokens__depth=depth))
    shapes = {
        "text_prompt.context": (2, 32),
        "tokens.deeper_JMT": (depth - 1, 2, 32),
        "tokens.weight_JVT": (depth, 24, 32),
        "tokens.bias_JV": (depth, 24),
    }
    assert {name: p.shape for name, p in model.named_parameters()} == {n: s for n, s in shapes.items() if s[0]}
    check(model, logits_of(model, images), maple_reference(model, images), dtype)


def check(model, found, expected, dtype):
    """Values and gradients; 1e-8 in fp64, 1e-5 of the largest entry in fp32."""
    if dtype is torch.float64:
        assert_same(model, found, expected)
        return
    close = DTYPES[dtype]
    torch.testing.assert_close(found, expected, **close)
    expected_gradients = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        scale = expected_gradients[name].abs().max()
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, msg=name, **close)


def test_every_token_of_every_block_matters(backbone64, images):
    """None is put where the next block's overwrites it before it was read."""
    for method in ("vpt", "maple"):
        model = randomize(model_of(backbone64, method, tokens__depth=3))
        for name, gradient in gradients(model, logits_of(model, images)).items():
            assert bool((gradient.flatten(1).abs().sum(1) > 0).all()), name


def test_maple_starts_from_the_first_words_and_keeps_the_others(backbone, images):
    model = model_of(backbone, "maple", tokens__depth=2)
    ids = torch.tensor(backbone.token_ids("a photo of a"))
    assert torch.equal(model.text_prompt.context, backbone.embed_ids(ids)[:2])
    classes = model.classes(NAMES)
    assert torch.equal(classes.embeddings_CLT[:, 3:5], backbone.embed_ids(ids)[2:].expand(len(NAMES), -1, -1))
    weight, bias = model.tokens.weight_JVT, model.tokens.bias_JV
    assert not torch.equal(weight[0], weight[1])
    assert max(weight.abs().max(), bias.abs().max()) <= 32**-0.5
    torch.testing.assert_close(logits_of(model, images), maple_reference(model, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["vpt", "maple"])
def test_new_classes_are_scored_and_batches_do_not_matter(backbone64, images, method):
    model = randomize(model_of(backbone64, method, tokens__depth=3))
    patches = backbone64.embed_patches(backbone64.normalize(images))
    new = model.classes(("owl", "dog", "sea"))
    whole = model.predict(patches, None, new)
    assert whole.shape == (5, 3)
    parts = torch.cat([model.predict(patches[:2], None, new), model.predict(patches[2:], None, new)])
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("vpt", {"tokens__depth": 4}, "model.tokens.depth: the image tower of small has 3 blocks, got 4"),
        ("maple", {"tokens__depth": 4}, "tower of small has 3 blocks, got 4. Fix: at most 3"),
        ("maple", {"text__length": 5, "tokens__depth": 1}, "model.text.length: 'a photo of a' has 4 tokens"),
    ],
)
def test_what_a_backbone_cannot_do_is_refused(backbone, method, values, message):
    with pytest.raises(UserError, match=message):
        model_of(backbone, method, **values)

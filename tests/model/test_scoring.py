"""The two-pass step equals one graph: loss and gradients, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ammpl.model.ammpl import AMMPL
from ammpl.model.scoring import backward
from tests.model.conftest import NAMES
from tests.model.test_ammpl import CLOSE, SEEDS, config, inputs, randomize

LABELS = torch.tensor([0, 2, 1, 3, 2])
STEP = 7


def one_graph(model, patches, pooled, classes):
    model.zero_grad()
    loss = F.cross_entropy(model(patches, pooled, classes, STEP), LABELS)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def two_passes(model, patches, pooled, classes, **settings):
    model.zero_grad()
    draws = model.draws(len(patches), classes, STEP)
    done = backward(model, patches, pooled, classes, LABELS, draws, **settings)
    return done, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


VARIANTS = [
    {},
    {"padding__depth": 3},
    {"padding__depth": 0},
    {"padding__content": "noise", "padding__depth": 2, "interaction__direction": "none"},
    {"padding__content": "learned", "interaction__direction": "image_to_text"},
    {"interaction__direction": "text_to_image"},
    {"interaction__image_source": "pooled"},
    {"mask__estimator": "relaxed"},
    {"mask__parameterization": "clamp"},
    {"mask__kind": "binary", "mask__initial_probability": 0.5},
    {"mask__kind": "random"},
    {"text__context": "class"},
    {"text__context": "fixed", "interaction__direction": "text_to_image"},
    {"mask__scope": "text", "padding__depth": 2},
    {
        "mask__scope": "text",
        "mask__kind": "binary",
        "mask__initial_probability": 0.5,
        "interaction__direction": "image_to_text",
    },
    {"mask__scope": "text", "interaction__direction": "none", "mask__parameterization": "clamp"},
]


@pytest.mark.parametrize("values", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, 20, 99])
def test_two_passes_equal_one_graph(values, chunk, backbone64, images):
    model = randomize(AMMPL(config(**values), backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    loss, expected = one_graph(model, *arguments)
    done, found = two_passes(model, *arguments, chunk=chunk)
    torch.testing.assert_close(done.loss, loss)
    assert (done.skipped, done.skipped_gradient) == (0, 0)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **CLOSE)
        assert gradient.abs().max() > 0, name


def masked_by_candidates(model, patches, pooled, classes):
    """Loss and gradients over the candidates and the true class, from the scores of every class."""
    zero_shot = model.backbone.encode_texts([f"a photo of a {name}." for name in classes.names])
    ranking = F.normalize(pooled, dim=-1) @ F.normalize(zero_shot, dim=-1).T
    kept = ranking.argsort(descending=True).argsort() < model.config.candidates
    kept[torch.arange(len(LABELS)), LABELS] = True
    model.zero_grad()
    logits = model(patches, pooled, classes, STEP)
    loss = F.cross_entropy(logits.masked_fill(~kept, -torch.inf), LABELS)
    loss.backward()
    return int(kept.sum()), loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("scope", ["class", "text"])
@pytest.mark.parametrize("candidates", [2, 3])
@pytest.mark.parametrize("chunk", [1, 4, 99])
def test_candidates_equal_a_softmax_over_them(scope, candidates, chunk, backbone64, images):
    """The masks' noise is that of every class, so that the same scores come out of fewer passes."""
    chosen = config(mask__scope=scope, candidates=candidates, padding__depth=2)
    model = randomize(AMMPL(chosen, backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    pairs, loss, expected = masked_by_candidates(model, *arguments)
    assert candidates * len(LABELS) < pairs < len(NAMES) * len(LABELS)  # some true classes were no candidates
    done, found = two_passes(model, *arguments, chunk=chunk)
    torch.testing.assert_close(done.loss, loss)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **CLOSE)
    done, _ = two_passes(model, *arguments, chunk=chunk, tolerance=2.0)
    assert done.skipped == pairs


@pytest.mark.parametrize("candidates", [4, 9])
def test_as_many_candidates_as_classes_are_exact(candidates, backbone64, images):
    exact = randomize(AMMPL(config(), backbone64, NAMES, SEEDS))
    model = randomize(AMMPL(config(candidates=candidates), backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    _, expected = one_graph(exact, *arguments)
    _, found = two_passes(model, *arguments, chunk=6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **CLOSE)
    assert torch.equal(model.predict(*arguments), exact.predict(*arguments))


@pytest.mark.parametrize("evaluation", ["threshold", "samples"])
def test_evaluation_scores_the_candidates_and_no_other_class(evaluation, backbone64, images):
    chosen = config(candidates=2, mask__evaluation=evaluation)
    model = randomize(AMMPL(chosen, backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    found, every = model.predict(*arguments), model.predict(*arguments, every_class=True)
    scored = found > -torch.inf
    candidates = model.candidates(*arguments[1:])
    assert scored.gather(1, candidates).all() and (scored.sum(-1) == 2).all()
    if evaluation == "threshold":
        torch.testing.assert_close(found[scored], every[scored], **CLOSE)
    else:
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(images)).double(), **CLOSE)


def test_classes_in_another_order_and_number(backbone64, images):
    """As with candidates, or a part of the classes: rows of the matrix follow the names."""
    model = randomize(AMMPL(config(), backbone64, NAMES, SEEDS))
    classes = model.classes((*NAMES[::-1], "a fifth"))
    arguments = (*inputs(model, images), classes)
    _, expected = one_graph(model, *arguments)
    _, found = two_passes(model, *arguments, chunk=4)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **CLOSE)


def test_what_is_skipped_is_small_and_told(backbone64, images):
    model = randomize(AMMPL(config(), backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    _, exact = two_passes(model, *arguments, chunk=8)
    with torch.no_grad():
        logits = model(*arguments, STEP)
    slope = (logits.softmax(-1) - F.one_hot(LABELS, len(NAMES))) / len(LABELS)
    sizes = slope.abs().flatten().sort().values
    middle = len(sizes) // 2
    tolerance = sizes[middle - 2 : middle].mean().item()  # between two values: no tie to round
    done, found = two_passes(model, *arguments, chunk=8, tolerance=tolerance)
    left_out = slope.abs()[slope.abs() < tolerance]
    assert done.skipped == len(left_out)
    assert 0.3 < done.skipped / slope.numel() < 0.7
    assert done.skipped_gradient == pytest.approx(left_out.sum().item(), rel=1e-4)
    error = sum((found[name] - exact[name]).norm() ** 2 for name in exact) ** 0.5
    size = sum(gradient.norm() ** 2 for gradient in exact.values()) ** 0.5
    assert 0 < error / size < 0.5
    done, none = two_passes(model, *arguments, chunk=8, tolerance=2.0)  # nothing is as large
    assert done.skipped == slope.numel() and not none
    assert done.skipped_gradient == pytest.approx(slope.abs().sum().item())


def test_graphs_do_not_grow_with_the_classes(backbone64, images, monkeypatch):
    """What one chunk holds is all that is held: the towers never see more rows than the chunk."""
    model = randomize(AMMPL(config(), backbone64, NAMES, SEEDS))
    arguments = (*inputs(model, images), model.classes(NAMES))
    rows = []
    honest = type(backbone64).image_features

    def counted(self, tokens, *more):
        rows.append(len(tokens))
        return honest(self, tokens, *more)

    monkeypatch.setattr(type(backbone64), "image_features", counted)
    two_passes(model, *arguments, chunk=6)
    assert max(rows) <= 6 < max(rows) + len(LABELS)  # whole classes of whole batches, where shapes are static
    assert sum(rows) == 2 * len(LABELS) * len(NAMES) - max(rows)  # the first chunk is computed once

"""Invariants and equivalences of the model (docs/method.md lists them)."""

from __future__ import annotations

import pytest
import torch

from ammpl.config import ModelConfig, SeedConfig, resolve
from ammpl.errors import UserError
from ammpl.model.ammpl import AMMPL
from tests.model import reference
from tests.model.conftest import NAMES

SEEDS = SeedConfig(data=1, init=2, noise=3)
SENTENCES = [f"a photo of a {name}." for name in NAMES]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def config(**values) -> ModelConfig:
    return resolve("ammpl", {"model." + name.replace("__", "."): value for name, value in values.items()}).model


def randomize(model: AMMPL, seed: int = 0) -> AMMPL:
    """Move every learnable away from its special start, so that all paths carry values and gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def inputs(model: AMMPL, images: torch.Tensor):
    patches = model.backbone.embed_patches(model.backbone.normalize(images))
    return patches, model.backbone.image_features(patches)


def gradients(model: AMMPL, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    model.zero_grad()
    (logits.log_softmax(-1) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, found, expected):
    """Values equal, and gradients of every learnable."""
    torch.testing.assert_close(found, expected, **CLOSE)
    found_gradients, expected_gradients = gradients(model, found), gradients(model, expected)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected_gradients[name], msg=name, **CLOSE)


@pytest.mark.parametrize("kind", ["learned", "none", "binary"])
@pytest.mark.parametrize("scope", ["class", "text", "task"])
@pytest.mark.parametrize("direction", ["both", "none"])
def test_untrained_equals_zero_shot_open_clip(backbone, images, kind, scope, direction):
    model = AMMPL(
        config(mask__kind=kind, mask__scope=scope, interaction__direction=direction, padding__depth=2),
        backbone, NAMES, SEEDS,
    )  # fmt: skip
    with torch.no_grad():
        image = backbone.clip.encode_image(backbone.normalize(images), normalize=True)
        text = backbone.clip.encode_text(backbone.tokenizer(SENTENCES), normalize=True)
        expected = backbone.clip.logit_scale.exp() * image @ text.T
    found = model.predict(*inputs(model, images), model.classes(NAMES))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_zero_shot_uses_the_template(backbone, images):
    zero_shot = resolve("zero_shot", {}).model
    model = AMMPL(zero_shot, backbone, NAMES, SEEDS, template="{} texture.")
    assert not list(model.parameters())
    with torch.no_grad():
        image = backbone.clip.encode_image(backbone.normalize(images), normalize=True)
        text = backbone.clip.encode_text(backbone.tokenizer([f"{name} texture." for name in NAMES]), normalize=True)
        expected = backbone.clip.logit_scale.exp() * image @ text.T
    found = model.predict(*inputs(model, images), model.classes(NAMES))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sentences_are_encoded_once(backbone):
    """Nothing trainable feeds them: zero-shot, and image only."""
    zero_shot = AMMPL(resolve("zero_shot", {}).model, backbone, NAMES, SEEDS)
    image_only = AMMPL(config(text__context="fixed", interaction__direction="none"), backbone, NAMES, SEEDS)
    assert zero_shot.classes(NAMES).fixed_CD is image_only.classes(NAMES).fixed_CD


def test_coop_equals_its_plain_reference(backbone64, images):
    model = randomize(AMMPL(resolve("coop", {"model.text.length": 5}).model, backbone64, NAMES, SEEDS))
    found = model(*inputs(model, images), model.classes(NAMES), step=0)
    expected = reference.coop(backbone64, backbone64.normalize(images), model.text_prompt.context, NAMES)
    assert_same(model, found, expected)
    assert set(dict(model.named_parameters())) == {"text_prompt.context"}


def test_cocoop_equals_its_plain_reference(backbone64, images):
    model = randomize(AMMPL(resolve("cocoop", {"model.interaction.width": 6}).model, backbone64, NAMES, SEEDS))
    found = model(*inputs(model, images), model.classes(NAMES), step=0)
    expected = reference.cocoop(
        backbone64, backbone64.normalize(images), model.text_prompt.context, model.image_to_text, NAMES
    )
    assert_same(model, found, expected)


@pytest.mark.parametrize(
    ("method", "interaction"),
    [
        ("coop", {"interaction__direction": "none"}),
        ("cocoop", {"interaction__direction": "image_to_text", "interaction__image_source": "pooled"}),
    ],
)
def test_ammpl_without_its_image_prompt_is_the_text_method(backbone64, images, method, interaction):
    ammpl = AMMPL(config(mask__kind="none", **interaction), backbone64, NAMES, SEEDS)
    named = AMMPL(
        resolve(method, {"model.text.init": "a photo of a", "model.interaction.width": 16}).model,
        backbone64, NAMES, SEEDS,
    )  # fmt: skip
    arguments = inputs(named, images)
    assert torch.equal(
        ammpl(*arguments, ammpl.classes(NAMES), step=1), named(*arguments, named.classes(NAMES), step=1)
    )


@pytest.mark.parametrize(
    ("scope", "direction", "depth", "estimator"),
    [
        ("class", "both", 1, "straight_through"),  # the paper's form
        ("class", "both", 3, "relaxed"),
        ("class", "image_to_text", 0, "straight_through"),
        ("class", "text_to_image", 2, "straight_through"),
        ("class", "none", 1, "relaxed"),
        ("text", "both", 2, "straight_through"),
        ("text", "image_to_text", 0, "relaxed"),
        ("text", "none", 3, "straight_through"),
    ],
)
def test_masks_of_each_class_equal_the_plain_reference(backbone64, images, scope, direction, depth, estimator):
    chosen = config(
        interaction__direction=direction, padding__depth=depth, mask__estimator=estimator, mask__temperature=0.7,
        interaction__strength=0.5, mask__scope=scope, mask__width=5,
    )  # fmt: skip
    model = randomize(AMMPL(chosen, backbone64, NAMES, SEEDS))
    images = images[:2]
    patches, pooled = inputs(model, images)
    found = model(patches, pooled, model.classes(NAMES), step=7)

    uniform = model._uniform((len(images), len(NAMES)), "mask", 7)
    prompt = model.image_prompt
    matrix = prompt.mask.matrix_GN
    paddings = prompt.padding_JGV if depth else torch.zeros(0, len(NAMES), 24, dtype=torch.float64)
    if scope == "text":
        apart = reference.names_apart(backbone64, NAMES, NAMES)
        matrix = torch.stack([matrix[0] + reference.meta_net(prompt.mask.from_name, name) for name in apart])
        if depth:
            written = [reference.meta_net(prompt.padding_from_name, name).view(depth, 24) for name in apart]
            paddings = paddings + torch.stack(written, 1)
    masks = reference.binary_concrete(matrix, uniform, 0.7, hard=estimator == "straight_through")
    expected = reference.ammpl(
        backbone64, backbone64.normalize(images), model.text_prompt.context, masks, paddings,
        model.image_to_text, model.text_to_image, NAMES,
    )  # fmt: skip
    assert_same(model, found, expected)


def test_task_scope_is_class_scope_with_equal_matrices(backbone64, images):
    task = randomize(AMMPL(config(mask__scope="task", interaction__direction="none"), backbone64, NAMES, SEEDS))
    per_class = AMMPL(config(mask__scope="class", interaction__direction="none"), backbone64, NAMES, SEEDS)
    with torch.no_grad():
        per_class.text_prompt.context.copy_(task.text_prompt.context)
        per_class.image_prompt.mask.matrix_GN.copy_(task.image_prompt.mask.matrix_GN.expand(len(NAMES), -1))
        per_class.image_prompt.padding_JGV.copy_(task.image_prompt.padding_JGV.expand(-1, len(NAMES), -1))
    arguments = inputs(task, images)
    found = task.predict(*arguments, task.classes(NAMES))
    torch.testing.assert_close(found, per_class.predict(*arguments, per_class.classes(NAMES)), **CLOSE)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_masks_that_keep_everything_share_one_pass_at_evaluation(backbone64, images, monkeypatch, depth):
    model = randomize(AMMPL(config(padding__depth=depth), backbone64, NAMES, SEEDS))
    mask_1GN = torch.ones(1, len(NAMES), backbone64.patch_count, dtype=torch.float64)
    mask_1GN[0, 1, 3:7] = 0
    patches, _ = inputs(model, images)
    paddings = model.image_prompt.paddings(torch.arange(len(NAMES)), None, None)
    expected = model.image_prompt(patches, mask_1GN, paddings)  # with a graph every class has its own pass
    passes = []
    honest = type(backbone64).image_features
    monkeypatch.setattr(
        type(backbone64), "image_features", lambda self, *more: passes.append(len(more[0])) or honest(self, *more)
    )
    with torch.no_grad():
        whole = model.image_prompt.whole(mask_1GN[0])
        torch.testing.assert_close(model.image_prompt(patches, mask_1GN, paddings, whole), expected, **CLOSE)
    assert passes == [len(images), len(images)]  # the plain images, and the one class that masks

    passes.clear()  # of single pairs the same: two of three have a mask that keeps everything
    image_R, class_R = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        whole = [True, False, True]
        found = model.image_prompt.of_pairs(patches, image_R, mask_1GN[0, class_R], paddings, class_R, whole)
    torch.testing.assert_close(found, expected[image_R, class_R], **CLOSE)
    assert passes == [len(images), 1]


@pytest.mark.parametrize("scope", ["class", "text", "task"])
def test_gradients_reach_every_learnable_once_randomized(backbone64, images, scope):
    model = randomize(AMMPL(config(mask__scope=scope, padding__depth=3), backbone64, NAMES, SEEDS))
    reached = gradients(model, model(*inputs(model, images), model.classes(NAMES), step=0))
    for name, parameter in model.named_parameters():
        assert name in reached, name
        per_row = reached[name].reshape(len(parameter), -1).abs().sum(-1)
        assert (per_row > 0).float().mean() > 0.25, name  # a ReLU may be off for some hidden units


def test_gradients_at_the_zero_start(backbone64, images):
    """W1 of N1 and N2 gets nothing while W2 is zero; paddings get nothing while every patch is kept."""
    model = AMMPL(config(mask__initial_probability=1 - 1e-12), backbone64, NAMES, SEEDS)
    reached = gradients(model, model(*inputs(model, images), model.classes(NAMES), step=0))
    assert reached["image_to_text.input_weight"].abs().max() == 0
    assert reached["text_to_image.input_weight"].abs().max() == 0
    assert reached["image_prompt.padding_JGV"].abs().max() == 0
    assert reached["image_to_text.output_weight"].abs().max() > 0
    assert reached["text_prompt.context"].abs().max() > 0


def test_the_backbone_is_no_learnable_and_never_changes(backbone, images):
    before = backbone.checksum()
    model = AMMPL(config(padding__depth=2), backbone, NAMES, SEEDS)
    learnables = dict(model.named_parameters())
    assert set(learnables) == set(model.state_dict())
    assert sum(p.numel() for p in learnables.values()) < 10_000
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(*inputs(model, images), model.classes(NAMES), step).square().sum().backward()
        optimizer.step()
    assert backbone.checksum() == before
    assert all(p.grad is None for p in backbone.clip.parameters())


@pytest.mark.parametrize("evaluation", ["threshold", "expectation", "samples"])
@pytest.mark.parametrize("kind", ["learned", "random"])
def test_evaluation_does_not_depend_on_the_batch(backbone64, images, evaluation, kind):
    model = randomize(AMMPL(config(mask__evaluation=evaluation, mask__kind=kind), backbone64, NAMES, SEEDS))
    patches, pooled = inputs(model, images)
    classes = model.classes(NAMES)
    whole = model.predict(patches, pooled, classes)
    single = torch.cat([model.predict(patches[i : i + 1], pooled[i : i + 1], classes) for i in range(len(images))])
    torch.testing.assert_close(whole, single, **CLOSE)
    assert torch.equal(whole, model.predict(patches, pooled, classes))


def test_training_noise_is_decided_by_seed_and_step_alone(backbone64, images):
    model = randomize(AMMPL(config(), backbone64, NAMES, SEEDS))
    other_seed = randomize(AMMPL(config(), backbone64, NAMES, SEEDS.model_copy(update={"noise": 4})))
    arguments = (*inputs(model, images), model.classes(NAMES))
    first = model(*arguments, step=5)
    model(*arguments, step=6)
    torch.rand(10)
    assert torch.equal(first, model(*arguments, step=5))
    assert not torch.equal(first, model(*arguments, step=6))
    assert not torch.equal(first, other_seed(*arguments, step=5))


def test_samples_average_probabilities(backbone64, images):
    model = randomize(AMMPL(config(mask__evaluation="samples", mask__samples=4), backbone64, NAMES, SEEDS))
    averaged = model.predict(*inputs(model, images), model.classes(NAMES))
    torch.testing.assert_close(averaged.exp().sum(-1), torch.ones(len(images), dtype=torch.float64), **CLOSE)


def test_a_new_class_takes_the_mean_matrix_and_padding(backbone64, images):
    model = randomize(AMMPL(config(), backbone64, NAMES[:3], SEEDS))
    logits_GN, _ = model.image_prompt.mask.logits_and_probabilities(model.classes(["dog", "cat"]).trained_C)
    torch.testing.assert_close(logits_GN[0], model.image_prompt.mask.matrix_GN.mean(0), **CLOSE)
    torch.testing.assert_close(logits_GN[1], model.image_prompt.mask.matrix_GN[0], **CLOSE)
    paddings = model.image_prompt.paddings(torch.tensor([-1]), None, None)
    torch.testing.assert_close(paddings[:, 0, 0], model.image_prompt.padding_JGV.mean(1), **CLOSE)
    arguments = inputs(model, images)
    both = model.predict(*arguments, model.classes(["dog", "cat"]))
    alone = model.predict(*arguments, model.classes(["cat"]))
    torch.testing.assert_close(both[:, 1:], alone, **CLOSE)  # a class's score does not depend on its company


def test_text_scope_writes_new_classes_masks_and_paddings_of_their_own(backbone64, images):
    model = AMMPL(config(mask__scope="text", padding__depth=2), backbone64, NAMES[:3], SEEDS)
    names = ("dog", "cat", "a fifth")  # one of them trained

    def prompts():
        classes = model.classes(names)
        p_CN, rows_C = model.probabilities(classes), model.image_prompt.rows(classes.trained_C)
        paddings = model.image_prompt.paddings(rows_C, None, None, classes.apart_CD)
        return p_CN, paddings[:, :, 0].transpose(0, 1).reshape(len(names), -1)

    for values in prompts():  # what the networks add starts at zero
        torch.testing.assert_close(values, values[:1].expand_as(values), **CLOSE)
    randomize(model)
    apart = reference.names_apart(backbone64, names, NAMES[:3])
    torch.testing.assert_close(model.classes(names).apart_CD, torch.stack(apart), **CLOSE)
    for values in prompts():
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert (values[first] - values[second]).abs().max() > 1e-3
    arguments = inputs(model, images)
    alone = model.predict(*arguments, model.classes(["cat"]))
    torch.testing.assert_close(model.predict(*arguments, model.classes(names))[:, 1:2], alone, **CLOSE)


@pytest.mark.parametrize("scope", ["class", "text"])
def test_scores_follow_the_order_of_the_classes(backbone64, images, scope):
    model = randomize(AMMPL(config(mask__scope=scope, padding__depth=2), backbone64, NAMES, SEEDS))
    order = [2, 0, 3, 1]
    arguments = inputs(model, images)
    found = model.predict(*arguments, model.classes([NAMES[index] for index in order]))
    torch.testing.assert_close(found, model.predict(*arguments, model.classes(NAMES))[:, order], **CLOSE)


def test_class_contexts_refuse_new_classes(backbone):
    model = AMMPL(config(text__context="class"), backbone, NAMES[:2], SEEDS)
    assert model.text_prompt.context.shape == (2, 4, 32)
    with pytest.raises(UserError, match=r"model.text.context: with 'class', only trained classes .* got 'dog'"):
        model.classes(["cat", "dog"])


@pytest.mark.parametrize("content", ["zero", "mean", "noise", "text", "learned"])
def test_every_padding_content_is_used(backbone64, images, content):
    chosen = config(padding__content=content, padding__depth=2, mask__kind="random", mask__keep_rate=0.5)
    model = randomize(AMMPL(chosen, backbone64, NAMES, SEEDS, mean_pixel=(0.2, 0.5, 0.7)))
    nothing = AMMPL(config(padding__depth=0, mask__kind="random", mask__keep_rate=0.5), backbone64, NAMES, SEEDS)
    nothing.load_state_dict(model.state_dict(), strict=False)
    arguments = (*inputs(model, images), model.classes(NAMES))
    assert not torch.allclose(model.predict(*arguments), nothing.predict(*arguments))
    if content == "noise":
        assert not torch.equal(model.image_prompt.filler(1), model.image_prompt.filler(2))
        assert torch.equal(model.image_prompt.filler(None), model.image_prompt.filler(None))
    elif content in ("zero", "mean"):
        assert torch.equal(model.image_prompt.filler(1), model.image_prompt.filler(2))
    else:
        assert model.image_prompt.filler(1) is None


def test_pixel_fillers_are_pictures_through_the_patch_embedding(backbone64):
    black = AMMPL(config(padding__content="zero"), backbone64, NAMES, SEEDS)
    pixels = backbone64.normalize(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    torch.testing.assert_close(black.image_prompt.filler(None), backbone64.embed_patches(pixels)[0, :1], **CLOSE)
    mean = AMMPL(config(padding__content="mean"), backbone64, NAMES, SEEDS, mean_pixel=(0.2, 0.4, 0.6))
    pixels = backbone64.normalize(
        torch.tensor([51, 102, 153], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    )
    torch.testing.assert_close(mean.image_prompt.filler(None), backbone64.embed_patches(pixels)[0, :1], **CLOSE)


def test_a_kept_image_does_not_feel_the_padding_depth(backbone64, images):
    """With every patch kept, padding of any depth changes nothing."""
    arguments = None
    found = []
    for depth in (0, 1, 3):
        model = AMMPL(config(padding__depth=depth), backbone64, NAMES, SEEDS)
        arguments = arguments or (*inputs(model, images), model.classes(NAMES))
        found.append(model.predict(*arguments))
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    torch.testing.assert_close(found[0], found[2], **CLOSE)


def test_padding_deeper_than_the_tower_is_refused(backbone):
    with pytest.raises(UserError, match=r"model.padding.depth: .* 3 blocks to pad before, got 4\. Fix: at most 3"):
        AMMPL(config(padding__depth=4), backbone, NAMES, SEEDS)


def test_a_prompt_too_long_is_refused(backbone):
    model = AMMPL(config(text__init="random", text__length=12), backbone, NAMES, SEEDS)
    with pytest.raises(UserError, match="must fit the 16 of small, got 19"):
        model.classes(NAMES)


def test_strength_zero_is_no_interaction(backbone64, images):
    model = randomize(AMMPL(config(interaction__strength=0.0), backbone64, NAMES, SEEDS))
    without = AMMPL(config(interaction__direction="none"), backbone64, NAMES, SEEDS)
    without.load_state_dict(model.state_dict(), strict=False)
    arguments = (*inputs(model, images), model.classes(NAMES))
    torch.testing.assert_close(model.predict(*arguments), without.predict(*arguments), **CLOSE)


def test_classes_of_one_name_keep_their_own_places(backbone):
    """ImageNet has "missile" and "sunglasses" twice."""
    names = ("cat", "dog", "cat")
    model = AMMPL(config(), backbone, names, SEEDS)
    assert model.classes(names).trained_C.tolist() == [0, 1, 2]
    assert model.classes(("dog", "cat", "fish")).trained_C.tolist() == [1, 0, -1]

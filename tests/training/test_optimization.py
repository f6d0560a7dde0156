from __future__ import annotations

import itertools
import math

import pytest
import torch

from ammpl.config import resolve
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import load_backbone
from ammpl.training.optimization import batches, build_optimizer, schedule, steps_per_epoch, total_steps


def training(**values):
    method = values.pop("method", "ammpl")
    return resolve(method, {f"training.{name}": value for name, value in values.items()}).training


def test_cosine_goes_from_one_to_almost_zero():
    factor = schedule(training(steps=100), images=160)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5)
    assert 0 < factor(99) < 0.001


def test_the_coop_schedule_is_the_published_one():
    """Epoch 1 at 1e-5, epoch 2 at the full rate, epoch e at lr (1 + cos(pi (e - 2) / E)) / 2; never quite zero."""
    config = training(method="coop")
    assert (config.epochs, config.batch_size) == (200, 32)
    factor, length = schedule(config, images=160), steps_per_epoch(160, 32)
    assert length == 5
    rates = [config.learning_rate * factor(step) for step in range(total_steps(config, 160))]
    assert len(rates) == 1000
    assert rates[:5] == pytest.approx([1e-5] * 5)
    assert rates[5:10] == [0.002] * 5
    expected = 0.002 * (1 + math.cos(math.pi * (200 - 2) / 200)) / 2
    assert rates[-5:] == pytest.approx([expected] * 5)
    assert expected > 0


@pytest.mark.parametrize(("images", "size", "expected"), [(160, 16, 10), (10, 32, 1), (47, 32, 1), (64, 32, 2)])
def test_the_last_partial_batch_is_dropped_unless_it_is_the_only_one(images, size, expected):
    assert steps_per_epoch(images, size) == expected


@pytest.mark.parametrize("scope", ["class", "text"])
def test_what_the_mask_is_linear_in_learns_at_its_own_rate_without_decay(scope):
    values = {"model.mask.scope": scope, "training.learning_rate": 0.01, "training.mask_lr_multiplier": 25.0}
    config = resolve("ammpl", values)
    model = AMMPL(config.model, load_backbone(config.backbone), ["zero", "one"], config.seeds)
    common, mask = build_optimizer(model, config.training).param_groups
    assert (common["lr"], mask["lr"], common["weight_decay"], mask["weight_decay"]) == (0.01, 0.25, 1e-4, 0)
    prompt = model.image_prompt
    expected = [prompt.mask.matrix_GN]
    if scope == "text":
        expected += [prompt.mask.from_name.output_weight, prompt.mask.from_name.output_bias]
    assert [id(parameter) for parameter in mask["params"]] == [id(parameter) for parameter in expected]
    assert len(common["params"]) + len(mask["params"]) == len(list(model.parameters()))


def test_every_epoch_is_a_new_order_of_all_images():
    stream = batches(20, training(steps=10, batch_size=5), seed=3)
    epochs = [torch.cat(list(itertools.islice(stream, 4))).tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    again = batches(20, training(steps=10, batch_size=5), seed=3)
    assert torch.cat(list(itertools.islice(again, 4))).tolist() == epochs[0]


def test_small_sets_make_one_small_batch():
    assert len(next(batches(7, training(steps=1, batch_size=32), seed=0))) == 7


@pytest.mark.parametrize("first", [0, 1, 3, 4, 7, 12])  # mid-epoch, and where epochs of 4 begin and end
def test_the_order_can_be_entered_anywhere(first):
    config = training(steps=10, batch_size=5)
    whole = [batch.tolist() for batch in itertools.islice(batches(20, config, seed=3), 20)]
    assert [batch.tolist() for batch in itertools.islice(batches(20, config, 3, first), 20 - first)] == whole[first:]

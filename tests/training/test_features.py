"""Frozen features are computed once, as far as they fit, and batches do not change what is measured."""

from __future__ import annotations

import pytest
import torch

from ammpl.config import BackboneConfig, resolve
from ammpl.data.dataset import Split
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import load_backbone
from ammpl.training import features
from ammpl.training.evaluation import evaluate
from ammpl.training.features import chunks, patch_tokens, patches, pooled_features
from ammpl.training.run import TrainingDivergedError, _Steps

NAMES = ("zero", "one", "two")


@pytest.fixture
def split(monkeypatch):
    monkeypatch.setattr(features, "_values", type(features._values)())
    pixels = torch.randint(0, 256, (7, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split.whole(pixels, torch.arange(7) % 3, NAMES)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(BackboneConfig())


def test_tokens_and_pooled_features_are_kept(backbone, split):
    tokens = patch_tokens(backbone, split)
    torch.testing.assert_close(tokens, patches(backbone, split.pixels()))
    assert patch_tokens(backbone, split) is tokens
    pooled = pooled_features(backbone, split)
    assert pooled_features(backbone, split) is pooled
    torch.testing.assert_close(pooled, backbone.image_features(tokens))
    assert patch_tokens(backbone, split.at([1, 2])).shape[0] == 2  # another split, other tokens


def test_what_is_kept_is_bounded(backbone, split, monkeypatch):
    size = patch_tokens(backbone, split).nbytes
    monkeypatch.setattr(features, "KEPT_BYTES", 2.5 * size)
    others = [split.at(range(7)) for _ in range(3)]
    kept = [patch_tokens(backbone, other) for other in others]
    assert sum(value.nbytes for value in features._values.values()) <= 2.5 * size
    assert patch_tokens(backbone, others[2]) is kept[2]  # the last ones are there, the first one is gone
    assert patch_tokens(backbone, others[0]) is not kept[0]
    monkeypatch.setattr(features, "KEPT_BYTES", size)
    assert patch_tokens(backbone, split.at(range(7))) is None


@pytest.mark.parametrize("scope", ["class", "task"])
def test_evaluation_does_not_depend_on_batches_or_on_what_is_kept(backbone, split, monkeypatch, scope):
    model = AMMPL(resolve("ammpl", {"model.mask.scope": scope}).model, backbone, NAMES, resolve("ammpl", {}).seeds)
    with torch.no_grad():
        model.image_prompt.mask.matrix_GN.add_(3 * torch.randn(49, generator=torch.Generator().manual_seed(0)) - 3)
    expected = evaluate(model, split)
    monkeypatch.setattr(features, "CACHE_BYTES", 1)
    monkeypatch.setattr(features, "KEPT_BYTES", 1)
    assert [chunk.stop - chunk.start for chunk in chunks(backbone, 7, 3)] == [1] * 7
    assert evaluate(model, split) == pytest.approx(expected, rel=1e-5)


def test_images_at_a_time_follow_the_work_of_each(backbone):
    def size(**work):
        return (first := chunks(backbone, 10**6, **work)[0]).stop - first.start

    assert size(passes=1) == pytest.approx(10 * size(passes=10), rel=0.1)
    assert size(passes=1, texts=100) < size(passes=1)
    assert size(passes=0) == 10**6 and chunks(backbone, 0) == []


def test_a_loss_that_is_no_number_is_found_at_its_step_however_late():
    steps = _Steps()
    for loss in (1.0, 2.0, float("inf"), float("nan")):
        steps.add({"train/loss": torch.tensor(loss)})
    with pytest.raises(TrainingDivergedError, match=r"loss is inf at step 8 \(learning rate 0.8\)"):
        steps.check(10, lambda step: step / 10)
    steps = _Steps()
    steps.add({"train/loss": torch.tensor(1.0)})
    steps.check(1, float)
    steps.add({"train/loss": torch.tensor(3.0)})
    assert steps.take() == {"train/loss": 2.0}
    steps.add({"train/loss": torch.tensor(float("nan"))})
    with pytest.raises(TrainingDivergedError, match="at step 2 "):
        steps.check(3, float)

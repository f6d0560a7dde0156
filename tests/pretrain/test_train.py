from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ammpl.model import tiny_glyph
from ammpl.pretrain import __main__ as command
from ammpl.pretrain import captions
from ammpl.pretrain.evaluate import digit_pool, pool_accuracy
from ammpl.pretrain.glyphs import GlyphSet
from ammpl.pretrain.train import (
    CONTEXT_LENGTH,
    TrainSettings,
    architecture,
    contrastive_loss,
    encode_text,
    export,
    learning_rate,
    train,
)

FEW_STEPS = TrainSettings(steps=6, batch=16, warmup=2)


@pytest.fixture(scope="module")
def trained(glyphs: GlyphSet) -> tuple[object, tiny_glyph.Tokenizer, list[dict[str, float]]]:
    reports: list[dict[str, float]] = []
    model, tokenizer = train(glyphs, FEW_STEPS, lambda step, losses: reports.append(losses), report_every=2)
    return model, tokenizer, reports


def test_contrastive_loss_equals_clip_with_one_positive_each() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5)
    labels = torch.arange(5)
    clip = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    assert torch.allclose(contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), clip)


def test_contrastive_loss_is_least_when_all_positives_score_high_alike() -> None:
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    good = contrastive_loss(20.0 * positive, positive)
    assert float(good) == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert contrastive_loss(20.0 * torch.eye(3), positive) > good


def test_short_text_encoding_equals_open_clips_own() -> None:
    vocabulary = tiny_glyph.Vocabulary.from_words(captions.words(), CONTEXT_LENGTH)
    model = tiny_glyph.build(architecture(vocabulary.size)).double().eval()
    tokens = tiny_glyph.Tokenizer(vocabulary)(
        ["a photo of a seven.", "star", "a bold red letter q on a blue background"]
    )
    own = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encode_text(model, tokens), own, rtol=1e-10, atol=1e-10)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainSettings(steps=1000)
    assert learning_rate(0, settings) == pytest.approx(settings.lr / 50)
    assert learning_rate(50, settings) == pytest.approx(settings.lr)
    assert learning_rate(999, settings) < 1e-5


def test_training_is_repeatable_and_reports(
    glyphs: GlyphSet, trained: tuple[torch.nn.Module, tiny_glyph.Tokenizer, list[dict[str, float]]]
) -> None:
    model, _, reports = trained
    again, _ = train(glyphs, FEW_STEPS)
    assert len(reports) == 3
    assert all(set(losses) == {"contrastive", "concept"} for losses in reports)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_seed_changes_the_result(glyphs: GlyphSet, trained: tuple[torch.nn.Module, object, object]) -> None:
    other, _ = train(glyphs, TrainSettings(steps=1, batch=16, seed=1))
    assert not torch.equal(other.visual.proj, trained[0].visual.proj)


def test_export_can_be_loaded_and_scores_the_same(
    tmp_path: Path, trained: tuple[torch.nn.Module, tiny_glyph.Tokenizer, object]
) -> None:
    model, tokenizer, _ = trained
    export(model, tokenizer, tmp_path)
    loaded = tiny_glyph.load(tmp_path)
    images = digit_pool()[0][:8] * 2 - 1
    torch.testing.assert_close(loaded.encode_image(images), model.encode_image(images), rtol=0.02, atol=0.02)
    assert (tmp_path / "model.safetensors").stat().st_size < 4_000_000


def test_pool_is_the_first_ninety_of_each_class() -> None:
    images, labels = digit_pool()
    assert images.shape == (900, 3, 28, 28)
    assert labels.bincount().tolist() == [90] * 10
    assert images.min() >= 0
    assert images.max() <= 1
    assert not images[:, :, :2].any()
    assert not images[:, :, :, -2:].any()


def test_command_trains_saves_and_measures(tmp_path: Path, font_directory: Path) -> None:
    threads = torch.get_num_threads()
    command.main(["--fonts", str(font_directory), "--out", str(tmp_path), "--steps", "2", "--batch", "8"])
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["settings"]["steps"] == 2
    assert record["glyphs"]["fonts"] == 3
    assert set(record["zero_shot"]) == {"pool", "base", "new"}
    accuracy = pool_accuracy(tiny_glyph.load(tmp_path), tiny_glyph.Tokenizer(tiny_glyph.Vocabulary.read(tmp_path)))
    assert accuracy.as_dict() == record["zero_shot"]

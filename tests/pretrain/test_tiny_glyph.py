"""The shipped checkpoint: loads strictly, reads text as documented, reaches the accuracy on its card."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from ammpl.errors import UserError
from ammpl.model import tiny_glyph
from ammpl.pretrain.evaluate import MEAN, STD, digit_pool, pool_accuracy

TEMPLATES = ("a photo of a {}.", "a photo of the number {}.", "an image of {}", "a picture of a handwritten {}")


@pytest.fixture(scope="module")
def tokenizer() -> tiny_glyph.Tokenizer:
    return tiny_glyph.Tokenizer()


def test_model_is_small_fp32_and_in_eval_mode() -> None:
    model = tiny_glyph.load()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1.3e6 < sum(p.numel() for p in model.parameters()) < 1.6e6
    assert (tiny_glyph.ASSETS / tiny_glyph.WEIGHTS_FILE).stat().st_size < 4_000_000


def test_zero_shot_accuracy_is_what_the_card_states(tokenizer: tiny_glyph.Tokenizer) -> None:
    stated = json.loads((tiny_glyph.ASSETS / "training.json").read_text(encoding="utf-8"))["zero_shot"]
    measured = pool_accuracy(tiny_glyph.load(), tokenizer).as_dict()
    assert measured == pytest.approx(stated, abs=0.01)  # rounding may turn a few of 900 images
    assert measured["pool"] >= 0.80


def test_preprocessing_matches_pretraining() -> None:
    config = tiny_glyph.preprocess_config()
    assert (config["size"], config["mean"], config["std"]) == (28, [MEAN] * 3, [STD] * 3)
    images, _ = digit_pool()
    assert tiny_glyph.model_config()["vision_cfg"]["image_size"] == config["size"] == images.shape[-1]


def test_rows_are_clips_tokens_in_order_with_the_end_token_largest(tokenizer: tiny_glyph.Tokenizer) -> None:
    texts = [template.format("seven") for template in TEMPLATES]
    rows = tokenizer(texts)
    ids = SimpleTokenizer()(texts, context_length=24)
    assert rows.shape == ids.shape
    assert torch.equal(rows.argmax(-1), ids.argmax(-1))  # where open_clip pools the text
    back = [[tokenizer.vocabulary.bpe_ids[row - 1] for row in text if row > 0] for text in rows.tolist()]
    assert back == [[bpe_id for bpe_id in text if bpe_id > 0] for text in ids.tolist()]
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1 == tokenizer.sot_token_id + 1
    assert tiny_glyph.model_config()["text_cfg"]["vocab_size"] == tokenizer.vocab_size


def test_one_text_and_several_are_read_alike(tokenizer: tiny_glyph.Tokenizer) -> None:
    assert torch.equal(tokenizer("a photo of a seven."), tokenizer(["a photo of a seven."]))
    assert torch.equal(tokenizer("A Photo of a SEVEN."), tokenizer("a photo of a seven."))


def test_unknown_words_are_refused_by_name(tokenizer: tiny_glyph.Tokenizer) -> None:
    with pytest.raises(
        ValueError, match=r"'golden', 'retriever' in the text 'a photo of a golden retriever\.'"
    ) as caught:
        tokenizer(["a photo of a seven.", "a photo of a golden retriever."])
    assert isinstance(caught.value, UserError)
    assert "use another backbone" in str(caught.value)
    assert caught.value.words == ("golden", "retriever")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))


def test_long_texts_are_refused_and_not_cut(tokenizer: tiny_glyph.Tokenizer) -> None:
    fits = " ".join(["a"] * 22)
    assert tokenizer(fits)[0, -1] == tokenizer.eot_token_id
    with pytest.raises(ValueError, match="reads at most 24 tokens, start and end included") as caught:
        tokenizer(fits + " a")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_loading_needs_nothing_of_pretraining() -> None:
    tree = ast.parse(Path(tiny_glyph.__file__).read_text(encoding="utf-8"))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported
    assert not [module for module in imported if module and module.startswith("ammpl.pretrain")]

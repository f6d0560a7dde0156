"""The embedded backbone ``tiny-glyph``: a CLIP of 1.46 M parameters, trained on rendered glyphs, in this package.

Examples:
    >>> from ammpl.model import tiny_glyph
    >>> clip, tokenizer = tiny_glyph.load(), tiny_glyph.Tokenizer()
    >>> clip.encode_text(tokenizer(["a photo of a seven."])).shape
    torch.Size([1, 128])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from ammpl.errors import UserError

NAME = "tiny-glyph"
ASSETS = Path(__file__).resolve().parent.parent / "assets" / "tiny_glyph"

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "open_clip_config.json"
VOCABULARY_FILE = "vocabulary.json"


class UnknownWordsError(UserError, ValueError):
    """A text has words whose tokens the tower never saw in pretraining: their embeddings do not exist.

    Attributes:
        text: the text as given.
        words: its unknown words, in order, each once.
    """

    def __init__(self, text: str, words: Sequence[str]):
        self.text = text
        self.words = tuple(words)
        super().__init__(
            "backbone",
            f"{NAME} was trained on {len(Vocabulary.read().words)} words only; it has never seen "
            f"{', '.join(map(repr, self.words))} in the text {text!r}",
            fix="use another backbone, one trained on natural language: --backbone ViT-B-16 --pretrained openai",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text, self.words)


class TextTooLongError(UserError, ValueError):
    """A text has more tokens than the tower has positions."""

    def __init__(self, text: str, tokens: int, limit: int):
        self.args_given = (text, tokens, limit)
        super().__init__(
            "backbone",
            f"{NAME} reads at most {limit} tokens, start and end included; the text {text!r} has {tokens}",
            fix="shorten the prompt, or use another backbone",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args_given


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def model_config(assets: Path = ASSETS) -> dict[str, Any]:
    """Return the arguments of ``open_clip.CLIP``: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ``quick_gelu``."""
    config: dict[str, Any] = _read_json(assets / CONFIG_FILE)["model_cfg"]
    return config


def preprocess_config(assets: Path = ASSETS) -> dict[str, Any]:
    """Return how images in [0, 1] become inputs: ``size`` (pixels), ``mean`` and ``std`` (three channels each)."""
    config: dict[str, Any] = _read_json(assets / CONFIG_FILE)["preprocess_cfg"]
    return config


def build(config: dict[str, Any]) -> open_clip.CLIP:
    """Return an open_clip CLIP with fresh weights for such a config."""
    return open_clip.CLIP(**config)


def load(assets: Path = ASSETS) -> open_clip.CLIP:
    """Return the pretrained model in fp32 on the CPU, in eval mode, with gradients left on.

    Raises:
        RuntimeError: the weights do not fit the config exactly.
    """
    model = build(model_config(assets))
    weights = load_file(assets / WEIGHTS_FILE)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model.eval()


class Vocabulary:
    """Maps the BPE ids of CLIP's tokenizer to the few rows of the tower's token embedding.

    Row 0 is padding, which no text token maps to; the kept ids follow in ascending order, so that the end token,
    the largest id of CLIP's BPE, keeps the largest row: open_clip pools the text at ``argmax`` of the ids.

    Args:
        bpe_ids: ids kept, start and end token included.
        words: the words of the pretraining captions, for messages.
        context_length: positions of the text tower.
    """

    def __init__(self, bpe_ids: Sequence[int], words: Sequence[str], context_length: int):
        self.bpe_ids = tuple(sorted(set(bpe_ids)))
        self.words = tuple(words)
        self.context_length = context_length
        self.row_of = {bpe_id: row for row, bpe_id in enumerate(self.bpe_ids, start=1)}

    @classmethod
    def from_words(cls, words: Sequence[str], context_length: int) -> Vocabulary:
        """Return the smallest vocabulary that can write these words."""
        bpe = _bpe()
        ids = {bpe_id for word in words for bpe_id in bpe.encode(word)}
        return cls([*ids, bpe.sot_token_id, bpe.eot_token_id], words, context_length)

    @classmethod
    def read(cls, assets: Path = ASSETS) -> Vocabulary:
        """Return the vocabulary of the shipped tower."""
        content = _read_json(assets / VOCABULARY_FILE)
        return cls(content["bpe_ids"], content["words"], content["context_length"])

    def write(self, assets: Path) -> None:
        """Save as ``vocabulary.json`` in a folder."""
        content = {
            "tokenizer": "open_clip.tokenizer.SimpleTokenizer",
            "context_length": self.context_length,
            "padding_row": 0,
            "bpe_ids": self.bpe_ids,
            "words": self.words,
        }
        (assets / VOCABULARY_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @property
    def size(self) -> int:
        """Rows of the token embedding, padding included."""
        return len(self.bpe_ids) + 1


@cache
def _bpe() -> SimpleTokenizer:
    return SimpleTokenizer()


class Tokenizer:
    """Texts to rows of the tower's token embedding; called like open_clip's own tokenizers.

    Args:
        vocabulary: the shipped one by default.
    """

    def __init__(self, vocabulary: Vocabulary | None = None):
        self.vocabulary = vocabulary or Vocabulary.read()
        self.context_length = self.vocabulary.context_length
        self.vocab_size = self.vocabulary.size
        self.sot_token_id = self.vocabulary.row_of[_bpe().sot_token_id]
        self.eot_token_id = self.vocabulary.row_of[_bpe().eot_token_id]

    def encode(self, text: str) -> list[int]:
        """Return the rows of a text's tokens, without start, end and padding.

        Raises:
            UnknownWordsError: a token has no row.
        """
        rows = [self.vocabulary.row_of.get(bpe_id) for bpe_id in _bpe().encode(text)]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            raise UnknownWordsError(text, self.unknown_words(text))
        return known

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that the tower cannot read, each once, in their order."""
        bpe = _bpe()
        pieces = bpe.pat.findall(bpe.clean_fn(text))
        known = self.vocabulary.row_of
        return list(dict.fromkeys(p for p in pieces if any(i not in known for i in bpe.encode(p))))

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokenise.

        Args:
            texts: one text or several.
            context_length: length to pad to; the tower's own (24) by default.

        Returns:
            int64 (n, context_length): start, tokens, end, then zeros.

        Raises:
            UnknownWordsError: a text has words that the tower has never seen.
            TextTooLongError: a text does not fit; nothing is cut off silently.
        """
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        for i, text in enumerate(texts):
            rows = [self.sot_token_id, *self.encode(text), self.eot_token_id]
            if len(rows) > length:
                raise TextTooLongError(text, len(rows), length)
            tokens[i, : len(rows)] = torch.tensor(rows)
        return tokens

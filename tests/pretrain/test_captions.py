from __future__ import annotations

import random

import torch

from ammpl.model.tiny_glyph import Tokenizer, Vocabulary
from ammpl.pretrain import captions
from ammpl.pretrain.augment import Augmenter, AugmentSettings
from ammpl.pretrain.captions import CLAIMS, NO_CLAIM
from ammpl.pretrain.concepts import CONCEPTS
from ammpl.pretrain.glyphs import GlyphSet

INDEX = {concept.name: i for i, concept in enumerate(CONCEPTS)}


def claims(**values: int) -> list[int]:
    return [values.get(name, NO_CLAIM) for name in CLAIMS]


def fact_rows(glyphs: GlyphSet, n: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(glyphs), (n,), generator=generator)
    _, attributes = Augmenter(AugmentSettings(), generator)(glyphs.bitmaps[rows])
    return captions.facts(glyphs.concepts[rows], attributes)


def test_truth_needs_every_claim() -> None:
    facts = torch.tensor([claims(concept=7, ink=0, size=-1), claims(concept=7, ink=2, size=1)])
    written = torch.tensor([claims(concept=7), claims(concept=7, ink=2), claims(size=1), claims(concept=3)])
    assert captions.truth(written, facts).tolist() == [[True, False, False, False], [True, True, True, False]]


def test_every_caption_is_true_of_its_own_image(glyphs: GlyphSet) -> None:
    facts = fact_rows(glyphs)
    rng = random.Random(0)
    written = [captions.write_caption(row, rng) for row in facts.tolist()]
    truth = captions.truth(torch.tensor([caption.claims for caption in written]), facts)
    assert truth.diagonal().all()
    assert truth.float().mean() < 0.1


def test_captions_name_what_they_claim(glyphs: GlyphSet) -> None:
    rng = random.Random(1)
    for row in fact_rows(glyphs).tolist():
        caption = captions.write_caption(row, rng)
        claimed = dict(zip(CLAIMS, caption.claims, strict=True))
        if claimed["ink"] != NO_CLAIM:
            assert captions.COLOUR_NAMES[claimed["ink"]] in caption.text
        if claimed["concept"] != NO_CLAIM:
            concept = CONCEPTS[claimed["concept"]]
            number = str(claimed["concept"]) if concept.kind == "digit" else concept.name
            assert concept.name in caption.text or number in caption.text


def test_the_prompt_of_later_studies_is_frequent(glyphs: GlyphSet) -> None:
    rng = random.Random(2)
    texts = [captions.write_caption(row, rng).text for row in fact_rows(glyphs).tolist()]
    assert sum(text.startswith("a photo of a ") for text in texts) > 0.25 * len(texts)
    sevens = [INDEX["seven"] if name == "concept" else -1 for name in CLAIMS]
    assert "a photo of a seven." in {captions.write_caption(sevens, rng).text for _ in range(50)}


def test_words_cover_every_caption_within_the_context(glyphs: GlyphSet) -> None:
    tokenizer = Tokenizer(Vocabulary.from_words(captions.words(), context_length=24))
    rng = random.Random(3)
    texts = [captions.write_caption(row, rng).text for row in fact_rows(glyphs).tolist() for _ in range(10)]
    tokens = tokenizer(texts)  # raises on an unknown word or a text that is too long
    assert tokens.shape == (len(texts), 24)

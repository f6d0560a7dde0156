from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ammpl.data import distractor
from ammpl.data.dataset import Dataset, MemoryPictures
from ammpl.data.digits import open_digits
from ammpl.data.distractor import DISTRACTORS, SOURCES, meaningless_patches, open_distractor

pytestmark = pytest.mark.parametrize("name", DISTRACTORS)


def patches(pictures: MemoryPictures, kept: Tensor) -> Tensor:
    """Return the pixels of some patches, (n, patches * 16) in [0, 1]."""
    of_picture = torch.nn.functional.unfold(pictures.pixels[:, :1].double() / 255, 4, stride=4)  # (n, 16, 49)
    return of_picture[:, :, kept].flatten(1)


def lists(dataset: Dataset) -> tuple[MemoryPictures, MemoryPictures]:
    train, validation = dataset.train, dataset.validation
    assert isinstance(train, MemoryPictures) and isinstance(validation, MemoryPictures)
    return train, validation


def accuracy(dataset: Dataset, kept: Tensor) -> float:
    """Return the validation accuracy of a linear classifier that sees these patches only."""
    train, validation = lists(dataset)
    model = LogisticRegression(C=0.1, max_iter=300).fit(patches(train, kept), train.labels)
    return float(model.score(patches(validation, kept), validation.labels))


def test_only_the_digit_tells_the_label(name: str) -> None:
    dataset, meaningless = open_distractor(name), meaningless_patches(name)
    chance, count = 0.1, 400
    bound = chance + 4 * math.sqrt(chance * (1 - chance) / count)  # four standard errors: .16
    assert accuracy(dataset, meaningless) < bound
    assert accuracy(dataset, ~meaningless) > 0.8


def test_where_the_distractor_is(name: str) -> None:
    grid = meaningless_patches(name).reshape(7, 7)
    assert grid.dtype == torch.bool and grid.sum() == 14
    expected = [False] * 5 + [True] * 2
    assert grid[3].tolist() == (expected[::-1] if DISTRACTORS[name].digit == "right" else expected)


def test_the_digit_is_the_same_whatever_stands_beside_it(name: str) -> None:
    meaningless = meaningless_patches(name)
    train, _ = lists(open_distractor(name))
    digit = patches(train, ~meaningless).reshape(500, 16, 35)
    other, _ = lists(open_distractor("digits-distractor"))
    assert torch.equal(digit, patches(other, ~meaningless_patches("digits-distractor")).reshape(500, 16, 35))
    plain, _ = lists(open_digits())
    both = torch.stack([digit.mean((1, 2)), plain.pixels.double().mean((1, 2, 3))])
    assert torch.corrcoef(both)[0, 1] > 0.9  # as much ink as in the digits themselves, image by image


def test_images_differ_and_are_the_same_everywhere(name: str) -> None:
    meaningless = meaningless_patches(name)
    train, validation = lists(open_distractor(name))
    again, _ = lists(open_distractor(name))
    assert torch.equal(train.pixels, again.pixels)
    beside = torch.cat([patches(train, meaningless), patches(validation, meaningless)])
    assert len(beside.unique(dim=0)) == len(beside) == 900
    left = 0 if DISTRACTORS[name].digit == "right" else 20
    assert train.pixels[0, 0, 4:8, left : left + 8].tolist() == FIRST[DISTRACTORS[name].kind]


# Rows 4 to 7 beside the first image, written down once: a generator or resizing that changed would be noticed.
FIRST = {
    "texture": [
        [18, 82, 168, 232, 0, 0, 0, 0],
        [46, 108, 187, 245, 0, 0, 0, 0],
        [80, 138, 206, 255, 0, 0, 0, 0],
        [116, 167, 220, 255, 0, 0, 0, 0],
    ],
    "noise": [
        [115, 208, 243, 197, 254, 79, 175, 192],
        [82, 99, 216, 177, 243, 29, 147, 147],
        [142, 167, 32, 193, 9, 185, 127, 32],
        [31, 202, 244, 151, 163, 254, 203, 114],
    ],
}


def test_lists_are_those_of_the_digits(name: str) -> None:
    dataset, plain = open_distractor(name), open_digits()
    assert torch.equal(dataset.train.labels, plain.train.labels)
    assert torch.equal(dataset.validation.labels, plain.validation.labels)
    assert torch.equal(dataset.open_test().labels, plain.open_test().labels)
    assert dataset.name == name and dataset.class_names == plain.class_names


def test_the_test_list_is_drawn_when_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    side = "_noise" if DISTRACTORS[name].kind == "noise" else "_texture"
    really = getattr(distractor, side)

    def watch(*args: np.ndarray) -> np.ndarray:
        drawn.extend(args[-1].tolist())
        return really(*args)

    monkeypatch.setattr(distractor, side, watch)
    dataset = open_distractor(name)
    assert len(drawn) == 900
    assert set(range(SOURCES)) <= set(drawn[:500])  # textures come from training images
    dataset.open_test()
    assert sorted(drawn) == list(range(len(load_digits().target)))  # no image is in two lists

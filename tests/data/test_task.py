from __future__ import annotations

import random

import pytest
import torch
from sklearn.datasets import load_digits

from ammpl.config import DataConfig
from ammpl.data.dataset import MemoryPictures
from ammpl.data.digits import read_digits
from ammpl.data.home import DataHome
from ammpl.data.registry import open_dataset
from ammpl.data.task import HOLDOUTS, base_and_new, hold_out, load_task, load_test, sample_shots
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError

FORM, HOME = ImageTransform(28), DataHome()


def test_sampling_is_the_published_rule():
    """Worked out by hand: labels in order of first appearance, random.sample of each, one stream."""
    labels = [1, 0, 1, 0, 0, 1, 1, 0]
    stream = random.Random(1)
    expected = stream.sample([0, 2, 5, 6], 2) + stream.sample([1, 3, 4, 7], 2)
    assert sample_shots(torch.tensor(labels), 2, random.Random(1)) == expected
    # The literal draw for seed 1, so that a change of Python's generator would be noticed.
    assert random.Random(1).sample(range(10), 3) == [2, 1, 4]


def test_a_class_with_fewer_images_gives_all_of_them():
    assert sample_shots(torch.tensor([0, 0, 1, 0]), 3, random.Random(0))[-1] == 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_are_decided_by_their_seed(seed):
    config = DataConfig(shots=4)
    load_task.cache_clear()
    first = load_task(config, seed, FORM, HOME)
    load_task.cache_clear()
    again = load_task(config, seed, FORM, HOME)
    assert torch.equal(first.train.pixels(), again.train.pixels())
    assert not torch.equal(first.train.pixels(), load_task(config, seed + 1, FORM, HOME).train.pixels())
    assert torch.bincount(first.train.labels).tolist() == [4] * 10
    assert torch.bincount(first.validation.labels).tolist() == [4] * 10


def test_validation_follows_the_protocol_unless_asked():
    assert len(load_task(DataConfig(shots=1), 1, FORM, HOME).validation) == 10  # min(shots, 4)
    assert len(load_task(DataConfig(shots=16), 1, FORM, HOME).validation) == 40
    assert len(load_task(DataConfig(shots=16, validation_shots=39), 1, FORM, HOME).validation) == 390
    assert len(load_task(DataConfig(shots=16, validation_shots=99), 1, FORM, HOME).validation) == 400  # all there are


def test_digits_split_by_place_in_class():
    """Pool: the first 90 images of each class; the sealed test: the other 897."""
    digits = open_dataset("digits", DataHome())
    assert torch.bincount(digits.train.labels).tolist() == [50] * 10
    assert torch.bincount(digits.validation.labels).tolist() == [40] * 10
    test = digits.open_test()
    assert len(test.labels) == 897
    bunch = load_digits()
    raw, labels = read_digits()
    assert (raw == bunch.images).all() and raw.dtype == bunch.images.dtype
    target = torch.from_numpy(bunch.target)
    assert torch.equal(labels, target)
    sevens = (target == 7).nonzero()[:, 0]
    assert (test.labels == 7).sum() == len(sevens) - 90
    together = torch.cat([digits.train.pixels, digits.validation.pixels, test.pixels])
    assert together.shape == (1797, 3, 28, 28) and together.dtype == torch.uint8


def test_training_validation_and_test_never_share_an_image():
    digits = open_dataset("digits", DataHome())
    rows = [
        {image.numpy().tobytes() for image in pictures.pixels}
        for pictures in (digits.train, digits.validation, digits.open_test())
    ]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_half_of_one_class_is_refused(count):
    with pytest.raises(UserError, match="base and new classes are two each or more, got"):
        base_and_new(count)


def test_base_and_new_classes():
    assert base_and_new(5) == ([0, 1, 2], [3, 4])
    config = DataConfig(task="base_to_new", shots=2)
    task = load_task(config, 1, FORM, HOME)
    assert task.train.class_names == ("zero", "one", "two", "three", "four")
    # The images are those of the all-class sample with the same seed.
    everything = load_task(DataConfig(shots=2), 1, FORM, HOME).train
    assert torch.equal(task.train.pixels(), everything.of_classes([0, 1, 2, 3, 4]).pixels())
    test = {name: found.split for name, found in load_test(config, FORM, HOME).items()}
    assert test["new"].class_names == ("five", "six", "seven", "eight", "nine")
    assert sorted(test["new"].labels.unique().tolist()) == [0, 1, 2, 3, 4]
    assert len(test["base"]) + len(test["new"]) == 897


def test_images_are_resized_for_other_backbones():
    pictures = MemoryPictures(torch.zeros(2, 3, 30, 40, dtype=torch.uint8), torch.zeros(2).long(), ("a",))
    assert pictures.open(ImageTransform(16)).pixels().shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "digit"}, "data.name: unknown data set or folder, got 'digit'. Fix: did you mean 'digits'"),
        ({"shots": 51}, "data.shots: class 'zero' of digits has 50 images there, got 51. Fix: at most 50"),
    ],
)
def test_impossible_tasks_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        load_task(DataConfig(**values), 1, FORM, HOME)


def test_each_hold_out_leaves_classes_on_both_sides_and_they_differ():
    for count in (5, 6, 10, 19, 51, 199):
        seen = set()
        for holdout in range(HOLDOUTS):
            kept, held_out = hold_out(count, holdout)
            assert sorted(kept + held_out) == list(range(count))
            assert len(kept) >= 2 and len(held_out) >= max(2, count // 5)
            seen.add(tuple(held_out))
        assert len(seen) == HOLDOUTS
        assert set().union(*seen) == set(range(count))
    with pytest.raises(UserError, match=r"data.task: 'pseudo_new' needs 5 base classes or more, got 4"):
        hold_out(4, 0)


def test_pseudo_new_validation_never_touches_new_classes_and_rotates_with_the_repeat():
    seen = []
    for seed in range(1, 6):
        task = load_task(DataConfig(task="pseudo_new", shots=2), seed, FORM, HOME)
        assert task.pseudo_new is not None
        names = task.train.class_names + task.pseudo_new.class_names
        assert sorted(names) == sorted(("zero", "one", "two", "three", "four"))
        assert task.validation.class_names == task.train.class_names
        seen.append(task.pseudo_new.class_names)
        # The pictures are those of base-to-new with the same seed.
        base = load_task(DataConfig(task="base_to_new", shots=2), seed, FORM, HOME).train
        kept = base.of_classes([base.class_names.index(name) for name in task.train.class_names])
        assert torch.equal(task.train.pixels(), kept.pixels())
    assert len(set(seen)) == 5
    fixed = load_task(DataConfig(task="pseudo_new", shots=2, holdout=0), 3, FORM, HOME).pseudo_new
    assert fixed is not None and fixed.class_names == ("zero", "one")

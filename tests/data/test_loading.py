from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from ammpl.config import TrainingConfig
from ammpl.data.dataset import MemoryPictures
from ammpl.data.loading import load_batches
from ammpl.data.transform import CROP_AREA, CROP_ASPECT, Crop, ImageTransform, draw_crops
from ammpl.training.optimization import batches

FORM = ImageTransform(16)


@pytest.fixture(scope="module")
def pictures():
    pixels = torch.randint(0, 256, (24, 3, 40, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return MemoryPictures(pixels, torch.arange(24) % 4, tuple("abcd"))


def order(seed: int = 0, count: int = 7):
    config = TrainingConfig(steps=count, batch_size=8)
    return itertools.islice(batches(24, config, seed), count)


@pytest.mark.parametrize("originals", [False, True])
def test_batches_come_in_the_order_given(pictures, originals):
    split = pictures.open(FORM, originals=originals)
    loaded = list(load_batches(split, order(), seed=1))
    assert [chosen.tolist() for chosen, _ in loaded] == [chosen.tolist() for chosen in order()]
    for _, pixels in loaded:
        assert pixels.shape == (8, 3, 16, 16) and pixels.dtype == torch.uint8


def test_without_augmentation_images_are_those_of_evaluation(pictures):
    split = pictures.open(FORM)
    for chosen, pixels in load_batches(split, order(), seed=1):
        assert torch.equal(pixels, split.pixels(chosen))


def test_augmentation_depends_on_the_seed_and_the_batch_alone(pictures):
    split = pictures.open(FORM, originals=True)
    first, again, other = ([pixels for _, pixels in load_batches(split, order(), seed)] for seed in (1, 1, 2))
    state = torch.get_rng_state()
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # the process's own stream is left as it was
    # Not on the choice of pictures before: batch 3 shows the same crops of the same pictures in a shorter list.
    few = split.at(torch.arange(24).flip(0))
    turned = (23 - chosen for chosen in order())
    assert all(torch.equal(one, two) for one, (_, two) in zip(first, load_batches(few, turned, 1), strict=True))


def test_a_crop_is_what_torchvision_makes_of_it(pictures):
    split = pictures.open(FORM, originals=True)
    picture = split.images.picture(5)
    crop = Crop(3, 4, 20, 30, mirrored=True)
    plain = picture.crop((4, 3, 34, 23)).resize((16, 16), 3).transpose(0)  # bicubic, left to right
    assert np.array_equal(split.images.augmented(5, crop), np.asarray(plain).transpose(2, 0, 1))


def test_crops_are_the_draws_of_torchvisions_transform():
    """Of pictures of all shapes, those in which hardly a box fits included."""
    shapes = np.random.default_rng(0).integers(1, 900, (500, 2)).tolist()
    sizes = [(height, width) for height, width in shapes] + [(300, 2000), (900, 20), (1, 1), (20, 15)]
    crops = draw_crops(sizes, seed=3)
    torch.manual_seed(3)
    for (height, width), crop in zip(sizes, crops, strict=True):
        image = torch.empty(1, height, width, device="meta")
        expected = RandomResizedCrop.get_params(image, CROP_AREA, CROP_ASPECT)
        assert (crop.top, crop.left, crop.height, crop.width) == expected
        assert crop.mirrored == (torch.rand(1).item() < 0.5)


def test_crops_follow_the_protocols_law():
    """Half of them mirrored; inside the picture."""
    crops = draw_crops([(40, 50)] * 2000, seed=3)
    areas = [crop.height * crop.width / 2000 for crop in crops]
    assert min(areas) > 0.06 and max(areas) <= 1 and 0.4 < np.mean(areas) < 0.54
    assert all(0 <= crop.top <= 40 - crop.height and 0 <= crop.left <= 50 - crop.width for crop in crops)
    assert 900 < sum(crop.mirrored for crop in crops) < 1100


def test_a_pruned_trial_leaves_no_thread(pictures):
    loader = load_batches(pictures.open(FORM, originals=True), order(), seed=1)
    next(loader)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert workers
    loader.close()
    for thread in workers:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_picture_that_cannot_be_decoded_any_more_stops_the_trial(pictures, monkeypatch):
    split = pictures.open(FORM, originals=True)
    monkeypatch.setattr(type(split.images), "picture", lambda self, position: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(load_batches(split, order(), seed=1))

"""The device's path of training pictures, on CPU tensors and, where there is one, on a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ammpl.config import TrainingConfig
from ammpl.data import decoded
from ammpl.data.dataset import MemoryPictures, Originals, Split
from ammpl.data.decoded import DecodedPictures, decoded_pictures
from ammpl.data.loading import load_batches, made_ahead
from ammpl.data.resample import Place, fused, kernel_works, plain
from ammpl.data.transform import Crop, ImageTransform, draw_crops
from ammpl.training.optimization import batches

CPU = torch.device("cpu")
FORM = ImageTransform(48)
SIZES = [(75, 100), (100, 75), (48, 48), (20, 31), (400, 301), (60, 30), (1, 9), (211, 97)]
MEMORIES = ("device", "pinned", "none")
TOLERANCE = 2.0
"""Of 255, on average: what the device's path promises against PIL's."""


class Photographs(Originals):
    """Smooth colours with noise, of different sizes."""

    def __init__(self, transform: ImageTransform):
        super().__init__(transform)
        stream = np.random.default_rng(0)
        self.decoded: list[int] = []
        self.pixels = []
        for height, width in SIZES:
            coarse = Image.fromarray(stream.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            noisy = smooth + stream.normal(0, 20, (height, width, 1))
            self.pixels.append(noisy.clip(0, 255).astype(np.uint8))

    def __len__(self):
        return len(SIZES)

    def picture(self, position):
        self.decoded.append(position)
        return Image.fromarray(self.pixels[position])

    def size(self, position):
        return SIZES[position]


def photographs(transform: ImageTransform = FORM) -> Split:
    # Some of a list, in another order: positions of the list are not those of the split.
    whole = Split.whole(Photographs(transform), torch.arange(len(SIZES)), tuple(map(str, range(len(SIZES)))))
    return whole.at([6, 4, 1, 0, 2, 5, 7])


def order(split: Split, count: int = 5):
    return itertools.islice(batches(len(split), TrainingConfig(steps=1, batch_size=4), seed=0), count)


def of_device(split: Split, memory: str, device: torch.device = CPU) -> list[torch.Tensor]:
    begin = DecodedPictures(split, device, memory).start
    return [pixels for _, pixels in made_ahead(split, order(split), 1, 0, begin)]


def of_pil(split: Split) -> list[torch.Tensor]:
    return [pixels for _, pixels in load_batches(split, order(split), seed=1)]


def difference(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    return (torch.cat(one).cpu().float() - torch.cat(two).cpu().float()).abs().mean().item()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_views_are_those_of_pil_wherever_pictures_lie(interpolation, memory):
    split = photographs(ImageTransform(48, interpolation))
    views = of_device(split, memory)
    assert all(view.shape == (4, 3, 48, 48) and view.dtype == torch.uint8 for view in views)
    assert difference(views, of_pil(split)) < TOLERANCE / 10  # a tenth of what is promised
    other = photographs(ImageTransform(48, "bilinear" if interpolation == "bicubic" else "bicubic"))
    assert difference(views, of_pil(other)) > TOLERANCE / 10  # which tells the two interpolations apart


def test_views_are_the_same_bits_wherever_pictures_lie():
    split = photographs()
    device, pinned, none = (of_device(split, memory) for memory in MEMORIES)
    assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(device, pinned, none, strict=True))


@pytest.mark.parametrize("crop", [Crop(0, 0, 75, 100, False), Crop(20, 3, 40, 90, True), Crop(74, 99, 1, 1, True)])
def test_a_crop_at_any_edge_is_that_of_pil(crop):
    pixels = Photographs(FORM).pixels[0]
    view = plain(torch.from_numpy(pixels).flatten(), [Place(0, 100)], [crop], FORM)[0]
    expected = torch.from_numpy(FORM.augmented_pixels(Image.fromarray(pixels), crop))
    assert (view.int() - expected.int()).abs().max() <= 1


def test_each_picture_of_the_split_is_decoded_once():
    split = photographs()
    of_device(split, "device")
    assert sorted(split.images.decoded) == sorted(split.positions.tolist())


def test_a_picture_that_cannot_be_decoded_any_more_stops_the_trial(monkeypatch):
    split = photographs()
    monkeypatch.setattr(Photographs, "picture", lambda self, position: 1 / 0)
    for memory in MEMORIES:
        with pytest.raises(ZeroDivisionError):
            of_device(split, memory)


def test_pictures_lie_where_they_fit_and_the_oldest_make_room(monkeypatch):
    splits = [photographs() for _ in range(5)]
    size = DecodedPictures(splits[0], CPU, "device").nbytes
    assert size == sum(3 * SIZES[p][0] * SIZES[p][1] for p in splits[0].positions.tolist())
    free = {"device": round(2.5 * size / decoded.DEVICE_SHARE), "host": round(1.5 * size / decoded.HOST_SHARE)}
    # What is kept is no longer free.
    monkeypatch.setattr(decoded, "_free", lambda device: free["device"] - decoded._bytes_in("device"))
    monkeypatch.setattr(decoded, "_available", lambda: free["host"] - decoded._bytes_in("pinned"))
    decoded.forget()
    try:
        first, second = (decoded_pictures(split, CPU) for split in splits[:2])
        assert (first.memory, second.memory) == ("device", "device")
        assert decoded_pictures(splits[0], CPU) is first  # kept, and now used last
        assert decoded_pictures(splits[2], CPU).memory == "device"
        assert decoded_pictures(splits[0], CPU) is first and decoded_pictures(splits[1], CPU) is not second
        free["device"] = 0
        decoded.forget()
        assert decoded_pictures(splits[3], CPU).memory == "pinned"
        free["host"] = 0
        decoded.forget()
        assert decoded_pictures(splits[4], CPU).memory == "none"
    finally:
        decoded.forget()


def test_the_machines_memory_is_known():
    assert 2**20 < decoded._available() < 2**50


def test_the_kernel_equals_the_plain_form(tmp_path):
    """Triton's interpreter runs it without a GPU; the variable that asks for it is read when Triton is imported."""
    pytest.importorskip("triton")
    script = tmp_path / "compare.py"
    script.write_text(
        "from tests.data.test_decoded import *\n"
        "for interpolation in ('bicubic', 'bilinear'):\n"
        "    form = ImageTransform(12, interpolation)\n"
        "    compare(form, draw_crops(SIZES[:4], 5), CPU)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)


def compare(form: ImageTransform, crops: list[Crop], device: torch.device) -> None:
    """Hold the kernel against the plain form on the first pictures: a few values are rounded the other way."""
    kept = Photographs(form).pixels[: len(crops)]
    flat = torch.cat([torch.from_numpy(pixels).flatten() for pixels in kept]).to(device)
    ends = np.cumsum([pixels.size for pixels in kept]).tolist()
    places = [Place(start, width) for start, (_, width) in zip([0, *ends[:-1]], SIZES[: len(crops)], strict=True)]
    one, two = (make(flat, places, crops, form).int() for make in (fused, plain))
    apart = (one - two).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.05, (apart.max(), apart.float().mean())
    assert one.float().std() > 20  # there is something to compare


@pytest.mark.gpu
def test_on_a_gpu_views_are_those_of_the_cpu_path():
    device = torch.device("cuda", torch.cuda.current_device())
    split = photographs()
    loaded = list(load_batches(split, order(split), seed=1, device=device))
    assert all(pixels.device == device for _, pixels in loaded)
    assert difference([pixels for _, pixels in loaded], of_pil(split)) < TOLERANCE / 10
    first = [pixels.cpu() for _, pixels in loaded]
    for memory in MEMORIES:
        again = of_device(split, memory, device)
        assert all(torch.equal(one, two.cpu()) for one, two in zip(first, again, strict=True))
    decoded.forget()


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["device", "pinned"])
def test_on_a_gpu_nothing_waits_for_it(memory):
    device = torch.device("cuda", torch.cuda.current_device())
    split = photographs()
    kernel_works(device, FORM)  # its first call loads the kernel
    begin = DecodedPictures(split, device, memory).start
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [pixels for _, pixels in made_ahead(split, order(split), 1, 0, begin)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert difference(made, of_pil(split)) < TOLERANCE / 10


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_on_a_gpu_the_kernel_equals_the_plain_form(interpolation):
    device = torch.device("cuda", torch.cuda.current_device())
    form = ImageTransform(48, interpolation)
    assert kernel_works(device, form)
    for seed in range(4):
        compare(form, draw_crops(SIZES, seed), device)


@pytest.mark.gpu
def test_on_a_gpu_images_of_evaluation_come_there_too():
    device = torch.device("cuda", torch.cuda.current_device())
    pixels = torch.randint(0, 256, (7, 3, 48, 48), dtype=torch.uint8)
    split = MemoryPictures(pixels, torch.arange(7), tuple("abcdefg")).open(FORM)
    for chosen, loaded in load_batches(split, order(split), seed=1, device=device):
        assert loaded.device == device and torch.equal(loaded.cpu(), pixels[chosen])

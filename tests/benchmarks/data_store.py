"""What the store is worth, on photographs made here: noise smoothed to the detail of JPEG files of 500x375 pixels.

Evaluation: images a second from the store against decoding and transforming the files, one thread each. Training:
an epoch of a 16-shot task through our loader, in this process with two decoding threads, against torch's DataLoader
over ImageFolder with two workers, kept alive between epochs. Memory: private memory that four processes add by
reading all of a store of one gigabyte (Linux's Private_* in smaps_rollup).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToTensor
from torchvision.transforms.functional import InterpolationMode

from ammpl.config import TrainingConfig
from ammpl.data.listing import Item
from ammpl.data.loading import load_batches
from ammpl.data.store import Store, StoredPixels
from ammpl.data.stored import StoredPictures
from ammpl.data.transform import ImageTransform
from ammpl.training.optimization import batches
from tests.benchmarks.record import Record

SIZE = 224
CLASSES, SHOTS, BATCH = 37, 16, 32
REPEATS = 5
READERS = 4
GIGABYTE = 10**9

Pair = tuple[Callable[[], None], Callable[[], None]]


def benchmark() -> Iterator[Record]:
    """Yield the three comparisons."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = photographs(folder / "pictures", [(500, 375)] * CLASSES * SHOTS)
        yield from _evaluation(folder, paths)
        yield from _training(folder, paths)
        yield from _memory(folder, paths)


def photographs(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Write JPEG files of these (width, height), in folders by class; return their paths in it, sorted."""
    paths = []
    for number, (width, height) in enumerate(sizes):
        stream = np.random.default_rng(number)
        coarse = Image.fromarray(stream.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        fine = stream.normal(0, 12, (height, width, 1))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + fine
        path = f"{number % CLASSES:02}/{number:04}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / path, quality=90)
        paths.append(path)
    return sorted(paths)


def _interleaved(pair: Pair, repeats: int = REPEATS) -> tuple[float, float]:
    """Return the median seconds of both sides."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, taken in zip(pair, seconds, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _evaluation(folder: Path, paths: list[str]) -> Iterator[Record]:
    form = ImageTransform(SIZE)
    root = folder / "pictures"
    pixels = StoredPixels(Store(folder / "store").open("bench/test", root, paths, form), SIZE)
    steps = Compose(image_transform(SIZE, is_train=False, mean=(0, 0, 0), std=(1, 1, 1)).transforms)

    def ours() -> None:
        for start in range(0, len(paths), BATCH):
            assert pixels[start : start + BATCH].float().div_(255).shape[1:] == (3, SIZE, SIZE)

    def reference() -> None:
        for start in range(0, len(paths), BATCH):
            images = []
            for path in paths[start : start + BATCH]:
                with Image.open(root / path) as picture:
                    images.append(steps(picture.convert("RGB")))
            assert torch.stack(images).shape[1:] == (3, SIZE, SIZE)

    mine, theirs = _interleaved((ours, reference))
    count = len(paths)
    yield Record("data_store", "evaluation images, store against JPEG", count / mine, count / theirs, "images/s")


def _training(folder: Path, paths: list[str]) -> Iterator[Record]:
    root = folder / "pictures"
    items = [Item(path, int(path[:2])) for path in paths]
    names = tuple(map(str, range(CLASSES)))
    split = StoredPictures("bench/train", root, items, names, Store(folder / "store")).open(
        ImageTransform(SIZE), originals=True
    )
    config = TrainingConfig(epochs=1, steps=None, batch_size=BATCH)
    steps = len(paths) // BATCH
    order = batches(len(paths), config, seed=0)
    crop = RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC)
    loader = DataLoader(
        ImageFolder(root, Compose([crop, RandomHorizontalFlip(), ToTensor()])),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )

    def ours() -> None:
        for _, pixels in load_batches(split, itertools.islice(order, steps), seed=0):
            assert pixels.float().div_(255).shape == (BATCH, 3, SIZE, SIZE)

    def reference() -> None:
        for images, _ in loader:
            assert images.shape == (BATCH, 3, SIZE, SIZE)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    mine, theirs = _interleaved((ours, reference))
    torch.set_num_threads(threads)
    count = steps * BATCH
    yield Record(
        "data_store", "training images of a 16-shot epoch, ours against DataLoader with 2 workers", count / mine,
        count / theirs, "images/s",
    )  # fmt: skip


def _memory(folder: Path, paths: list[str]) -> Iterator[Record]:
    many = list(itertools.islice(itertools.cycle(paths), GIGABYTE // (3 * SIZE**2) + 1))
    store = Store(folder / "store")
    store.open("bench/large", folder / "pictures", many, ImageTransform(SIZE))
    (file,) = (folder / "store/bench").glob("large-*/*.arrow")
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(READERS), context.Queue()
    readers = [context.Process(target=_read_all, args=(folder, many, barrier, out)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    added = [out.get(timeout=300) for _ in readers]
    for reader in readers:
        reader.join()
    case = (
        f"private memory added by each of {READERS} processes that read a store of {file.stat().st_size / 1e9:.2f} GB"
    )
    yield Record("data_store", case, max(added) / 1e6, None, "MB")


def _read_all(folder: Path, paths: list[str], barrier: object, out: object) -> None:
    form = ImageTransform(SIZE)
    before = _private()
    pixels = StoredPixels(Store(folder / "store").open("bench/large", folder / "pictures", paths, form), SIZE)
    total = 0
    for start in range(0, len(pixels), BATCH):
        total += int(pixels[start : start + BATCH].sum())
    assert total > 0
    barrier.wait(timeout=300)  # type: ignore[attr-defined]  # all have it open at once
    out.put(_private() - before)  # type: ignore[attr-defined]


def _private() -> int:
    """Return this process's private memory in bytes."""
    lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

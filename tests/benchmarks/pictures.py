"""Training pictures a second, on photographs made here: decoded, cropped at random, resized to 224 pixels, mirrored.

The paths of :func:`ammpl.data.loading.load_batches`, batches of 32, wall time, medians of interleaved turns: the
CPU's, by PIL on two threads or as many as torch takes; and the device's, with the decoded pictures in its memory, in
pinned host memory, or decoded anew for each batch. The reference is torchvision's transforms, one picture after the
other in one thread. On a CPU the device's path runs its plain form, as tests do; no trial takes it there.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import Compose, PILToTensor, RandomHorizontalFlip, RandomResizedCrop
from torchvision.transforms.functional import InterpolationMode

from ammpl.config import TrainingConfig
from ammpl.data import decoded, resample
from ammpl.data.dataset import Originals, Split
from ammpl.data.decoded import DecodedPictures, Memory
from ammpl.data.listing import Item
from ammpl.data.loading import load_batches, made_ahead
from ammpl.data.resample import Place
from ammpl.data.store import Store
from ammpl.data.stored import StoredPictures
from ammpl.data.transform import CROP_AREA, CROP_ASPECT, ImageTransform, draw_crops
from ammpl.training.optimization import batches
from tests.benchmarks.data_store import photographs
from tests.benchmarks.record import Record

SIZE, BATCH = 224, 32
ALIKE = [(500, 375), (375, 500)] * 96
MIXED = [(320 + 97 * number % 1700, 240 + 61 * number % 1300) for number in range(64)]
SLOW, FAST = 4, 200
"""Batches a turn, of what decodes and of what does not."""
TURNS = 3
CPU = torch.device("cpu")


def benchmark(device: str | None = None) -> Iterator[Record]:
    """Yield images a second of every path, then what the parts of the device's path take."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        chosen = torch.device("cuda", torch.cuda.current_device())
    fast = FAST if chosen.type == "cuda" else SLOW
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    with tempfile.TemporaryDirectory() as scratch:
        for name, sizes in {"500x375": ALIKE, "320x240 to 2019x1539": MIXED}.items():
            yield from _paths(name, Path(scratch, f"{len(sizes)}"), sizes, chosen, fast)
    torch.set_num_threads(threads)


def _paths(name: str, folder: Path, sizes: list[tuple[int, int]], device: torch.device, fast: int) -> Iterator[Record]:
    split, paths = _split(folder, sizes)
    memories: dict[Memory, int] = {"device": fast, "pinned": fast, "none": SLOW}
    began = time.perf_counter()
    made = {memory: DecodedPictures(split, device, memory) for memory in memories}
    loading = time.perf_counter() - began

    def loaded(count: int) -> Iterator[torch.Tensor]:
        return itertools.islice(batches(len(split), TrainingConfig(steps=1, batch_size=BATCH), seed=0), count)

    def on_cpu() -> int:
        return sum(len(pixels) for _, pixels in load_batches(split, loaded(SLOW), seed=0))

    def on_device(memory: Memory) -> Callable[[], int]:
        def run() -> int:
            count = sum(len(x) for _, x in made_ahead(split, loaded(memories[memory]), 0, 0, made[memory].start))
            _finish(device)
            return count

        return run

    ways = {"reference": lambda: _reference(paths), "cpu": on_cpu} | {memory: on_device(memory) for memory in memories}
    rate = _rates(ways)
    threads = torch.get_num_threads()
    yield _record(f"{name}: CPU path, {threads} threads, against torchvision in one", rate["cpu"], rate["reference"])
    for memory, where in {"device": "in its memory", "pinned": "pinned", "none": "decoded anew"}.items():
        yield _record(f"{name}: {device.type} path, pictures {where}, against CPU path", rate[memory], rate["cpu"])
    count = sum(3 * width * height for width, height in sizes) / 1e6
    yield Record("pictures", f"{name}: decoding {count:.0f} MB, twice, with {decoded.cpus()} CPUs", loading, None, "s")
    yield from _parts(name, split, made["device"], device, fast)


def _parts(name: str, split: Split, pictures: DecodedPictures, device: torch.device, fast: int) -> Iterator[Record]:
    """Yield the draws alone, and on a GPU its kernel alone against the plain form."""
    assert isinstance(split.images, Originals)
    sizes = [split.images.size(position) for position in range(BATCH)]
    shapes = [torch.empty(1, *size, device="meta") for size in sizes]

    def draws() -> int:
        return sum(len(draw_crops(sizes, seed)) for seed in range(SLOW))

    def theirs() -> int:
        return len([RandomResizedCrop.get_params(shape, CROP_AREA, CROP_ASPECT) for shape in shapes * SLOW])

    rate = _rates({"ours": draws, "theirs": theirs})
    yield _record(f"{name}: draws of crops, against torchvision's", rate["ours"], rate["theirs"])
    if device.type != "cuda" or not resample.kernel_works(device, split.images.transform):
        return
    source, starts = pictures.flat, pictures.starts
    places = [Place(start, width) for start, (_, width) in zip(starts, sizes, strict=False)]
    crops = draw_crops(sizes, seed=0)
    form = split.images.transform

    def repeated(make: Callable[..., torch.Tensor], count: int) -> Callable[[], int]:
        def run() -> int:
            done = sum(len(make(source, places, crops, form)) for _ in range(count))
            _finish(device)
            return done

        return run

    rate = _rates({"kernel": repeated(resample.fused, fast), "plain": repeated(resample.plain, fast // 10)})
    yield _record(f"{name}: one batch's kernel, against plain tensor operations", rate["kernel"], rate["plain"])


def _split(folder: Path, sizes: list[tuple[int, int]]) -> tuple[Split, list[Path]]:
    paths = photographs(folder / "pictures", sizes)
    items = [Item(path, int(path[:2])) for path in paths]
    names = tuple(map(str, range(1 + max(item.label for item in items))))
    pictures = StoredPictures("bench/train", folder / "pictures", items, names, Store(folder / "store"))
    return pictures.open(ImageTransform(SIZE), originals=True), [folder / "pictures" / path for path in paths]


def _reference(paths: list[Path]) -> int:
    crop = RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC)
    steps, done = Compose([crop, RandomHorizontalFlip(), PILToTensor()]), 0
    for path in paths[:: len(paths) // BATCH][:BATCH]:
        with Image.open(path) as picture:
            done += len(steps(picture.convert("RGB"))[None])
    return done


def _rates(ways: Mapping[str, Callable[[], int]]) -> dict[str, float]:
    """Return each way's median pictures a second; they take turns, after one turn to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            count = run()
            if turn:
                rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(case: str, ours: float, reference: float) -> Record:
    return Record("pictures", case, ours, reference, "images/s")

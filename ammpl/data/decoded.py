"""Training pictures on a GPU: decoded once, then cropped, resized and mirrored there for each step.

The decoded pictures of a split lie in the GPU's memory where they take at most a quarter of what is free of it;
else in pinned host memory, within a quarter of what is available; else nowhere, and each batch is decoded anew. From
the host the rows of the crops are copied, asynchronously. The views are made by the same operations in all three
cases: how much memory is free decides no pixel.

All of it runs on a stream of its own, so that a batch is made while the step before it runs.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ammpl.data.dataset import Originals, Split
from ammpl.data.resample import Place, resize_crops
from ammpl.data.store import cpus
from ammpl.data.transform import Crop

DEVICE_SHARE = 1 / 4
"""Of a GPU's free memory; the rest is the step's, and of other trials on that GPU."""
HOST_SHARE = 1 / 4
"""Of the machine's available memory, which all its trials need."""

Memory = Literal["device", "pinned", "none"]


class DecodedPictures:
    """The pictures of a split that keeps originals, and training views of them on a device.

    Args:
        split: whose ``images`` are :class:`Originals`; where ``memory`` is not ``none``, all are decoded here.
        device: where views are made.
        memory: where the decoded pictures lie: on the device, in (on a GPU: pinned) host memory, or nowhere.

    Attributes:
        flat: uint8, the bytes of all decoded pictures, (height, width, 3) each; empty where they are not kept.
        starts: of each picture in it.

    Raises:
        OSError: and other errors of PIL: a picture can no longer be decoded.
    """

    def __init__(self, split: Split, device: torch.device, memory: Memory):
        assert isinstance(split.images, Originals)
        self.device, self.memory = device, memory
        self._originals, self._positions = split.images, split.positions.tolist()
        self._sizes = [split.images.size(position) for position in self._positions]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.flat = torch.empty(0, dtype=torch.uint8)
        self.starts: list[int] = []
        if memory != "none":
            self._decode_all(device if memory == "device" else torch.device("cpu"))

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.flat.nbytes

    def start(self, chosen: Tensor, crops: Sequence[Crop], threads: ThreadPoolExecutor) -> Callable[[], Tensor]:
        """Begin a batch; what is returned ends it.

        Args:
            chosen: positions in the split, int64 (B,), on the CPU.
            crops: of each.
            threads: decode, where pictures are not kept.

        Returns:
            A function that returns uint8 (B, 3, S, S), for the stream that is current when it is called.
        """
        indices = chosen.tolist()
        if self.memory == "none":
            decoding = [threads.submit(self._decoded, index) for index in indices]
            return lambda: self._handed_over(*self._views(indices, crops, decoding))
        views = self._views(indices, crops)
        return lambda: self._handed_over(*views)

    def _views(
        self, indices: list[int], crops: Sequence[Crop], decoding: Sequence[Future[Tensor]] = ()
    ) -> tuple[Tensor, torch.cuda.Event | None]:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            widths = [self._sizes[index][1] for index in indices]
            if self.memory == "device":
                source = self.flat
                places = [Place(self.starts[index], width) for index, width in zip(indices, widths, strict=True)]
            else:
                pictures = [future.result() for future in decoding] or [self._kept(index) for index in indices]
                rows = [
                    picture[3 * width * crop.top : 3 * width * (crop.top + crop.height)]
                    for picture, width, crop in zip(pictures, widths, crops, strict=True)
                ]
                starts = _starts([len(row) for row in rows])
                source = torch.empty(starts.pop(), dtype=torch.uint8, device=self.device)
                for start, row in zip(starts, rows, strict=True):
                    source[start : start + len(row)].copy_(row, non_blocking=True)
                # The rows above a crop were not copied: its picture would begin that much earlier.
                places = [
                    Place(start - 3 * width * crop.top, width)
                    for start, width, crop in zip(starts, widths, crops, strict=True)
                ]
            pixels = resize_crops(source, places, crops, self._originals.transform)
            return pixels, self._stream.record_event() if self._stream else None

    def _handed_over(self, pixels: Tensor, made: torch.cuda.Event | None) -> Tensor:
        if made is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(made)
            pixels.record_stream(current)
        return pixels

    def _decode_all(self, place: torch.device) -> None:
        self.starts = _starts([3 * height * width for height, width in self._sizes])
        self.flat = torch.empty(self.starts.pop(), dtype=torch.uint8, device=place)

        def decode(index: int) -> None:
            self._kept(index).copy_(self._decoded(index))

        with ThreadPoolExecutor(cpus(), thread_name_prefix="decode") as threads:
            for _ in threads.map(decode, range(len(self._positions))):
                pass
        if self._stream is None:
            return
        if place.type == "cpu":
            # torch's own pinned memory comes in powers of two and is never given back.
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.flat.data_ptr(), self.flat.nbytes, 0))
            weakref.finalize(self, _unpin, self.flat).atexit = False
        else:
            torch.cuda.synchronize(place)  # the copies were on the threads' streams
            self.flat.record_stream(self._stream)

    def _kept(self, index: int) -> Tensor:
        height, width = self._sizes[index]
        return self.flat[self.starts[index] :][: 3 * height * width]

    def _decoded(self, index: int) -> Tensor:
        picture = np.array(self._originals.picture(self._positions[index]))
        return torch.from_numpy(picture).flatten()


_held: OrderedDict[tuple[Split, torch.device], DecodedPictures] = OrderedDict()


def decoded_pictures(split: Split, device: torch.device) -> DecodedPictures:
    """Return the decoded pictures of a split, kept from one trial of this process to the next.

    Args:
        split: whose ``images`` are :class:`Originals`.
        device: a GPU.
    """
    key = (split, device)
    if key not in _held:
        assert isinstance(split.images, Originals)
        sizes = (split.images.size(position) for position in split.positions.tolist())
        memory = _room(sum(3 * height * width for height, width in sizes), device)
        _held[key] = DecodedPictures(split, device, memory)
    _held.move_to_end(key)
    return _held[key]


def forget() -> None:
    """Let go of all that is kept."""
    _held.clear()


def _room(size: int, device: torch.device) -> Memory:
    """Return where pictures fit; what was unused for longest makes room for them."""
    shares: dict[Memory, float] = {
        "device": DEVICE_SHARE * (_free(device) + _bytes_in("device")),
        "pinned": HOST_SHARE * (_available() + _bytes_in("pinned")),
    }
    for memory, share in shares.items():
        if size <= share:
            kept = iter([key for key, pictures in _held.items() if pictures.memory == memory])
            while size + _bytes_in(memory) > share:
                del _held[next(kept)]
            return memory
    return "none"


def _bytes_in(memory: Memory) -> int:
    return sum(pictures.nbytes for pictures in _held.values() if pictures.memory == memory)


def _free(device: torch.device) -> int:
    """Return what this process could still take of a GPU, in bytes."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _available() -> int:
    """Return what this process could still take of the machine's memory, in bytes; 0 where nothing says it."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))  # a container's
    except (OSError, ValueError):  # another system, or no limit
        pass
    return max(0, min(found, default=0))


def _unpin(flat: Tensor) -> None:
    torch.cuda.synchronize()
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(flat.data_ptr()))


def _starts(lengths: Sequence[int]) -> list[int]:
    """Return where each of some pieces begins that lie one after the other; at last, where they end."""
    return list(itertools.accumulate(lengths, initial=0))

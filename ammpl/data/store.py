"""Prepared pictures in memory-mapped Arrow files, which all trials and workers of a machine share.

A file holds the pictures of one list in its order, in one of two forms: ``pixels``, uint8 (3, S, S) each, as
evaluation shows them to one backbone; or ``originals``, the bytes of the picture files, for training with random
crops. It is named by the content it was made from (:func:`fingerprint`), written under another name, and renamed
when whole: whoever finds the file can trust it, and a build that dies leaves nothing that counts. A lock lets one
process build while the others wait. Equal content gives equal bytes.

A picture that cannot be read has a row too, with the reason in ``problem`` and nothing else: so that positions are
those of the list, and a person can be told of all of them at once. ``content`` is a digest of the file's bytes, by
which one picture in two lists is found.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import torch
import torchvision
from filelock import FileLock
from PIL import Image
from torch import Tensor

from ammpl.data.dataset import Originals, Progress
from ammpl.data.decoding import decode, remark, stand_in
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError, reason_of

FORMAT = 2
"""Counted up when files of before can no longer be read."""
ROWS = 32
"""Pictures a record batch; a build holds two batches in memory."""
LONGEST_SIDE = 50
"""Times the shorter side. Resizing the shorter side of a thread-like picture would take gigabytes."""


@dataclass(frozen=True)
class Store:
    """A folder of prepared files.

    Args:
        folder: made when first needed.
    """

    folder: Path

    def open(
        self,
        name: str,
        root: Path,
        paths: Sequence[str],
        form: ImageTransform | None,
        progress: Progress | None = None,
        *,
        published: bool = True,
    ) -> Prepared:
        """Open a list of pictures, preparing it first if it is not there in this form.

        Args:
            name: of the list, for the file's name (``oxford_pets/train``).
            root: what the paths are relative to.
            paths: of the pictures, in the list's order.
            form: the transform of the pixels; None keeps the originals.
            progress: told as pictures are prepared.
            published: how they are decoded, see :func:`ammpl.data.decoding.decode`.

        Raises:
            UserError: the store cannot be written.
        """
        form_name = "originals" if form is None else f"{form}"
        key = fingerprint(root, paths, form, published)
        # Two data roots may hold a data set of one name; each keeps its own files.
        place = self.folder / f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
        path = place / f"{form_name}.{key[:16]}.arrow"
        try:
            prepared = _opened(path, len(paths))
            if prepared is None:
                place.mkdir(parents=True, exist_ok=True)
                with FileLock(place / "lock"):
                    prepared = _opened(path, len(paths))  # another process may have been faster
                    if prepared is None:
                        _build(path, root, paths, form, progress, published)
                        prepared = _opened(path, len(paths))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            rule = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
            fix = "free some space, or name a folder elsewhere with --store or AMMPL_STORE"
            raise UserError(f"store {place}", rule, fix=fix) from None
        assert prepared is not None
        return prepared


def fingerprint(root: Path, paths: Sequence[str], form: ImageTransform | None, published: bool = True) -> str:
    """Return the SHA-256 of all that decides a file's content.

    The pictures count by path, size and time of change, not by their bytes: reading a large data set at every start
    would take minutes. A picture that is not there counts as such.
    """
    way = "as published" if published else "as meant"
    digest = hashlib.sha256(f"format {FORMAT}, {form}, {way}, Pillow {PIL.__version__}".encode())
    if form is not None:
        digest.update(f", torchvision {torchvision.__version__}".encode())
    for path in paths:
        try:
            facts = (root / path).stat()
            digest.update(os.fsencode(f"\n{path}\0{facts.st_size}\0{facts.st_mtime_ns}"))
        except OSError:
            digest.update(os.fsencode(f"\n{path}\0missing"))
    return digest.hexdigest()


class Prepared:
    """An open file of the store.

    Args:
        batches: its record batches, mapped, of ROWS pictures each but the last.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]):
        self.batches = batches

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def values(self, column: str) -> list[Any]:
        """Return one value a picture."""
        return [value for batch in self.batches for value in batch.column(column).to_pylist()]

    def notes(self, column: str) -> dict[int, str]:
        """Return the texts of ``problem`` or ``remark`` by position, where there are any."""
        if all(batch.column(column).null_count == batch.num_rows for batch in self.batches):
            return {}
        return {position: text for position, text in enumerate(self.values(column)) if text is not None}


class StoredPixels:
    """Evaluation images of a file, uint8 (3, S, S) each; nothing is copied before it is asked for.

    Args:
        prepared: a file of the form ``pixels``.
        size: S.
    """

    def __init__(self, prepared: Prepared, size: int):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
            self._batches = [
                torch.from_numpy(np.frombuffer(batch.column("pixels").buffers()[1], np.uint8)).view(-1, 3, size, size)
                for batch in prepared.batches
            ]
        self._count = len(prepared)
        self._size = size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, positions: Tensor | slice) -> Tensor:
        if isinstance(positions, slice):
            positions = torch.arange(self._count)[positions]
        chosen = positions.tolist()
        if chosen and chosen == list(range(chosen[0], chosen[0] + len(chosen))):  # an evaluation: one after the other
            first, last = chosen[0] // ROWS, chosen[-1] // ROWS
            pieces = self._batches[first : last + 1]
            start = chosen[0] - first * ROWS
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            return whole[start : start + len(chosen)]
        pixels = torch.empty(len(chosen), 3, self._size, self._size, dtype=torch.uint8)
        for place, position in enumerate(chosen):
            pixels[place] = self._batches[position // ROWS][position % ROWS]
        return pixels


class StoredOriginals(Originals):
    """Whole pictures of a file, decoded when asked for.

    Args:
        prepared: a file of the form ``originals``.
        transform: of the backbone.
        published: how they are decoded.
    """

    def __init__(self, prepared: Prepared, transform: ImageTransform, *, published: bool = True):
        super().__init__(transform)
        self._published = published
        self._encoded = [batch.column("original") for batch in prepared.batches]
        self._heights, self._widths = prepared.values("height"), prepared.values("width")

    def __len__(self) -> int:
        return len(self._heights)

    def picture(self, position: int) -> Image.Image:
        """Decode one picture, RGB."""
        buffer = self._encoded[position // ROWS][position % ROWS].as_buffer()
        return decode(io.BytesIO(buffer), published=self._published)

    def size(self, position: int) -> tuple[int, int]:
        """Return (height, width) of a picture, in pixels."""
        return self._heights[position], self._widths[position]


def _opened(path: Path, count: int) -> Prepared | None:
    """Open a file if it is there and whole."""
    if not path.exists():
        return None
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        prepared = Prepared([reader.get_batch(number) for number in range(reader.num_record_batches)])
    except (pa.ArrowInvalid, OSError):  # cut by a copy, or not ours
        return None
    return prepared if len(prepared) == count else None


def _schema(form: ImageTransform | None) -> pa.Schema:
    common = [pa.field(name, pa.string()) for name in ("problem", "remark", "content")]
    if form is not None:
        return pa.schema([pa.field("pixels", pa.binary(3 * form.size**2)), *common])
    return pa.schema(
        [
            pa.field("original", pa.large_binary()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            *common,
        ]
    )


def _build(
    path: Path,
    root: Path,
    paths: Sequence[str],
    form: ImageTransform | None,
    progress: Progress | None,
    published: bool,
) -> None:
    """Write a file; it appears whole or not at all."""
    form_name = path.name.split(".")[0]
    draft = path.with_name(f"{form_name}.partial")  # one name: what a killed build has left is written over
    schema = _schema(form)
    try:
        with draft.open("wb") as file, ThreadPoolExecutor(cpus()) as threads:
            with pa.ipc.new_file(file, schema) as writer:
                for rows in _rows(root, paths, form, published, threads):
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    if progress is not None:
                        progress(len(rows))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    for other in path.parent.glob(f"{form_name}.*.arrow"):  # made from what is no longer there
        if other != path:
            other.unlink(missing_ok=True)


def _rows(
    root: Path, paths: Sequence[str], form: ImageTransform | None, published: bool, threads: ThreadPoolExecutor
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each record batch; the next one is being made meanwhile."""

    def start(first: int) -> Iterator[dict[str, Any]]:
        return threads.map(lambda path: _row(root / path, form, published), paths[first : first + ROWS])

    ahead = start(0)
    for first in range(0, len(paths), ROWS):
        batch, ahead = ahead, start(first + ROWS)
        yield list(batch)


def _row(path: Path, form: ImageTransform | None, published: bool) -> dict[str, Any]:
    """Read one picture.

    Raises:
        UserError: the file is there and cannot be read for a reason outside of it, which may pass.
    """
    try:
        original = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _broken(form, "the file is not there")
    except IsADirectoryError:
        return _broken(form, "it is a folder")
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})", fix="mend that, then start again") from None
    if not original:
        return _broken(form, "the file is empty")
    try:
        picture = decode(io.BytesIO(original), published=published)
    except Exception as error:  # PIL raises whatever its plugins run into
        return _broken(form, _problem(original, error))
    if max(picture.size) > LONGEST_SIDE * min(picture.size):
        return _broken(form, f"{picture.width}x{picture.height} pixels: over {LONGEST_SIDE} times as long as wide")
    content = hashlib.sha256(original).hexdigest()[:32]
    row: dict[str, Any] = {"problem": None, "remark": remark(original, published=published), "content": content}
    if form is not None:
        return row | {"pixels": form.evaluation_pixels(picture).tobytes()}
    return row | {"original": original, "height": picture.height, "width": picture.width}


def _broken(form: ImageTransform | None, problem: str) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": problem, "remark": None, "content": None}
    if form is not None:
        return row | {"pixels": bytes(3 * form.size**2)}
    return row | {"original": b"", "height": 0, "width": 0}


def _problem(original: bytes, error: Exception) -> str:
    """Return why a file cannot be decoded, the same in every run."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return stand_in(original) or "it is no picture that Pillow knows"
    return f"{type(error).__name__}: {reason_of(error)}"


def cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

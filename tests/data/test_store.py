from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from ammpl.data.decoding import decode
from ammpl.data.store import ROWS, Store, StoredOriginals, StoredPixels
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError

FORM = ImageTransform(32)


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(150):  # five batches
        picture(number, 40 + number % 30, 60 - number % 17).save(folder / f"{number:03}.jpg")
    return folder


@pytest.fixture(scope="module")
def paths(root):
    return sorted(path.name for path in root.iterdir())


def drafts(folder: Path) -> list[Path]:
    """The drafts there are at this moment."""
    return [path for path in folder.rglob("*.partial") if path.exists()]


def digest(folder: Path) -> str:
    (file,) = folder.rglob("*.arrow")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "form",
    [
        ImageTransform(32),
        ImageTransform(32, "bilinear"),
        ImageTransform(24, "bicubic", "squash"),
        ImageTransform(24, "bicubic", "longest", 255),
    ],
    ids=str,
)
def test_pixels_are_those_of_open_clips_transform(form, root, paths, tmp_path):
    prepared = Store(tmp_path).open("a/test", root, paths, form)
    pixels = StoredPixels(prepared, form.size)
    plain = image_transform(
        form.size,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode=form.resize_mode,
        interpolation=form.interpolation,
        fill_color=form.fill_color,
    )
    assert len(pixels) == len(paths)
    for position in (0, 1, ROWS - 1, ROWS, len(paths) - 1):
        with Image.open(root / paths[position]) as original:
            expected = plain(original)
        assert torch.equal(pixels[torch.tensor([position])][0].float() / 255, expected)
    assert torch.equal(pixels[ROWS - 2 : ROWS + 2], pixels[torch.arange(ROWS - 2, ROWS + 2)])


def test_originals_are_the_files_own_bytes(root, paths, tmp_path):
    prepared = Store(tmp_path).open("a/train", root, paths, None)
    assert prepared.values("original") == [(root / path).read_bytes() for path in paths]
    originals = StoredOriginals(prepared, FORM)
    for position in (0, ROWS, len(paths) - 1):
        decoded = decode(root / paths[position], published=True)
        assert np.array_equal(np.asarray(originals.picture(position)), np.asarray(decoded))
        assert originals.size(position) == (decoded.height, decoded.width)


def test_a_prepared_file_is_found_again(root, paths, tmp_path):
    told: list[int] = []
    for _ in range(2):
        Store(tmp_path).open("a/test", root, paths, FORM, told.append)
    assert told == [ROWS, ROWS, ROWS, ROWS, 150 - 4 * ROWS]


def test_equal_content_gives_equal_bytes(root, paths, tmp_path):
    for folder in ("one", "two"):
        Store(tmp_path / folder).open("a/test", root, paths, FORM)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_changed_source_is_prepared_anew_and_the_old_file_removed(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(3):
        picture(number).save(root / f"{number}.png")
    store, paths = Store(tmp_path / "store"), ["0.png", "1.png", "2.png"]
    before = StoredPixels(store.open("a/test", root, paths, FORM), FORM.size)[:]
    picture(99).save(root / "1.png")
    after = StoredPixels(store.open("a/test", root, paths, FORM), FORM.size)[:]
    assert [bool(torch.equal(old, new)) for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert len(list((tmp_path / "store").rglob("*.arrow"))) == 1
    # Another backbone's pixels and the originals are files of their own, and stay.
    store.open("a/test", root, paths, ImageTransform(16))
    store.open("a/test", root, paths, None)
    assert len(list((tmp_path / "store").rglob("*.arrow"))) == 3
    # Another order, too, is another list.
    turned = StoredPixels(store.open("b/test", root, paths[::-1], FORM), FORM.size)[:]
    assert torch.equal(turned, after.flip(0))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_damaged_file_is_prepared_anew(keep, root, paths, tmp_path):
    Store(tmp_path).open("a/test", root, paths, FORM)
    (file,) = tmp_path.rglob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert len(Store(tmp_path).open("a/test", root, paths, FORM)) == len(paths)
    assert file.read_bytes() == whole


def _open_and_count(folder: Path, root: Path, paths: list[str], start: multiprocessing.Event, out) -> None:
    told: list[int] = []
    start.wait()
    prepared = Store(folder).open("a/test", root, paths, FORM, told.append)
    out.put((sum(told), int(StoredPixels(prepared, FORM.size)[:].sum())))


def test_of_ten_processes_one_prepares_and_all_read(root, paths, tmp_path):
    context = multiprocessing.get_context("fork")
    start, out = context.Event(), context.Queue()
    processes = [context.Process(target=_open_and_count, args=(tmp_path, root, paths, start, out)) for _ in range(10)]
    for process in processes:
        process.start()
    start.set()
    results = [out.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(done for done, _ in results) == [0] * 9 + [len(paths)]
    assert len({total for _, total in results}) == 1


BUILD = """
import sys
from pathlib import Path
from ammpl.data.store import Store
from ammpl.data.transform import ImageTransform
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
paths = sorted(path.name for path in root.iterdir())
print("ready", flush=True)
Store(folder).open("a/test", root, paths, ImageTransform(32), lambda done: print(done, flush=True))
print("end", flush=True)
"""


def test_killed_at_ten_random_points_the_next_run_ends_with_the_same_file(root, paths, tmp_path):
    """Each build is forked from a process that has imported everything, and killed at a drawn size of its file."""
    Store(tmp_path / "undisturbed").open("a/test", root, paths, FORM)
    expected = digest(tmp_path / "undisturbed")
    (whole,) = (tmp_path / "undisturbed").rglob("*.arrow")
    context, stream = multiprocessing.get_context("fork"), random.Random(1)
    killed = 0
    for number in range(10):
        folder, enough = tmp_path / f"{number}", stream.randrange(whole.stat().st_size)
        process = context.Process(target=Store(folder).open, args=("a/test", root, paths, FORM))
        process.start()
        with contextlib.suppress(FileNotFoundError):  # the draft became the file between two looks
            while process.is_alive() and sum(draft.stat().st_size for draft in drafts(folder)) < enough:
                pass
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        Store(folder).open("a/test", root, paths, FORM)
        assert digest(folder) == expected
        assert not drafts(folder)
    assert killed >= 5  # the others ended between two looks at the file


def test_a_build_killed_while_it_writes_leaves_nothing_that_counts(root, paths, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != str(ROWS):  # the first batch is on its way to the disk
        pass
    process.kill()
    process.wait()
    assert len(Store(tmp_path).open("a/test", root, paths, FORM)) == len(paths)


def test_a_full_disk_leaves_no_part_and_says_what_to_do(root, small_disk):
    """A megabyte, which the pixels of a few hundred pictures do not fit."""
    paths = sorted(path.name for path in root.iterdir()) * 3
    with pytest.raises(UserError, match=r"store .*: the disk is full. Fix: free some space, or name .* --store"):
        Store(small_disk).open("a/test", root, paths, FORM)
    assert not [path for path in small_disk.rglob("*") if path.suffix in (".arrow", ".partial")]


def test_a_store_that_cannot_be_written(root, paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"store .*file.*: cannot be written"):
        Store(tmp_path / "file").open("a/test", root, paths, FORM)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_files() -> dict[str, bytes]:
    """Files that PIL can turn into RGB."""
    color = picture(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "cmyk.jpg": encoded(color.convert("CMYK"), "JPEG"),
        "grey.png": encoded(color.convert("L"), "PNG"),
        "palette.gif": encoded(color.convert("P"), "GIF"),
        "palette-transparent.png": encoded(color.convert("P"), "PNG", transparency=0),
        "alpha.png": encoded(color.convert("RGBA"), "PNG"),
        "bits16.png": encoded(Image.fromarray(np.full((9, 9), 300, np.uint16)), "PNG"),
        "turned.jpg": encoded(color, "JPEG", exif=turned),
        "one-bit.png": encoded(color.convert("1"), "PNG"),
        "broken-exif.png": encoded(color, "PNG", exif=b"no tiff header"),
    }


BROKEN = {
    "empty.jpg": b"",
    "text.jpg": b"this is not a picture",
    "cut.jpg": encoded(picture(2), "JPEG")[:-200],
    "cut.png": encoded(picture(2), "PNG")[:-500],
    "thread.png": encoded(Image.new("RGB", (2, 101)), "PNG"),  # resized, it would be fifty times as long as wide
}


def test_what_pil_converts_is_converted_and_what_it_cannot_is_told(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for name, content in (odd_files() | BROKEN).items():
        (root / name).write_bytes(content)
    paths = [*odd_files(), *BROKEN, "missing.jpg"]
    for form in (FORM, None):
        prepared = Store(tmp_path / "store").open("a/test", root, paths, form)
        problems = {paths[position]: text for position, text in prepared.notes("problem").items()}
        assert problems.keys() == {*BROKEN, "missing.jpg"}
        assert problems["empty.jpg"] == "the file is empty" and problems["missing.jpg"] == "the file is not there"
        assert problems["thread.png"] == "2x101 pixels: over 50 times as long as wide"
        assert problems["text.jpg"] == "it is no picture that Pillow knows" and "truncated" in problems["cut.jpg"]
        remarks = {paths[position]: text for position, text in prepared.notes("remark").items()}
        assert remarks.keys() == {"bits16.png", "turned.jpg"}
    originals = StoredOriginals(prepared, FORM)
    for position, name in enumerate(odd_files()):
        with Image.open(root / name) as plain:
            assert np.array_equal(np.asarray(originals.picture(position)), np.asarray(plain.convert("RGB")))


def test_a_reason_that_may_pass_is_not_kept(tmp_path, monkeypatch):
    """A file that may not be read just now is no broken picture: nothing of it must be remembered."""
    picture(0).save(tmp_path / "0.png")
    honest = Path.read_bytes

    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"0.png: cannot be read \(Permission denied\). Fix: mend that"):
            Store(tmp_path / "store").open("a/test", tmp_path, ["0.png"], FORM)
    assert Path.read_bytes is honest
    prepared = Store(tmp_path / "store").open("a/test", tmp_path, ["0.png"], FORM)
    assert prepared.notes("problem") == {}


def _open_often(folder: Path, root: Path, paths: list[str], out) -> None:
    for _ in range(20):
        prepared = Store(folder).open("a/test", root, paths, FORM)
        assert len(StoredPixels(prepared, FORM.size)[:]) == len(paths)
    out.put("fine")


def test_two_lists_in_one_place_do_not_trip_each_other(root, paths, tmp_path):
    """Each build removes the other's file: two versions of a data set, alternating."""
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    lists = [paths[:3], paths[:4], paths[:5]]
    processes = [context.Process(target=_open_often, args=(tmp_path, root, chosen, out)) for chosen in lists]
    for process in processes:
        process.start()
    assert [out.get(timeout=120) for _ in processes] == ["fine"] * 3
    for process in processes:
        process.join()


def test_no_warnings_are_silenced_for_others(root, paths, tmp_path):
    before = list(warnings.filters)
    Store(tmp_path).open("a/test", root, paths, FORM)
    assert list(warnings.filters) == before


def test_paths_need_not_be_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).mkdir()
    except OSError:
        pytest.skip("a file system of UTF-8 names only")
    picture(0).save(tmp_path / name / "0.png")
    assert len(Store(tmp_path / "store").open("a/test", tmp_path / name, ["0.png"], FORM)) == 1

"""Published pictures are read as published code reads them, one's own as they are meant."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ammpl.data.decoding import ORIENTATION, decode, remark, stand_in
from ammpl.data.store import Store, StoredOriginals, StoredPixels
from ammpl.data.transform import ImageTransform

FORM = ImageTransform(8)
RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def encoded(values: np.ndarray, kind: str = "TIFF") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def read(content: bytes, *, published: bool) -> np.ndarray:
    return np.asarray(decode(io.BytesIO(content), published=published))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.rint(RAMP * 65535).astype(np.uint16), "PNG"),
        (np.rint(RAMP * 65535).astype(np.uint16), "TIFF"),
        (np.rint(RAMP * 65535).astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
    ids=["16 bits, PNG", "16 bits, TIFF", "32 bits", "float"],
)
def test_values_of_more_than_8_bits_are_scaled_in_ones_own_pictures_alone(values, kind):
    content = encoded(values, kind)
    meant = np.repeat(np.rint(RAMP * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(read(content, published=False), meant)
    with Image.open(io.BytesIO(content)) as plain:
        assert np.array_equal(read(content, published=True), np.asarray(plain.convert("RGB")))
    assert "become white" in remark(content, published=True)
    assert "scaled to 8" in remark(content, published=False)


@pytest.mark.parametrize(
    "values", [RAMP * 200, RAMP - 0.5, np.full((4, 4), np.nan), RAMP * 100_000], ids=["200", "-.5", "NaN", "100,000"]
)
def test_values_without_a_known_range_are_not_guessed(values):
    with pytest.raises(ValueError, match="0 must be black"):
        read(encoded(values.astype(np.float32)), published=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_ones_own_pictures_are_turned_upright(orientation, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "turned.png").read_bytes()
    assert np.array_equal(read(content, published=True), pixels)
    with Image.open(tmp_path / "turned.png") as file:
        upright = ImageOps.exif_transpose(file)
    assert np.array_equal(read(content, published=False), np.asarray(upright))
    assert bool(remark(content, published=False)) == (orientation != 1) == bool(remark(content, published=True))

    # So are those that the store keeps, in both of its forms and beside the others.
    store = Store(tmp_path / "store")
    for published, expected in ((True, picture), (False, upright), (True, picture)):
        originals = store.open("own/train", tmp_path, ["turned.png"], None, published=published)
        pictures = StoredOriginals(originals, FORM, published=published)
        assert pictures.size(0) == (expected.height, expected.width)
        assert np.array_equal(np.asarray(pictures.picture(0)), np.asarray(expected))
        prepared = store.open("own/test", tmp_path, ["turned.png"], FORM, published=published)
        assert np.array_equal(StoredPixels(prepared, 8)[:][0].numpy(), FORM.evaluation_pixels(expected))


def test_what_lies_where_a_picture_should_be_is_named(tmp_path):
    stand_ins = {
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "page.jpg": b"\n <!DOCTYPE HTML><html>",
        "text.jpg": b"nothing",
    }
    for name, content in stand_ins.items():
        (tmp_path / name).write_bytes(content)
    notes = Store(tmp_path / "store").open("own/test", tmp_path, list(stand_ins), FORM).notes("problem")
    assert "Git LFS pointer" in notes[0] and "web page" in notes[1]
    assert notes[2] == "it is no picture that Pillow knows"
    assert stand_in(encoded(np.zeros((2, 2), np.uint8), "PNG")) is None

"""From a picture's file to 8 bits of red, green and blue, in two ways.

Published numbers were made with Pillow's plain conversion, mistakes included: the orientation that a camera noted
(EXIF) is not applied, and values above 255 of pictures with more than 8 bits become white. Published data sets are
read like that; a person's own pictures as they are meant.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112

# Of PIL, on metadata and palettes; what cannot be read raises. Once, since filters are not kept by thread.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(file: Any, *, published: bool) -> Image.Image:
    """Open a picture file and convert it to RGB; alpha is dropped.

    Args:
        file: a path or an open file.
        published: as published code does; else upright, and more than 8 bits are scaled to 8.

    Raises:
        OSError: and other errors of PIL: it is not a picture, or not a whole one.
        ValueError: its numbers have no known range.
    """
    with Image.open(file) as picture:
        if published:
            return picture.convert("RGB")
        upright: Image.Image = picture
        with contextlib.suppress(Exception):  # what plugins run into in broken metadata, which the pixels do not need
            upright = ImageOps.exif_transpose(picture)
        return _eight_bits(upright).convert("RGB")


def remark(original: bytes, *, published: bool) -> str | None:
    """Return how a picture that can be read is read otherwise than its file, or its maker, has it."""
    with Image.open(io.BytesIO(original)) as picture:
        if picture.mode.startswith(("I", "F")):
            how = "values above 255 become white" if published else "scaled to 8"
            return f"mode {picture.mode} has more than 8 bits a channel: {how}"
        try:
            turned = picture.getexif().get(ORIENTATION, 1) not in (0, 1)
        except Exception:  # as above
            return None
    if not turned:
        return None
    return "its EXIF orientation is not applied, as in published code" if published else "turned as its EXIF says"


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture whose 16-bit or floating-point values, if it has such, are scaled to 8 bits."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    # Pillow reads 16 bits as mode I, too.
    white = 1.0 if picture.mode == "F" else 65535.0
    if not (values >= 0).all() or not (values <= white).all():  # NaN included
        rule = f"mode {picture.mode} with values from {values.min():g} to {values.max():g}"
        raise ValueError(f"{rule}; 0 must be black and {white:g} white: save it with 8 bits a channel")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def stand_in(content: bytes) -> str | None:
    """Return what lies where a file should be, of two that are common: a Git LFS pointer, a web page."""
    if content.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run git lfs pull where it came from"
    if content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, such as a login or an error: download the file again"
    return None

"""Downloads of published data sets whose own hosts offer them, into the layout that descriptions read.

What has arrived when a connection breaks stays, and the next attempt goes on from there. A file with another checksum
than the published one is removed. Archives are unpacked beside the target and what is kept of them is moved when
whole, so that a path that exists can be trusted and is left alone.

Addresses and checksums are those of torchvision's loaders; where ``md5`` is None, none is published there.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.description import Description
from ammpl.data.unpack import unpack
from ammpl.errors import UserError, did_you_mean

ByteProgress = Callable[[str, int, int | None], None]
"""Told (file, bytes that have arrived, bytes of the whole file if known)."""

TIMEOUT = 30
"""Seconds without a byte after which a host counts as gone."""
ATTEMPTS = 5
"""Connections that may break half-way before a person is asked."""
CHUNK = 1 << 20
COMMUNITY = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class Remote:
    """One file of a data set.

    Attributes:
        url: where it is.
        md5: its published checksum.
        keeps: what to keep of an archive: path in it -> path in the data set's folder. None: the file itself.
        nested: an archive in the archive, which ``keeps`` refers to.
        gigabytes: that an archive may hold, about twice what it does.
    """

    url: str
    md5: str | None
    keeps: Mapping[str, str] | None = None
    nested: str | None = None
    gigabytes: float = 1.0

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url).name

    @property
    def made(self) -> tuple[str, ...]:
        """What there is in the data set's folder when this file is dealt with."""
        return (self.name,) if self.keeps is None else tuple(self.keeps.values())


def _within(folder: str, *paths: str) -> dict[str, str]:
    return {f"{folder}/{path}": path for path in paths}


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SUN = "https://vision.princeton.edu/projects/2010/SUN"
DOWNLOADS: dict[str, tuple[Remote, ...]] = {
    "oxford_pets": (
        Remote(
            f"{_OXFORD}/pets/data/images.tar.gz",
            "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            {"images": "images"},
            gigabytes=1.6,
        ),
        Remote(
            f"{_OXFORD}/pets/data/annotations.tar.gz",
            "95a8c909bbe2e81eed6a22bccdf3f68f",
            {"annotations": "annotations"},
            gigabytes=0.2,
        ),
    ),
    "oxford_flowers": (
        Remote(
            f"{_OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", {"jpg": "jpg"}, gigabytes=0.7
        ),
        Remote(f"{_OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
    ),
    "food101": (
        Remote(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "85eeb15f3717b99a5da872d97d918f87",
            _within("food-101", "images", "meta", "license_agreement.txt", "README.txt"),
            gigabytes=11,
        ),
    ),
    "fgvc_aircraft": (
        Remote(
            f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            None,
            _within(
                "fgvc-aircraft-2013b/data",
                "images",
                "variants.txt",
                "images_variant_train.txt",
                "images_variant_val.txt",
                "images_variant_test.txt",
            ),
            gigabytes=6,
        ),
    ),
    "caltech101": (
        Remote(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "3138e1922a9193bfa496528edbbc45d0",
            {"101_ObjectCategories": "101_ObjectCategories"},
            nested="caltech-101/101_ObjectCategories.tar.gz",
            gigabytes=0.4,
        ),
    ),
    "eurosat": (
        Remote(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "c8fa014336c82ac7804f0398fcb19387",
            {"2750": "2750"},
            gigabytes=0.3,
        ),
    ),
    "dtd": (
        Remote(
            f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
            _within("dtd", "images", "imdb", "labels"),
            gigabytes=1.3,
        ),
    ),
    "sun397": (
        Remote(f"{_SUN}/SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a", {"SUN397": "SUN397"}, gigabytes=80),
        Remote(
            f"{_SUN}/download/Partitions.zip",
            None,
            {name: name for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
            gigabytes=0.2,
        ),
    ),
}
"""By registry name."""


def download(
    name: str, root: Path, progress: ByteProgress, table: Mapping[str, tuple[Remote, ...]] = DOWNLOADS
) -> str:
    """Download a data set, or what is missing of it.

    Args:
        name: a registry name.
        root: the data root.
        progress: told as bytes arrive.
        table: what to fetch for each name.

    Returns:
        What was done and what is left to do, for a person.

    Raises:
        UserError: no direct download, no connection, wrong content, or a root that cannot be written.
    """
    if name not in DESCRIPTIONS:
        raise UserError("data.name", "unknown data set", got=name, fix=did_you_mean(name, DESCRIPTIONS))
    description = DESCRIPTIONS[name]
    folder = root / description.folder
    if name not in table:
        raise UserError(description.title, f"cannot be downloaded from here. {_by_hand(description, root)}")
    if not _missing(table[name], folder):
        return f"{description.title} is there already, in {folder}{_left_to_do(description, folder)}"
    work = folder / ".download"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):  # one process fetches, the others wait and find it done
            for remote in _missing(table[name], folder):
                _bring(remote, folder, work, progress)
            shutil.rmtree(work, ignore_errors=True)
    except _NetworkError as error:
        raise UserError(description.title, f"{error}. {_by_hand(description, root)}") from error
    except OSError as error:
        rule = f"cannot be written ({error.strerror or error})"
        raise UserError(str(error.filename or folder), rule, fix="free some space, or --data-root DIR") from error
    return f"{description.title} is now in {folder}{_left_to_do(description, folder)}"


def _missing(remotes: tuple[Remote, ...], folder: Path) -> list[Remote]:
    return [remote for remote in remotes if not all((folder / path).exists() for path in remote.made)]


def _by_hand(description: Description, root: Path) -> str:
    where = f"{COMMUNITY} tells where the files are"
    return f"Expected in {root.absolute()}:\n{description.layout}\n{where}"


def _left_to_do(description: Description, folder: Path) -> str:
    """Return what no host offers without an account: the published split, and annotations that came with it."""
    split = description.split_file
    if split is None or (folder / split).exists():
        return ""
    text = f". {split} is to be had from the links in {COMMUNITY}; without it the lists come from {description.rule}"
    lacking = [file for file in description.annotations if not (folder / file).exists()]
    return f"{text}, which also needs {', '.join(lacking)}" if lacking else text


# One file ------------------------------------------------------------------------------------------------------------


def _bring(remote: Remote, folder: Path, work: Path, progress: ByteProgress) -> None:
    """Fetch a file, and leave in the data set's folder what is wanted of it."""
    file = work / remote.name
    if not file.exists():
        part = work / f"{remote.name}.part"
        _fetch(remote, part, progress)
        _check(remote, part)
        part.rename(file)
    if remote.keeps is None:
        file.rename(folder / remote.name)
        return
    unpacked = work / f"{remote.name}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    try:
        most = round(remote.gigabytes * 10**9)
        unpack(file, unpacked, most)
        kept = unpacked
        if remote.nested:
            _require(remote, unpacked, (remote.nested,))
            kept = unpacked / ".nested"
            unpack(unpacked / remote.nested, kept, most)
        _require(remote, kept, tuple(remote.keeps))
        for path, target in remote.keeps.items():
            if not (folder / target).exists():  # never over what a person has put there
                (kept / path).rename(folder / target)
    except UserError:  # the archive is no good; where the disk is full, it is, and stays for the next attempt
        file.unlink()
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    file.unlink()


def _require(remote: Remote, unpacked: Path, paths: tuple[str, ...]) -> None:
    lacking = [path for path in paths if not (unpacked / path).exists()]
    if lacking:
        raise UserError(remote.url, f"is not the archive it was: it does not hold {', '.join(lacking)}")


def _check(remote: Remote, part: Path) -> None:
    if remote.md5 is None:
        return
    with part.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != remote.md5:
        part.unlink()
        rule = f"must have the MD5 sum {remote.md5}; the file was removed"
        raise UserError(remote.url, rule, got=md5, fix="start again; if it stays so, the file there is another one")


class _NetworkError(Exception):
    """The host cannot be reached, or does not send what it should."""


def _fetch(remote: Remote, part: Path, progress: ByteProgress) -> None:
    """Complete a partial file.

    Raises:
        _NetworkError: no connection, a refusal, or too many connections that broke.
    """
    for _ in range(ATTEMPTS):
        start = part.stat().st_size if part.exists() else 0
        total, offset, chunks = _connect(remote.url, start)
        if chunks is None:  # all of it has come before
            return
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(offset)  # to nothing, if the host sends it from the start again
            file.seek(offset)
            for chunk in chunks:
                file.write(chunk)
                progress(remote.name, file.tell(), total)
            size = file.tell()
        if total is None or size == total:
            return
    raise _NetworkError(f"{remote.url}: the connection broke {ATTEMPTS} times; start again to go on from there")


def _connect(url: str, start: int) -> tuple[int | None, int, Iterator[bytes] | None]:
    """Ask for a file from a byte on.

    Returns:
        (bytes of the whole file, if known; where what comes begins; what comes, or None if nothing is left to come).
    """
    headers = {"User-Agent": "ammpl-study", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing from there on: all is here, or it is another file now
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return start, start, None
            return _connect(url, 0)
        raise _NetworkError(f"{url} cannot be downloaded (HTTP status {error.code}, {error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _NetworkError(f"{url} cannot be reached ({reason})") from error
    offset = start if response.status == 206 else 0
    if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise _NetworkError(f"{url} sends another part of the file than was asked for")
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else None
    return total, offset, _chunks(response, url, total)


def _chunks(response: http.client.HTTPResponse, url: str, total: int | None) -> Iterator[bytes]:
    """Yield what arrives. A connection that breaks ends it: the size tells, where it is known."""
    with response:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                if total is None:
                    raise _NetworkError(f"{url}: the connection broke ({error})") from error
                return
            if not chunk:
                return
            yield chunk

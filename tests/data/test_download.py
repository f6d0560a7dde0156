from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.download import ATTEMPTS, DOWNLOADS, Remote, download
from ammpl.data.unpack import unpack
from ammpl.errors import UserError

Table = dict[str, tuple[Remote, ...]]


class Host(ThreadingHTTPServer):
    """A host on this machine, with what it serves and how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cut_after: int | None = None  # bytes of a response after which the connection breaks
        self.asked: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def serve(self, name: str, content: bytes) -> Remote:
        self.files[f"/{name}"] = content
        return Remote(self.url(name), hashlib.md5(content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut_after])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Host()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def silent(file: str, have: int, total: int | None) -> None:
    pass


def tar(members: dict[str, bytes | tarfile.TarInfo], compression: str = "gz") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=f"w:{compression}") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".download.lock"
    }


# What the real archives hold, as far as descriptions read it, and something that is not kept.
PICTURE = os.urandom(3000)
ARCHIVES: dict[str, dict[str, bytes]] = {
    "images.tar.gz": {"images/a_1.jpg": PICTURE},
    "annotations.tar.gz": {"annotations/trainval.txt": b"a_1 1 1 1\n", "annotations/test.txt": b""},
    "102flowers.tgz": {"jpg/image_00001.jpg": PICTURE},
    "food-101.tar.gz": {
        "food-101/images/pie/1.jpg": PICTURE,
        "food-101/meta/classes.txt": b"pie",
        "food-101/license_agreement.txt": b"",
        "food-101/README.txt": b"",
    },
    "fgvc-aircraft-2013b.tar.gz": {
        "fgvc-aircraft-2013b/data/images/1.jpg": PICTURE,
        "fgvc-aircraft-2013b/data/variants.txt": b"707",
        "fgvc-aircraft-2013b/data/images_variant_train.txt": b"1 707",
        "fgvc-aircraft-2013b/data/images_variant_val.txt": b"",
        "fgvc-aircraft-2013b/data/images_variant_test.txt": b"",
        "fgvc-aircraft-2013b/README.md": b"",
    },
    "caltech-101.zip": {
        "caltech-101/101_ObjectCategories.tar.gz": tar({"101_ObjectCategories/ant/1.jpg": PICTURE}),
        "__MACOSX/x": b"",
    },
    "EuroSAT.zip": {"2750/Forest/1.jpg": PICTURE},
    "dtd-r1.0.1.tar.gz": {"dtd/images/banded/1.jpg": PICTURE, "dtd/imdb/imdb.mat": b"", "dtd/labels/train1.txt": b""},
    "SUN397.tar.gz": {"SUN397/a/abbey/1.jpg": PICTURE},
    "Partitions.zip": {"ClassName.txt": b"/a/abbey", "Training_01.txt": b"", "Testing_01.txt": b"", "x.txt": b""},
}


def served(host: Host, remote: Remote) -> Remote:
    """Return a real entry as this host serves it."""
    if remote.name not in ARCHIVES:
        content = b"plain file"
    else:
        content = (zipped if remote.name.endswith(".zip") else tar)(ARCHIVES[remote.name])
    local = host.serve(remote.name, content)
    return Remote(local.url, local.md5 if remote.md5 else None, remote.keeps, remote.nested)


@pytest.mark.parametrize("name", DOWNLOADS)
def test_every_data_set_ends_up_in_its_layout(host: Host, tmp_path: Path, name: str) -> None:
    table = {name: tuple(served(host, remote) for remote in DOWNLOADS[name])}
    told: list[tuple[str, int, int | None]] = []
    description = DESCRIPTIONS[name]
    folder = tmp_path / description.folder

    message = download(name, tmp_path, lambda *args: told.append(args), table)
    assert f"{description.title} is now in {folder}" in message
    assert (folder / description.images).is_dir()
    lacking = {path for path in description.annotations if not (folder / path).exists()}
    assert lacking == ({"cat_to_name.json"} if name == "oxford_flowers" else set())
    assert all(path in message for path in lacking)
    if description.split_file:
        assert description.split_file in message and "DATASETS.md" in message and description.rule in message
    assert PICTURE in tree(folder).values()
    assert not any("download" in path or "MACOSX" in path or path == "x.txt" for path in tree(folder))
    assert {file for file, have, total in told if have == total} == {remote.name for remote in table[name]}

    before, asked = tree(folder), len(host.asked)
    assert f"{description.title} is there already, in {folder}" in download(name, tmp_path, silent, table)
    assert tree(folder) == before and len(host.asked) == asked


def test_addresses_are_complete() -> None:
    assert set(DOWNLOADS) <= set(DESCRIPTIONS)
    for remotes in DOWNLOADS.values():
        for remote in remotes:
            assert re.match(r"https?://[a-z.]+/", remote.url)
            assert remote.md5 is None or re.fullmatch("[0-9a-f]{32}", remote.md5)


# Connections ---------------------------------------------------------------------------------------------------------

CONTENT = tar({f"2750/Forest/{number}.jpg": os.urandom(4000) for number in range(20)})


@pytest.fixture
def eurosat(host: Host) -> dict[str, tuple[Remote, ...]]:
    local = host.serve("EuroSAT.tar.gz", CONTENT)
    return {"eurosat": (Remote(local.url, local.md5, {"2750": "2750"}),)}


def test_an_archive_that_holds_more_than_the_data_set_has_is_refused(host: Host, tmp_path: Path) -> None:
    local = host.serve("EuroSAT.tar.gz", tar({"2750/Forest/1.jpg": bytes(100_000)}))
    table = {"eurosat": (Remote(local.url, local.md5, {"2750": "2750"}, gigabytes=5e-5),)}
    with pytest.raises(UserError, match="holds more than the 50,000 bytes allowed for it; nothing of it is kept"):
        download("eurosat", tmp_path, silent, table)
    assert not [path for path in tree(tmp_path / "eurosat") if "Forest" in path or "tar" in path]


def test_a_cut_connection_goes_on_where_it_was(host: Host, tmp_path: Path, eurosat: Table) -> None:
    host.cut_after = len(CONTENT) // 10
    with pytest.raises(UserError, match=f"the connection broke {ATTEMPTS} times; start again to go on from there"):
        download("eurosat", tmp_path, silent, eurosat)
    part = tmp_path / "eurosat" / ".download" / "EuroSAT.tar.gz.part"
    assert part.read_bytes() == CONTENT[: ATTEMPTS * host.cut_after]
    assert [asked for _, asked in host.asked][:2] == [None, f"bytes={host.cut_after}-"]

    host.cut_after, host.asked = None, []
    download("eurosat", tmp_path, silent, eurosat)
    assert [asked for _, asked in host.asked] == [f"bytes={ATTEMPTS * (len(CONTENT) // 10)}-"]
    assert len(tree(tmp_path / "eurosat")) == 20


def test_a_host_without_ranges_sends_it_all_again(host: Host, tmp_path: Path, eurosat: Table) -> None:
    host.ranges, host.cut_after = False, 5000
    with pytest.raises(UserError, match="the connection broke"):
        download("eurosat", tmp_path, silent, eurosat)
    assert (tmp_path / "eurosat" / ".download" / "EuroSAT.tar.gz.part").stat().st_size == 5000
    host.cut_after = None
    download("eurosat", tmp_path, silent, eurosat)
    assert len(tree(tmp_path / "eurosat")) == 20


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_that_is_whole_or_too_long(host: Host, tmp_path: Path, eurosat: Table, extra: bytes) -> None:
    part = tmp_path / "eurosat" / ".download" / "EuroSAT.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + extra)
    download("eurosat", tmp_path, silent, eurosat)
    assert len(tree(tmp_path / "eurosat")) == 20
    assert len(host.asked) == (2 if extra else 1)


def test_a_wrong_checksum_removes_the_file(host: Host, tmp_path: Path, eurosat: Table) -> None:
    expected, other = eurosat["eurosat"][0].md5, b"another file"
    host.files["/EuroSAT.tar.gz"] = other
    with pytest.raises(UserError) as caught:
        download("eurosat", tmp_path, silent, eurosat)
    for text in (eurosat["eurosat"][0].url, expected, hashlib.md5(other).hexdigest(), "removed"):
        assert text in str(caught.value)
    assert tree(tmp_path) == {}
    host.files["/EuroSAT.tar.gz"] = CONTENT
    download("eurosat", tmp_path, silent, eurosat)


def test_without_network_the_layout_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/images.tar.gz"
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            download("oxford_pets", tmp_path, silent, {"oxford_pets": (Remote(url, None, {"images": "images"}),)})
        assert time.monotonic() - start < 5
    assert f"OxfordPets: {url} cannot be reached" in str(caught.value)
    assert f"Expected in {tmp_path}:\n{DESCRIPTIONS['oxford_pets'].layout}" in str(caught.value)


def test_a_file_that_the_host_no_longer_has(host: Host, tmp_path: Path) -> None:
    table = {"dtd": (Remote(host.url("gone.tar.gz"), None, {"dtd/images": "images"}),)}
    with pytest.raises(UserError, match=r"gone.tar.gz cannot be downloaded \(HTTP status 404"):
        download("dtd", tmp_path, silent, table)


def test_data_sets_that_are_not_offered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ImageNet: cannot be downloaded from here. Expected in"):
        download("imagenet", tmp_path, silent)
    with pytest.raises(UserError, match=r"unknown data set, got 'eurosta'. Fix: did you mean 'eurosat'\?"):
        download("eurosta", tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_one_downloads_while_the_others_wait(host: Host, tmp_path: Path, eurosat: Table) -> None:
    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(lambda _: download("eurosat", tmp_path, silent, eurosat), range(4)))
    assert len(host.asked) == 1 and len(said) == 4
    assert len(tree(tmp_path / "eurosat")) == 20


# Disk ----------------------------------------------------------------------------------------------------------------


def test_a_root_that_cannot_be_written(host: Host, tmp_path: Path, eurosat: Table) -> None:
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(UserError, match=r"file.*: cannot be written .*--data-root DIR"):
        download("eurosat", root, silent, eurosat)
    assert host.asked == []


def test_a_full_disk_keeps_what_has_arrived(host: Host, tmp_path: Path, eurosat: Table) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # as if files could grow no further
    try:
        with pytest.raises(UserError, match=r"cannot be written \(.*\). Fix: free some space"):
            download("eurosat", tmp_path, silent, eurosat)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(tree(tmp_path)["eurosat/.download/EuroSAT.tar.gz.part"]) == 30_000
    download("eurosat", tmp_path, silent, eurosat)
    assert host.asked[-1][1] == "bytes=30000-" and len(tree(tmp_path / "eurosat")) == 20


def test_what_a_person_has_put_there_stays(host: Host, tmp_path: Path) -> None:
    table = {"sun397": tuple(served(host, remote) for remote in DOWNLOADS["sun397"])}
    own = tmp_path / "sun397" / "ClassName.txt"
    own.parent.mkdir()
    own.write_text("mine")
    download("sun397", tmp_path, silent, table)
    assert own.read_text() == "mine" and (own.parent / "Training_01.txt").exists()


def test_a_process_that_was_killed_while_unpacking(host: Host, tmp_path: Path, eurosat: Table) -> None:
    work = tmp_path / "eurosat" / ".download"
    (work / "EuroSAT.tar.gz.unpacked" / "2750" / "Forest").mkdir(parents=True)
    (work / "EuroSAT.tar.gz.unpacked" / "2750" / "Forest" / "0.jpg").write_bytes(b"half")
    (work / "EuroSAT.tar.gz").write_bytes(CONTENT)
    download("eurosat", tmp_path, silent, eurosat)
    assert len(tree(tmp_path / "eurosat")) == 20 and host.asked == []
    assert b"half" not in tree(tmp_path / "eurosat").values()


# Archives ------------------------------------------------------------------------------------------------------------


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str, target: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return written.getvalue()


EVIL: dict[str, Callable[[Path], tuple[str, bytes]]] = {
    "tar up": lambda out: ("a.tar.gz", tar({"2750/1.jpg": b"", "2750/../../../evil": b"x"})),
    "tar up first": lambda out: ("a.tar.gz", tar({"../evil": b"x"})),
    "tar absolute": lambda out: ("a.tar.gz", tar({f"{out}/evil": b"x"})),
    "tar symlink": lambda out: (
        "a.tar.gz",
        tar({"l": special("2750/link", tarfile.SYMTYPE, str(out)), "2750/link/evil": b"x"}),
    ),
    "tar hard link": lambda out: ("a.tar.gz", tar({"l": special("2750/link", tarfile.LNKTYPE, "/etc/passwd")})),
    "tar device": lambda out: ("a.tar.gz", tar({"l": special("2750/pipe", tarfile.FIFOTYPE)})),
    "zip up": lambda out: ("a.zip", zipped({"2750/1.jpg": b"", "../../evil": b"x"})),
    "zip absolute": lambda out: ("a.zip", zipped({f"{out}/evil": b"x"})),
    "zip backslash": lambda out: ("a.zip", zipped({"..\\evil": b"x"})),
    "zip drive": lambda out: ("a.zip", zipped({"C:/evil": b"x"})),
    "zip symlink": lambda out: ("a.zip", zip_link("2750/link", str(out))),
}


@pytest.mark.parametrize("kind", EVIL)
def test_archives_write_nothing_outside(host: Host, tmp_path: Path, kind: str) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    name, content = EVIL[kind](out)
    local = host.serve(name, content)
    table = {"eurosat": (Remote(local.url, local.md5, {"2750": "2750"}),)}
    with pytest.raises(UserError, match="nothing of it is kept, got"):
        download("eurosat", root, silent, table)
    assert tree(tmp_path) == {} and not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_archives_that_are_cut_short_or_none(tmp_path: Path, compression: str) -> None:
    whole = tar({"a/b.bin": os.urandom(50_000), "./c": b"c"}, compression)
    file = tmp_path / "archive.tar"
    file.write_bytes(whole)
    unpack(file, tmp_path / "whole", 1 << 30)
    assert tree(tmp_path / "whole")["c"] == b"c"
    for number, content in enumerate((whole[: len(whole) // 2], b"no archive", b"")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"archive.tar: cannot be unpacked"):
            unpack(file, tmp_path / f"{number}", 1 << 30)


def test_another_archive_than_expected(host: Host, tmp_path: Path) -> None:
    local = host.serve("a.tar.gz", tar({"other/1.jpg": b""}))
    table = {"eurosat": (Remote(local.url, local.md5, {"2750": "2750"}),)}
    with pytest.raises(UserError, match=r"a.tar.gz: is not the archive it was: it does not hold 2750"):
        download("eurosat", tmp_path, silent, table)
    assert tree(tmp_path) == {}

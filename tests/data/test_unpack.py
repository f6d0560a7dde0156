"""Archives with hostile member names, sizes and kinds: nothing is written outside the target."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ammpl.data.unpack import unpack
from ammpl.errors import UserError

KINDS = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}
MODES = {"file": 0o100644, "folder": 0o040755, "symlink": 0o120777, "pipe": 0o010644, "device": 0o020644}
PARTS = st.sampled_from(["", ".", "..", "...", "a", "b.jpg", "C:", "c:x", "\\", "..\\x", "~", " ", "é", "@OUT@"])
NAMES = st.builds(lambda start, parts: start + "/".join(parts), st.sampled_from(["", "./", "/", ".//", "././/"]),
                  st.lists(PARTS, min_size=1, max_size=6)).filter(bool)  # fmt: skip
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from(sorted(KINDS)), NAMES), min_size=1, max_size=4)
Members = list[tuple[str, str, str]]


def written(file: Path, members: Members) -> None:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as zipped:
            for name, kind, link in members:
                info = zipfile.ZipInfo(name + "/" * (kind == "folder"))
                info.external_attr = MODES.get(kind, 0o120777) << 16
                zipped.writestr(info, {"file": "x", "folder": ""}.get(kind, link))
        return
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tarred:
        for name, kind, link in members:
            header = tarfile.TarInfo(name)
            header.type = KINDS[kind]
            header.linkname = link if "link" in kind else ""
            header.size = 1 if kind == "file" else 0
            tarred.addfile(header, io.BytesIO(b"x"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", ["tar", "zip"])
@given(members=MEMBERS)
@example(members=[(".//@OUT@/evil", "file", "")])
@example(members=[("././/@OUT@/evil", "file", "")])
@example(members=[("a", "symlink", "@OUT@"), ("a/evil", "file", "")])
@example(members=[("a", "file", ""), ("a/b.jpg", "file", "")])
@example(members=[(".", "file", "")])
def test_nothing_is_written_outside(ending: str, members: Members) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder).resolve()
        archive, target, out = parent / f"a.{ending}", parent / "deep" / "er" / "target", parent / "out"
        out.mkdir()
        (out / "b.jpg").write_bytes(b"mine")
        inner = str(out).removeprefix("/")
        written(archive, [(n.replace("@OUT@", inner), k, to.replace("@OUT@", str(out))) for n, k, to in members])
        before = archive.read_bytes()
        try:
            unpack(archive, target, 1 << 20)
        except UserError as error:
            assert str(archive) in str(error)
        assert archive.read_bytes() == before and (out / "b.jpg").read_bytes() == b"mine"
        outside = {path for path in parent.rglob("*") if not path.is_relative_to(target)}
        assert outside == {archive, out, out / "b.jpg", parent / "deep", parent / "deep" / "er"}
        for path in target.rglob("*"):
            assert not path.is_symlink() and (path.is_dir() or path.read_bytes() == b"x")


ORDINARY = st.lists(st.sampled_from(["a", "b c", "é", "...", "..x", "2750", ".hidden"]), min_size=1, max_size=4)


@pytest.mark.parametrize("ending", ["tar", "zip"])
@given(start=st.sampled_from(["", "./", ".//", "././"]), parts=ORDINARY, joint=st.sampled_from(["/", "//", "/./"]))
def test_ordinary_names_unpack(ending: str, start: str, parts: list[str], joint: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive, target = Path(folder, f"a.{ending}"), Path(folder, "target")
        written(archive, [(start + parts[0], "folder", ""), (start + joint.join([*parts, "1.jpg"]), "file", "")])
        unpack(archive, target, 1 << 20)
        assert [path for path in target.rglob("*") if path.is_file()] == [target.joinpath(*parts, "1.jpg")]


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_beyond_its_limit(tmp_path: Path, ending: str) -> None:
    archive, size = tmp_path / f"bomb.{ending}", 3 << 20
    if ending == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("zeros", bytes(size))
    else:
        with tarfile.open(archive, "w:gz") as tarred:
            header = tarfile.TarInfo("zeros")
            header.size = size
            tarred.addfile(header, io.BytesIO(bytes(size)))
    unpack(archive, tmp_path / "whole", limit=size)
    assert (tmp_path / "whole" / "zeros").stat().st_size == size
    with pytest.raises(UserError, match=rf"bomb\.{ending}: holds more than the 2,097,152 bytes"):
        unpack(archive, tmp_path / "cut", limit=2 << 20)
    assert (tmp_path / "cut" / "zeros").stat().st_size <= 2 << 20

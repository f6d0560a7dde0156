from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ammpl.errors import UserError
from ammpl.study.addresses import is_remote
from ammpl.study.record.event_log import FILE
from ammpl.study.record.own_addresses import remember
from ammpl.study.status import status, watch
from ammpl.study.views import remote as module
from ammpl.study.views.mirror import Mirror, copying, known, update
from ammpl.study.views.remote import LEASE, LINK, Remote, ask_to_stop, brought_here, local_folder
from ammpl.yaml_file import dump_yaml
from tests.study.fakes import small_space


def event(name: str, key: str = "search-0000") -> str:
    fields = {"phase": "search", "repeat": 1, "params": {}, "step": 1, "metrics": {}, "state": "COMPLETE"}
    return json.dumps({"event": name, "key": key, "time": "2026-01-01T00:00:00+00:00", **fields}) + "\n"


def study(folder: Path, address: str = "", events: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(dump_yaml(small_space().resolved()))
    (folder / FILE).write_text(event("session") * events)
    if address:
        (folder / LINK).write_text(json.dumps({"address": address}))
        remember(folder, {LINK: address})  # this user's own
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_all(remote: Remote, folder: Path) -> int:
    acts = list(copying(remote, folder, known(remote, folder), ended=True))
    for act in acts:
        act()
    return len(acts)


@given(data=st.data())
def test_wherever_copying_ends_the_log_there_refers_to_files_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A trial's file is written before its event, and deleted after the event that says so, while copying goes on."""
    root = tmp_path_factory.mktemp("order")
    folder, copied = study(root / "study"), {}
    remote = Remote(f"file://{root}/copy")
    numbers = iter(range(1000))
    present: list[int] = []

    def go_on() -> None:
        for write in data.draw(st.lists(st.booleans(), max_size=3)):
            if write or not present:
                present.append(number := next(numbers))
                (folder / f"trial-{number}").write_text(str(number))
                line = event("written", str(number))
            else:
                line = event("dropped", str(number := present.pop(0)))
            with (folder / FILE).open("a") as log:
                log.write(line)
            if "dropped" in line:
                (folder / f"trial-{number}").unlink()

    for _ in range(data.draw(st.integers(1, 4))):
        for act in copying(remote, folder, copied, ended=False):
            act()
            lines = [json.loads(line) for line in (remote.read(FILE) or b"").splitlines()]
            keys = {kind: {line["key"] for line in lines if line["event"] == kind} for kind in ("written", "dropped")}
            for key in keys["written"] - keys["dropped"]:
                late = key not in map(str, present)  # dropped here, which the copy has not heard of
                assert late or remote.read(f"trial-{key}") == key.encode()
            go_on()
        go_on()
    copy_all(remote, folder)
    assert files(root / "copy") == files(folder)


def test_only_what_has_changed_is_copied_and_what_has_gone_goes(tmp_path: Path) -> None:
    folder, remote = study(tmp_path / "study"), Remote(f"file://{tmp_path}/copy")
    (folder / "a").write_text("a")
    (folder / ".draft").write_text("never")
    (folder / "learnables.partial").write_text("never")
    (folder / "optuna.sqlite3").write_text("once it has ended")
    seen: dict[str, tuple[int, int]] = {}
    for act in copying(remote, folder, seen, ended=False):
        act()
    assert files(tmp_path / "copy").keys() == {"study.yaml", "a", FILE}
    assert list(copying(remote, folder, seen, ended=False)) == []
    (folder / "a").unlink()
    with (folder / FILE).open("a") as log:
        log.write(event("reported") + '{"event": "half')
    for act in copying(remote, folder, seen, ended=True):
        act()
    assert remote.read(FILE) == (event("session") + event("reported")).encode()
    assert files(tmp_path / "copy").keys() == {"study.yaml", "optuna.sqlite3", FILE}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path


def test_a_study_is_fetched_once_and_then_where_the_copy_is_further(here: Path) -> None:
    address = f"file://{here}/bucket/mine"
    there = study(here / "bucket" / "mine", address)
    (there / LEASE).write_text("{}")
    folder = brought_here(address)
    assert folder == Path("studies/mine")
    assert files(folder) == {name: data for name, data in files(there).items() if name != LEASE}
    assert copy_all(Remote(address), folder) == 1  # the log: whether it has changed is not asked of the store

    (there / FILE).write_text(event("session") + event("reported"))
    (there / "new").write_text("new")
    (there / "study.yaml").unlink()
    with pytest.raises(UserError, match=r"mine: has no study that has begun"):
        brought_here(address)
    (there / "study.yaml").write_text(dump_yaml(small_space().resolved()))
    brought_here(address)
    assert (folder / "new").read_text() == "new"

    with (folder / FILE).open("a") as log:
        log.write(event("finished"))
    (there / "new").unlink()
    brought_here(address)
    assert (folder / "new").exists()  # the folder here is further: it stays as it is

    (there / FILE).write_text(event("session") + event("reported") + event("started"))
    with pytest.raises(UserError, match=r"studies/mine: has gone on without its copy at file://.*Fix: move one"):
        brought_here(address)
    shutil.rmtree(folder)
    study(folder)
    with pytest.raises(UserError, match=r"studies/mine: is there already, and not the study at file://"):
        brought_here(address)


def test_a_copy_writes_nothing_outside_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object's name can be any text, where a file's path cannot."""
    address = f"file://{here}/bucket/mine"
    study(here / "bucket" / "mine", address)
    (here / "bucket" / "outside").write_text("x")
    monkeypatch.setattr(Remote, "times", lambda self: {FILE: (1, 0.0), "../outside": (1, 0.0)})
    with pytest.raises(UserError, match=r"mine: has a file whose path leads out of the study, got '\.\./outside'"):
        brought_here(address)
    assert not [path for path in Path().rglob("*") if path.name == "outside"]


def test_a_folder_is_no_address() -> None:
    assert not is_remote("studies/mine") and not is_remote(Path("s3://bucket/mine"))
    assert is_remote("s3://bucket/mine")
    assert brought_here("studies/mine") == Path("studies/mine")
    assert local_folder("s3://bucket/studies/mine/?region=eu-west-1") == Path("studies/mine")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket/mine", r"s4://bucket/mine: cannot be used \(.*\)\. Fix: s3://bucket/studies/mine"),
        ("s3://key:word@bucket/mine", r"s3://…: holds credentials, and is written down\. Fix: .*AWS_ACCESS_KEY_ID"),
        ("s3://bucket/mine?secret_key=word", r"s3://…: holds credentials"),
        ("s3://bucket", r"s3://bucket: names no folder"),
        ("s3://bucket/..", r"s3://bucket/\.\.: names no folder"),
        ("file:///proc/none/mine", r"mine: has no study that has begun"),
    ],
)
def test_addresses_that_cannot_be_used(here: Path, address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        brought_here(address)
    assert list(Path().iterdir()) == []


def test_a_silent_store_is_given_up_within_seconds(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"s3://bucket/mine?region=none&scheme=http&endpoint_override=127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot be reached \(no answer within 0.5 s\)"):
            brought_here(address)
        with pytest.raises(UserError, match=r"cannot be reached"):
            Mirror(address)
        Mirror(address, study(here / "studies" / "mine")).close()  # a study that goes on waits for nobody


def test_one_driver_at_a_time(here: Path) -> None:
    address = f"file://{here}/bucket/mine"
    first = Mirror(address)
    lease = {"host": socket.gethostname(), "pid": os.getppid(), "token": ""}
    (here / "bucket" / "mine" / LEASE).write_text(json.dumps(lease))
    with pytest.raises(UserError, match=rf"mine: is being run by process {os.getppid()} on .*stop it: python tune.py"):
        Mirror(address)
    first.close()  # nothing began
    with pytest.raises(UserError, match=r"mine: is not running\. Fix: it goes on with: python tune.py resume file://"):
        ask_to_stop(address)
    study(here / "bucket" / "mine")
    folder = study(here / "studies" / "mine")
    with pytest.raises(UserError, match=r"--output: has a study, .*Fix: go on with it: python tune.py resume file://"):
        Mirror(address)
    lease["pid"] = 2**22 + 1  # there is no such process
    (here / "bucket" / "mine" / LEASE).write_text(json.dumps(lease))
    Mirror(address, folder).close()
    lease["host"] = "elsewhere"
    (here / "bucket" / "mine" / LEASE).write_text(json.dumps(lease))
    with pytest.raises(UserError, match=r"is being run by process \d+ on elsewhere"):
        Mirror(address, folder)
    with (here / "bucket" / "mine" / FILE).open("a") as log:
        log.write(event("session"))
    folder = study(here / "studies" / "mine", address)
    (first_line, *_) = status(folder)
    assert (
        first_line
        == f"{folder}: is being run by process {2**22 + 1} on elsewhere; this is how far its copy was at {address}"
    )
    os.utime(here / "bucket" / "mine" / LEASE, (0, 0))  # nobody has been heard of for long
    Mirror(address, study(folder, address, events=2)).close()


def test_a_folder_that_is_behind_its_copy_never_replaces_it(here: Path) -> None:
    """Another machine went on from the copy, and this one comes back with what it had."""
    address = f"file://{here}/bucket/mine"
    behind = study(here / "studies" / "mine", address)
    there = study(here / "bucket" / "mine", address, events=3)
    (there / "learnables").write_text("of a trial that only the copy has")
    before = files(there)
    with pytest.raises(UserError, match=r"has what .*mine lacks: another driver .*Fix: python tune.py resume file://"):
        Mirror(address, behind)
    assert "another driver has gone on from it" in str(update(behind))
    assert files(there) == before

    there.parent.rename(here / "away")
    there.parent.write_text("no folder")
    late = Mirror(address, behind)  # cannot be asked, and the study goes on
    there.parent.unlink()
    (here / "away").rename(there.parent)
    late.open(behind)
    late.close()
    assert "lacks the end of the study (another driver has gone on from it)" in late.warnings[0]
    assert files(there) == before


def test_a_report_of_a_study_that_runs_elsewhere_leaves_its_copy_alone(here: Path) -> None:
    address = f"file://{here}/bucket/mine"
    there = study(here / "bucket" / "mine", address)
    folder = brought_here(address)
    (there / LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": ""}))
    (there / "learnables").write_text("copied since")
    before = files(there)
    assert "process 1 on elsewhere runs the study" in str(update(folder))
    assert files(there) == before


def test_a_study_that_runs_elsewhere_is_watched_through_its_copy(here: Path) -> None:
    address = f"file://{here}/bucket/mine"
    there = study(here / "bucket" / "mine", address)
    (there / LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": ""}))
    looks = watch(brought_here(address), seconds=0)
    assert "is being run by process 1 on elsewhere" in next(looks)[0]
    with (there / FILE).open("a") as log:
        log.write(event("started"))
    assert next(looks)[1] == "search: 1 trials: 1 begun, not ended"
    (there / LEASE).unlink()
    assert "is not running and has not ended" in next(looks)[0]
    assert list(looks) == []

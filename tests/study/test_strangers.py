"""A stranger's study folder is data: no address in it is asked, nothing outside it is touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import ammpl
from ammpl import cli
from ammpl.config import resolve
from ammpl.errors import UserError
from ammpl.study.record import own_addresses
from ammpl.study.record.event_log import FILE
from ammpl.study.record.folder import check_links, is_locked
from ammpl.study.record.own_addresses import is_own, remember
from ammpl.study.views.learned import learnables_of
from ammpl.study.views.stores import Stores, started
from ammpl.training import run
from tests.report.studies import make
from tests.study.fakes import small_space

RUN = "0123456789abcdef" * 2
SPACE = small_space(seed=3, budget={"trials": 4}, confirm={"top": 1, "repeats": 1}, pruner={"name": "none"})


class Listener:
    """A real server that keeps who connected, and the head of each request."""

    def __init__(self) -> None:
        self.connections: list[object] = []
        self.heads: list[str] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                listener.heads.append(f"{self.requestline}\n{self.headers}")
                self.send_error(404)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = answer

            def log_message(self, *told: object) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            def verify_request(self, request: object, address: object) -> bool:
                listener.connections.append(address)
                return True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "my-token")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-key")
    found = Listener()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that lacks nothing but its end, with what a winner has learned."""
    folder = make(tmp_path_factory.mktemp("made") / "study", SPACE, ends=False)
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    values = {"data.shots": 1, "data.validation_shots": 1, "training.steps": 1, "model.mask.scope": "task"}
    list(run.train(resolve("ammpl", values), folder / "checkpoints" / f"confirm-{int(winner):04d}-r2"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's copy of it, below the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path / "theirs" / "study")


def name_addresses(folder: Path, host: str) -> None:
    link = {"tracking_uri": f"http://{host}", "experiment_id": "1", "run_id": RUN}
    (folder / "mlflow.json").write_text(json.dumps(link))
    (folder / "optuna.json").write_text(json.dumps({"storage": f"postgresql://me@{host}/optuna"}))
    address = f"s3://bucket/study?region=none&scheme=http&endpoint_override={host}"
    (folder / "remote.json").write_text(json.dumps({"address": address}))
    (folder / "undelivered.json").write_text(json.dumps({"mlflow": "all of it"}))


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """What is in a folder, and when it was changed: a file that was made and removed again shows, too."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        text = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path)] = (hashlib.sha256(os.fsencode(text)).hexdigest(), status.st_mtime_ns)
    return found


READING = [
    ["status", "STUDY"],
    ["status", "STUDY", "--watch"],
    ["report", "STUDY"],
    ["report", "STUDY", "--output", "mine"],
    ["report", "STUDY", "STUDY", "--output", "both"],
    ["compare", "STUDY", "STUDY"],
    ["--from", "STUDY", "--best", "--dry-run"],
]
WRITING = [["resume", "STUDY"], ["extend", "STUDY", "--trials", "+2"], ["stop", "STUDY"], ["ui", "STUDY"]]


def call(words: list[str], folder: Path) -> int:
    return cli.main([str(folder) if word == "STUDY" else word for word in words])


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_contacts_nobody(words: list[str], folder: Path, listener: Listener) -> None:
    name_addresses(folder, listener.host)
    before = tree(folder)
    assert call(words, folder) == 0
    assert listener.connections == []
    after = {path: what for path, what in tree(folder).items() if "/study/report" not in path}
    del before[str(folder)], after[str(folder)]  # where the report is
    assert after == before


def test_what_was_learned_is_loaded_without_contact(folder: Path, listener: Listener) -> None:
    name_addresses(folder, listener.host)
    study = ammpl.study.open(folder)
    assert len(study.load().predict(_picture())) == 1
    assert study.trials().num_rows and study.curves().num_rows and study.results().num_rows
    assert listener.connections == []


def _picture() -> list[Image.Image]:
    return [Image.new("RGB", (8, 8))]


def test_weights_that_a_folder_names_are_fetched_only_if_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = learnables_of(folder)
    with safe_open(path, "pt") as file:
        origin = json.loads(file.metadata()["ammpl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    origin["config"]["backbone"] |= {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    save_file(tensors, path, {"ammpl": json.dumps(origin)})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    asked: list[object] = []

    def refuse(address: object, *_: object, **__: object) -> None:
        asked.append(address)
        raise OSError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    with pytest.raises(UserError, match=r"are not on this machine, and reading .* asks no network.*download=True"):
        ammpl.load(path)
    assert asked == []
    with pytest.raises(UserError, match="does not answer"):
        ammpl.load(path, download=True)
    assert asked == [("huggingface.co", 443)]


def test_the_listener_hears_a_report_that_is_sent_to_it(
    folder: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    """That the tests above see nothing means something: asked for, or in a study of one's own, it is told."""
    name_addresses(folder, listener.host)
    assert call(["report", "STUDY"], folder) == 0
    assert "MLflow: not logged (you have not given this study its address" in capsys.readouterr().out
    (folder / "remote.json").unlink()
    for asked in (True, False):
        if not asked:
            remember(folder, {"mlflow.json": f"http://{listener.host}"})
        flags = ["--tracking-uri", f"http://{listener.host}"] if asked else []
        assert call(["report", "STUDY", *flags], folder) == 0
        assert listener.heads and all("Authorization: Bearer my-token" in head for head in listener.heads)
        listener.heads.clear()


@pytest.mark.parametrize("words", [*WRITING[:2], WRITING[3]], ids=" ".join)
def test_going_on_asks_before_an_address_of_the_folder_is_used(
    words: list[str], folder: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    name_addresses(folder, listener.host)

    def refused(*more: str) -> str:
        assert call([*words, *more], folder) == 2
        assert listener.connections == []
        return capsys.readouterr().err

    if words[0] == "ui":
        assert f"{folder}/mlflow.json: names an address that you have not given" in refused("--no-browser")
        return
    rule = "names an address that you have not given to this study on this machine"
    assert f"{folder}/remote.json: {rule}, got 's3://bucket/" in refused()
    (folder / "remote.json").unlink()
    assert f"{folder}/optuna.json: {rule}, got 'postgresql://me@{listener.host}" in refused()
    (folder / "optuna.json").unlink()
    said = refused()
    assert f"{folder}/mlflow.json: {rule}, got 'http://{listener.host}'" in said
    assert "Fix: name it yourself with --tracking-uri, or give --trust-addresses if the folder is yours" in said


def test_addresses_are_used_once_they_are_trusted_or_this_users(folder: Path, listener: Listener) -> None:
    name_addresses(folder, listener.host)
    (folder / "remote.json").unlink()
    with started(Stores(trusted=True), SPACE, folder) as views:
        assert views.addresses == {
            "mlflow.json": f"http://{listener.host}",
            "optuna.json": f"postgresql://me@{listener.host}/optuna",
        }
        remember(folder, views.addresses)
    with started(Stores(), SPACE, folder):
        pass
    moved = folder.rename(folder.with_name("moved"))
    with pytest.raises(UserError, match="you have not given"), started(Stores(), SPACE, moved):
        pass


def test_a_copys_address_is_not_even_read_and_an_own_one_only_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = folder.parents[1] / "bucket"
    bucket.mkdir()
    (bucket / ".lease.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    address = f"file://{bucket}"
    (folder / "remote.json").write_text(json.dumps({"address": address}))
    before = tree(bucket)
    assert call(["status", "STUDY"], folder) == 0
    assert "elsewhere" not in capsys.readouterr().out
    assert tree(bucket) == before
    remember(folder, {"remote.json": address})
    assert call(["status", "STUDY"], folder) == 0
    assert "is being run by process 1 on elsewhere" in capsys.readouterr().out
    (bucket / ".lease.json").write_text('{"host": ["x"]}')
    before = tree(bucket)
    assert call(["status", "STUDY"], folder) == 0
    assert tree(bucket) == before


# -- links --

LINKS = [
    ".lock",
    FILE,
    "mlflow.json",
    "study.yaml",
    "summary.json",
    "stop-requested",
    ".report.tmp",
    "report",
    "trials",
]
LINKS += ["curves", "checkpoints", ".mlflow.json.tmp", "optuna.sqlite3", "checkpoints/search-0000"]


@pytest.mark.parametrize("name", LINKS)
def test_no_link_leads_out(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = folder.parents[1] / "outside"
    outside.mkdir()
    path, target = folder / name, outside / "thesis"
    if path.is_dir():
        shutil.move(path, target)
    elif path.exists():
        path.rename(target)
        with target.open("a") as file:  # what resume would cut off
            file.write("# an end that is no line's")
    elif "report" in name:
        target.mkdir()
        (target / "report.html").write_text("mine")
    else:
        target.write_text("mine")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    before = tree(outside)
    for words in (*READING[:3], *READING[5:], *WRITING, ["rerun", "STUDY"], ["rerun-trial", "STUDY", "0"]):
        assert call(words, folder) == 2
        assert f"{path}: is a link that leads out of the study" in capsys.readouterr().err
        assert tree(outside) == before
    assert not is_locked(folder)
    with pytest.raises(UserError, match="is a link that leads out"):
        ammpl.load(folder)
    assert tree(outside) == before


@pytest.mark.parametrize("name", [".lock", FILE, "mlflow.json", ".study.yaml.tmp"])
def test_a_second_name_of_a_file_outside_is_not_written_to(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives can hold hard links, to files below where they are unpacked."""
    thesis = folder.parents[1] / "outside" / "thesis"
    thesis.parent.mkdir()
    data = (folder / FILE).read_bytes() + b"half a line" if name == FILE else b"mine"
    thesis.write_bytes(data)
    (folder / name).unlink(missing_ok=True)
    os.link(thesis, folder / name)
    before = tree(thesis.parent)
    assert call(["status", "STUDY"], folder) == 0
    for words in WRITING[:2]:
        assert call(words, folder) == 2
        assert f"{folder / name}: has another name outside the study" in capsys.readouterr().err
    assert tree(thesis.parent) == before


def test_links_within_a_study_and_to_it_are_fine(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    (folder / "latest").symlink_to("notes")
    os.link(folder / "notes", folder / "again")
    way = folder.parent / "way"
    way.symlink_to(folder)
    check_links(way, writes=True)
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match="pipe: is neither a file nor a folder"):
        check_links(folder)


# -- what is kept about own studies --


def test_without_a_home_notes_are_kept_where_others_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget() -> None:
        monkeypatch.setattr(own_addresses, "_noted", {})

    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    forget()
    remember(tmp_path / "study", {"mlflow.json": "http://mine"})
    remember(tmp_path / "study", {"optuna.json": "postgresql://mine"})
    forget()
    (place,) = tmp_path.iterdir()
    (note,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, note.stat().st_mode & 0o777) == (0o700, 0o600)
    assert is_own(tmp_path / "study", "mlflow.json", "http://mine")
    assert is_own(tmp_path / "study", "optuna.json", "postgresql://mine")
    assert not is_own(tmp_path / "study", "mlflow.json", "http://theirs")
    assert not is_own(tmp_path / "other", "mlflow.json", "http://mine")
    place.chmod(0o777)
    assert not is_own(tmp_path / "study", "mlflow.json", "http://mine")
    remember(tmp_path / "study", {"mlflow.json": "http://mine"})  # by this process alone
    assert is_own(tmp_path / "study", "mlflow.json", "http://mine")


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--notif", "http://x"], ["resume", "studies/x", "--notif", "http://x"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "unrecognized arguments: --notif" in capsys.readouterr().err

"""A study whose folder has a copy in an object store: real drivers, a real S3 server, files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

import ammpl
from ammpl.errors import UserError
from ammpl.study.study import Options, StudySummary, resume_study, run_study
from ammpl.study.trial import Trial
from ammpl.study.views import mirror
from ammpl.study.views.mirror import Mirror
from ammpl.study.views.remote import LEASE, Remote, ask_to_stop, brought_here
from tests.integration.test_resume import ROOT, outcome
from tests.study.fakes import execute, small_space

DRIVER = """
import sys, time
from ammpl.study.settings import output_of
from ammpl.study.study import Options, resume_study, run_study
from ammpl.study.views import mirror
from ammpl.study.views.remote import brought_here
from tests.study.fakes import execute, small_space
mirror.PAUSE = 0.05
def slow(trial, folder):  # enough for the copy to be seen before the end
    for news in execute(trial, folder):
        time.sleep(0.03)
        yield news
how = {"concurrency": 1, "tracking": False, "quiet": True}
space = small_space(budget={"trials": 8}, seed=3, confirm={"top": 1, "repeats": 1})
if sys.argv[1] == "run":
    output, address = output_of(sys.argv[2])
    summary = run_study(space, Options(output, copy_at=address, **how), execute=slow)
else:
    summary = resume_study(brought_here(sys.argv[2]), Options(**how), execute=execute)
print(*summary.problems)
"""


def driver(command: str, place: str, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, command, place],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "me")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield f"s3://bucket/studies/NAME?{options}"
    server.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes out of the study when nobody kills it."""
    folder = tmp_path_factory.mktemp("whole")
    process = driver("run", "study", folder)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    return outcome(folder / "study")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a study but locks and drafts."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def copied(address: str) -> dict[str, bytes]:
    remote = Remote(address)
    return {name: remote.read(name) or b"" for name in remote.times()}


@pytest.mark.parametrize("store", ["file", "s3"])
def test_a_driver_whose_machine_is_lost(tmp_path: Path, request: Any, whole: dict[str, Any], store: str) -> None:
    """Killed once its copy has some events; its folder is gone; another machine goes on from the copy."""
    address = f"file://{tmp_path}/bucket/mine"
    if store == "s3":
        address = request.getfixturevalue("s3").replace("NAME", "mine")
    process = driver("run", address, tmp_path / "first")
    deadline = time.monotonic() + 120
    while (remote := Remote(address)).read("events.jsonl") is None or len(remote.read("events.jsonl") or b"") < 3000:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "first").rename(tmp_path / "lost")  # its workers may not have noticed yet

    process = driver("resume", address, tmp_path / "second")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and said.split() == [], said
    folder = tmp_path / "second" / "studies" / "mine"
    assert outcome(folder) == whole
    assert copied(address) == contents(folder)


# -- in this process, on a Ray that is there --


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mirror, "PAUSE", 0.05)
    monkeypatch.setattr(mirror, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(mirror, "_WAITS", (0.0,))
    monkeypatch.chdir(tmp_path)


OPTIONS = Options(Path("studies/mine"), concurrency=1, tracking=False, quiet=True)


def test_a_store_that_is_away_holds_up_nothing(ray_cluster: None, quick: None, tmp_path: Path) -> None:
    bucket, away = tmp_path / "bucket", tmp_path / "away"
    address = f"file://{bucket}/mine"

    def train(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        for step, metrics in execute(trial, folder):
            if trial.number == 2 and step == 10:
                while not (bucket / "mine" / "events.jsonl").exists():
                    time.sleep(0.01)
                bucket.rename(away)
                bucket.write_text("no folder any more")
            yield step, metrics

    space = small_space(budget={"trials": 5}, seed=3, confirm=None)
    summary = run_study(space, replace(OPTIONS, copy_at=address), execute=train)
    assert not summary.interrupted and sum(summary.counts["search"].values()) == 5
    (problem,) = summary.problems
    assert problem.startswith(f"{address} lacks the end of the study (")
    assert problem.endswith("Fix: python tune.py resume studies/mine")
    assert "copy" in (summary.folder / "undelivered.json").read_text()

    bucket.unlink()
    away.rename(bucket)
    before = contents(summary.folder)
    delivered = resume_study(summary.folder, OPTIONS, execute=execute)
    assert delivered is not None and delivered.problems == ()
    after = contents(summary.folder)
    assert before.keys() - after.keys() == {"undelivered.json"}
    assert copied(address) == after
    assert resume_study(summary.folder, OPTIONS, execute=execute) is None


def test_stopped_from_elsewhere_and_run_by_one_driver_alone(ray_cluster: None, quick: None, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/bucket/mine"
    study = tmp_path / "studies" / "mine"

    def train(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        if trial.number == 1:
            with pytest.raises(UserError, match=r"mine: is being run by process \d+ on "):
                Mirror(address, study)
            assert "asked process" in ask_to_stop(address)
            while not (study / "stop-requested").exists():
                time.sleep(0.01)
        yield from execute(trial, folder)

    def no_trial(trial: Trial, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
        raise AssertionError("none is left to run")
        yield

    space = small_space(budget={"trials": 6}, seed=3, confirm=None)
    summary = run_study(space, replace(OPTIONS, copy_at=address), execute=train)
    assert summary.on_request and summary.problems == ()
    assert sum(summary.counts["search"].values()) == 2
    assert copied(address) == contents(study) and LEASE not in copied(address)

    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    folder = brought_here(address)
    rest = resume_study(folder, OPTIONS, execute=execute)
    assert isinstance(rest, StudySummary) and sum(rest.counts["search"].values()) == 6
    assert copied(address) == contents(folder)

    report = ammpl.study.open(address).report(tracking=False)  # the folder here is as far
    assert report.page == folder / "report" / "report.html" and report.not_copied is None
    assert copied(address) == contents(folder)

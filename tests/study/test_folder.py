"""A study folder belongs to one study: real processes that ask for one at the same time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from ammpl.errors import UserError
from ammpl.study.record.folder import check_output, create_folder, remove_folder


def _noon() -> datetime:
    return datetime(2026, 1, 1, 12)


def _create(here: str, output: Path | None, together: Barrier, told: Any) -> None:
    """Ask for a folder with all the others; tell which it is, or why there is none."""
    os.chdir(here)
    together.wait(60)
    try:
        folder = create_folder("demo", output, _noon)
        (folder / "mine").write_text(str(os.getpid()))
        told.put(str(folder))
    except UserError as error:
        told.put(str(error))


def _all_at_once(here: Path, output: Path | None, count: int) -> list[str]:
    context = multiprocessing.get_context("spawn")
    together, told = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_create, args=(str(here), output, together, told)) for _ in range(count)]
    for process in processes:
        process.start()
    answers = sorted(told.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return answers


def test_ten_studies_of_a_name_begun_in_the_same_second_have_ten_folders(tmp_path: Path) -> None:
    folders = _all_at_once(tmp_path, None, 10)
    first = "studies/demo-20260101-120000"
    assert folders == sorted([first, *(f"{first}-{number}" for number in range(2, 11))])
    assert len({(tmp_path / folder / "mine").read_text() for folder in folders}) == 10


def test_of_four_studies_with_one_empty_folder_one_has_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    answers = _all_at_once(tmp_path, Path("out"), 4)
    refusal = "--output: exists already, and a study never overwrites, got 'out'. Fix: "
    refusal += "go on with that study: python tune.py resume out; or name another"
    assert sorted(answers) == sorted(["out"] + [refusal] * 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine", "study.yaml"}


def test_a_folder_with_anything_in_it_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = create_folder("demo", None, _noon)
    (old / "summary.json").write_text("{}")
    assert create_folder("demo", None, _noon) == old.with_name(f"{old.name}-2")
    with pytest.raises(UserError, match="a study never overwrites, got 'studies/demo-20260101-120000'"):
        create_folder("demo", old, _noon)
    assert [path.name for path in old.iterdir()] == ["summary.json"]


def _check_as_nobody(output: Path, told: Any) -> None:
    if os.geteuid() == 0:  # whom no permission stops
        os.setuid(65534)
    try:
        check_output(output)
        told.put("fine")
    except UserError as error:
        told.put(str(error))


def test_a_folder_that_may_not_be_written_to_is_found_before_anything_starts() -> None:
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as parent:  # pytest's own are closed to others
        Path(parent).chmod(0o555)
        process = context.Process(target=_check_as_nobody, args=(Path(parent) / "new" / "study", told))
        process.start()
        answer = told.get(timeout=60)
        process.join(60)
    rule = f"--output: cannot be created below {parent} (it may not be written to), got '{parent}/new/study'"
    assert answer == f"{rule}. Fix: free some space, or name a folder elsewhere with --output"


@pytest.mark.parametrize(
    ("before", "output", "left"),
    [
        ([], None, []),
        (["studies/old"], None, ["studies", "studies/old"]),
        (["empty"], Path("empty/a/b"), ["empty"]),
        ([], Path("a/b"), []),
        (["a/other"], Path("a/b"), ["a", "a/other"]),
    ],
)
def test_a_study_that_did_not_begin_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str], output: Path | None, left: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in before:
        Path(path).mkdir(parents=True)
    there = check_output(output)
    folder = create_folder("demo", output, _noon)
    (folder / "study.yaml").write_text("version: 1\n")
    remove_folder(folder, there)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left

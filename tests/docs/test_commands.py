"""Every shell block of README and docs is run, or says why not; commands that pages name exist."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ammpl import cli
from tests.data.on_disk import build, picture
from tests.docs.blocks import PAGES, SHELL, Block, blocks
from tests.docs.running import Place

GUIDES = ("docs/own_data.md", "docs/add_data.md", "docs/add_method.md", "docs/add_space.md")
"""Pages that are followed from their first block to their last: ``test_guides.py``."""

PYTHON = ("docs/first_study.md", "docs/training.md")
"""Pages whose Python is run too: that of others is of results that a reader has."""

BLOCKS = [block for page in PAGES for block in blocks(page)]
BEFORE = {"python tune.py", "python tune.py search_spaces/ablation_mask.yaml"}
"""What the place of the tests has run when it is made."""


def _to_run() -> Iterator[Block]:
    """Yield the blocks with a command that no block before them has."""
    seen = set(BEFORE)
    for block in BLOCKS:
        if block.language in SHELL and block.reason is None and block.page not in GUIDES:
            commands = {command.replace(".venv/bin/", "") for command in block.commands}
            if not block.commands or commands - seen:
                yield block
            seen |= commands


@pytest.fixture
def place(studied_place: Path, tmp_path: Path) -> Place:
    """A place of the block's own, with every file that pages name."""
    folder = tmp_path / "place"
    shutil.copytree(studied_place, folder, symlinks=True)
    spaces, studies = folder / "search_spaces", folder / "studies"
    for name, saved in {"my_space": "default", "my_ablation": "ablation_mask"}.items():
        shutil.copy(spaces / f"{saved}.yaml", folder / f"{name}.yaml")
    for name, ended in {"first": "ablation_mask", "second": "ablation_mask", "mine": "default"}.items():
        (studies / name).symlink_to(f"{ended}-20260101-120000")
    for name in ("oxford_pets", "dtd"):
        build(name, folder / "DIR", published=True)
    return Place(folder)


@pytest.mark.parametrize("block", list(_to_run()), ids=str)
def test_a_shell_block_runs(block: Block, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMMPL_STORE", str(place.folder / "store"))
    assert block.commands
    for command in block.commands:
        if command.replace(".venv/bin/", "") not in BEFORE:
            place.run(command)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.page in PYTHON and b.language == "python"], ids=str)
def test_a_python_block_runs(block: Block, place: Place) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(place.folder / name)
    with contextlib.chdir(place.folder):
        exec(compile(block.text, str(block), "exec"), {})


def test_every_block_names_its_language_and_every_reason_is_one() -> None:
    assert [str(block) for block in BLOCKS if not block.language] == []
    assert {block.language for block in BLOCKS if "tune.py" in block.text.partition("\n")[0]} <= {*SHELL}
    for block in BLOCKS:
        assert block.reason is None or (block.language in SHELL and len(block.reason.split()) > 2), str(block)


def _named() -> Iterator[tuple[str, list[str]]]:
    """Yield (place, words after ``tune.py``) of every command line in blocks and in running text."""
    for block in BLOCKS:
        for command in block.commands if block.language in SHELL else ():
            if "tune.py" in command:
                yield str(block), shlex.split(command.partition("tune.py")[2].partition(">")[0])
    for page in PAGES:
        for code in re.findall(r"`(?:python )?tune\.py ([^`\n…]+)`", page.read_text(encoding="utf-8")):
            yield page.name, code.split()


def test_commands_and_flags_that_pages_name_exist() -> None:
    named = list(_named())
    assert len(named) > 40
    for where, words in named:
        name = words[0] if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) else ""
        assert not name or name in cli.COMMANDS, f"{where}: {name}"
        parser = (cli.COMMANDS[name] if name else cli.TUNE).parser(name)
        known = {flag for action in parser._actions for flag in action.option_strings}
        flags = {word.partition("=")[0].strip("[]") for word in words if word.startswith("-")}
        assert flags <= known, f"{where}: tune.py {' '.join(words)}"

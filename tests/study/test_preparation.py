"""What is told of a person's pictures before a study: all that is broken, and pictures in two lists."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammpl.config import resolve
from ammpl.data.home import DataHome
from ammpl.errors import UserError
from ammpl.study.engine.preparation import prepare_data

VALUES = {"data.shots": 1, "data.validation_shots": 1, "training.steps": 1, "training.evaluate_every": 1}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three lists of two classes, of two pictures each, no two alike."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for number in range(2):
                file = tmp_path / "pets" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file)
    return tmp_path / "pets"


def prepared(pictures: Path, **values: object) -> tuple[str, ...]:
    home = DataHome(root=pictures.parent, store=pictures.parent / "store")
    config = resolve("ammpl", {**VALUES, "data.name": str(pictures), **values}, "test")
    return prepare_data([config], home, quiet=True).warnings


def test_broken_pictures_of_all_lists_are_told_in_one_message_the_same_each_time(pictures):
    broken = [pictures / split / "cat" / "0.png" for split in ("train", "val", "test")]
    for file in broken:
        file.write_text("not a picture")
    texts = []
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            prepared(pictures)
        texts.append(str(caught.value))
        shutil.rmtree(pictures.parent / "store")
    assert texts[0] == texts[1] and " at 0x" not in texts[0]
    for file in broken:
        assert str(file.relative_to(pictures)) in texts[0]
    assert len(prepared(pictures, **{"data.skip_broken": True})) == 3


def test_a_folder_that_was_changed_between_two_calls_is_read_again(pictures):
    assert prepared(pictures) == ()
    shutil.copy(pictures / "train/cat/0.png", pictures / "test/cat/new.png")
    (told,) = prepared(pictures)
    assert "test/cat/new.png" in told


def test_a_folder_called_like_a_data_set_is_told_of(pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures.parent)
    pictures.rename("digits")
    home = DataHome(root=pictures.parent / "data", store=pictures.parent / "store")
    prepare_data([resolve("ammpl", VALUES, "test")], home)
    assert "--dataset ./digits is the folder that is here" in capsys.readouterr().err
    prepare_data([resolve("ammpl", VALUES, "test")], replace(home, root=pictures.parent))
    assert capsys.readouterr().err == ""


def test_a_picture_in_two_lists_is_told_whatever_its_name_and_can_be_refused(pictures):
    assert prepared(pictures) == ()
    (pictures / "test/dog/1.png").unlink()
    os.link(pictures / "train/cat/0.png", pictures / "test/dog/1.png")
    (pictures / "val/cat/1.png").write_bytes((pictures / "train/cat/1.png").read_bytes())
    (pictures / "val/cat/2.png").symlink_to(pictures / "test/cat/0.png")
    told = prepared(pictures)
    assert [text.splitlines() for text in told] == [
        ["pets: 1 picture is in both train and validation:", "  train/cat/1.png and val/cat/1.png"],
        ["pets: 1 picture is in both train and test:", "  train/cat/0.png and test/dog/1.png"],
        ["pets: 1 picture is in both validation and test:", "  val/cat/2.png and test/cat/0.png"],
    ]
    with pytest.raises(UserError, match=r"(?s)data.duplicates: refuse: no picture.*train/cat/1.png and val/cat/1.png"):
        prepared(pictures, **{"data.duplicates": "refuse"})

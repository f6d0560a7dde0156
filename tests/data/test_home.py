"""Paths are read as a shell reads them, wherever they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ammpl.data.home import DataHome, expanded, replaced
from ammpl.data.registry import open_dataset
from ammpl.errors import UserError
from ammpl.study.settings import dataset_of, output_of
from tests.data.test_own import pictures


def test_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "pictures")
    monkeypatch.chdir(tmp_path)
    assert replaced("~/x") == expanded("$HOME/x") == tmp_path / "x" == expanded("x")
    assert replaced("a/$PLACE") == Path("a/pictures")
    assert output_of("~/out") == (tmp_path / "out", None)
    assert dataset_of("~/mine") == dataset_of("$HOME/mine") == str(tmp_path / "mine")
    with pytest.raises(UserError, match="names the home of a user who does not exist"):
        replaced("~nobody-of-that-name/x")


def test_a_space_file_may_name_a_folder_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "mine", {"one": 6, "two": 6})
    assert open_dataset("~/mine", DataHome(store=tmp_path / "store")).class_names == ("one", "two")

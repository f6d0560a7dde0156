from __future__ import annotations

import pytest

from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.dataset import MemoryPictures
from ammpl.data.home import EMBEDDED, DataHome, is_path
from ammpl.data.registry import open_dataset, registered
from ammpl.errors import UserError


def test_every_name_is_embedded_or_described():
    assert registered().keys() == {*EMBEDDED, *DESCRIPTIONS}
    assert not set(EMBEDDED) & DESCRIPTIONS.keys()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data_sets_need_no_files(name, tmp_path):
    dataset = open_dataset(name, DataHome(tmp_path / "no-root", tmp_path / "no-store"))
    assert dataset.name == name and not dataset.augmented
    assert isinstance(dataset.train, MemoryPictures) and len(dataset.open_test().labels) == 897
    assert not list(tmp_path.iterdir())


def test_a_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert open_dataset("digits", DataHome(tmp_path)).source.startswith("Optical Recognition")
    assert is_path("./digits") and is_path("digits") and not is_path("dtd")


def test_where_data_lie_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMMPL_DATA_ROOT", "~/pictures")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AMMPL_STORE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert DataHome() == DataHome(tmp_path / "pictures", tmp_path / ".cache/ammpl")
    monkeypatch.setenv("AMMPL_STORE", str(tmp_path / "fast"))
    assert DataHome().store == tmp_path / "fast"


def test_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"unknown data set or folder.*did you mean 'oxford_pets'"):
        open_dataset("oxford_pet", DataHome(tmp_path))

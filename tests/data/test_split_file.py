from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ammpl.data.split_file import Entry, class_names, read_split_file
from ammpl.errors import UserError

GOOD = {
    "train": [["b/1.jpg", 1, "b_c"], ["a/1.jpg", 0, "a"]],
    "val": [["a/2.jpg", 0, "a"]],
    "test": [],
}


def read(folder: Path, content: Any) -> tuple[str, ...]:
    file = folder / "split.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return class_names(read_split_file(file), str(file))


def test_lists_keep_their_order_and_names_get_spaces(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == ("a", "b c")
    lists = read_split_file(tmp_path / "split.json")
    assert lists["train"] == [Entry("b/1.jpg", 1, "b_c"), Entry("a/1.jpg", 0, "a")]
    assert lists["validation"] == [Entry("a/2.jpg", 0, "a")] and lists["test"] == []


def test_other_keys_are_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD | {"info": "made by a tool", "classes": 3}) == read(tmp_path, GOOD)


def test_odd_but_harmless_paths_are_taken(tmp_path: Path) -> None:
    for path in ("...", "..a/.b", "a..", "a b/ü.jpg", "12:30.jpg", "日本/1.png"):
        assert read(tmp_path, GOOD | {"test": [[path, 0, "a"]]}) == ("a", "b c")


def test_names_may_be_shared_where_that_is_known() -> None:
    lists = {"train": [Entry("1", 0, "missile"), Entry("2", 1, "missile")], "validation": [], "test": []}
    assert class_names(lists, "here", repeated=True) == ("missile", "missile")
    with pytest.raises(UserError, match="here: train: labels 0 and 1 have one name, got 'missile'"):
        class_names(lists, "here")


def test_the_test_list_defines_classes_where_it_is_alone() -> None:
    lists = {"train": [], "validation": [], "test": [Entry("1", 0, "a")]}
    assert class_names(lists, "here", defining="test") == ("a",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 1}, r"split.json: train: must be a list of \[path, label, class name\], got 1"),
        ({"train": []}, r"split.json: train: names no picture"),
        (
            {"val": [["a.jpg", 0]]},
            r"val\[0\]: must be \[path, label, class name\]: text, whole number, text, got \['a",
        ),
        ({"val": ["abc"]}, r"val\[0\]: must be \[path, label, class name\]"),
        ({"val": [[1, 0, "a"]]}, r"val\[0\]: must be .*, got \[1, 0, 'a'\]"),
        ({"val": [["a.jpg", "0", "a"]]}, r"val\[0\]: must be .*, got \['a.jpg', '0', 'a'\]"),
        ({"val": [["a.jpg", False, "a"]]}, r"val\[0\]: must be .*, got \['a.jpg', False, 'a'\]"),
        ({"val": [["a.jpg", 0.0, "a"]]}, r"val\[0\]: must be"),
        ({"val": [["a.jpg", 0, None]]}, r"val\[0\]: must be"),
        ({"train": [["a.jpg", 1, "a"]]}, r"train: labels must be 0, 1, 2, ...; none is 0, and there is one, got 1"),
        ({"train": [["a", 0, "a"], ["b", 2, "b"]]}, r"train: labels must be .*; none is 1, and there is one, got 2"),
        ({"train": [["a", -1, "a"]]}, r"train: labels must be 0, 1, 2, ...; none is 0, and there is one, got -1"),
        ({"train": [["a", 0, "a"], ["b", 0, "b"]]}, r"train\[1\]: label 0 has the name 'a' elsewhere, got \['b', 0, "),
        ({"train": [["a", 0, "a_b"], ["b", 1, "a b"]]}, r"train: labels 0 and 1 have one name, got 'a b'"),
        ({"train": [["a", 0, "_"]]}, r"train: the name of label 0 must be a printable text, got ' '"),
        ({"train": [["a", 0, "a\n"]]}, r"train: the name of label 0 must be a printable text, got 'a\\n'"),
        ({"train": [["a", 0, "\ud800"]]}, r"train: the name of label 0 must be a printable text"),
        ({"test": [["a/3.jpg", 2, "c"]]}, r"test\[0\]: the label is not among the classes, got \['a/3.jpg', 2, 'c'\]"),
        ({"test": [["a/3.jpg", 0, "b_c"]]}, r"test\[0\]: label 0 has the name 'a' elsewhere"),
        (
            {"test": [["/a/3.jpg", 0, "a"]]},
            r"test\[0\]: the path must be relative, with forward slashes, .*, got \['/a/",
        ),
        ({"test": [["C:/3.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["a\\3.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative, with forward slashes"),
        ({"test": [["a/../../b.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative, .*, got \['a/../"),
        ({"test": [["..", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["a//b.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["a/./b.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["a/", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["a\0", 0, "a"]]}, r"test\[0\]: the path must be relative"),
        ({"test": [["\udcff.jpg", 0, "a"]]}, r"test\[0\]: the path must be relative, .* in UTF-8"),
    ],
)
def test_what_breaks_a_rule_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, GOOD | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"split.json: must be JSON \(Expecting value at line 1\). Fix: download it again"),
        (b'{"train": [', r"must be JSON \(Expecting value at line 1\)"),
        (b"<!DOCTYPE html>\n<title>Sign in", r"must be JSON"),
        (b"\xff\xfe\x00", r"must be UTF-8 \(invalid start byte at byte 0\)"),
        (b"[" * 100_000, r"must be JSON that Python can hold \(RecursionError\)"),
        (b"9" * 5_000, r"must be JSON that Python can hold \(ValueError\)"),
        (b"[]", r"must be one object with the keys train, val and test, got \[\]"),
        (b'{"train": []}', r"must be one object with the keys train, val and test, got \['train'\]"),
    ],
)
def test_what_is_no_split_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
rows = st.tuples(
    st.sampled_from(["a", "a/b.jpg", "../a", "/a", "\ud800", ""]) | scalars,
    st.integers(-1, 3) | scalars,
    st.sampled_from(["a", "b", "a_b", "a b", "\0"]) | scalars,
)
near_misses = st.fixed_dictionaries({key: st.lists(rows | anything, max_size=4) | anything for key in GOOD})


@given(st.binary() | (anything | near_misses).map(lambda content: json.dumps(content).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_file_crashes_the_reader(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file: names and lists, or a text for its owner."""
    try:
        names = read(tmp_path, content)
    except UserError as error:
        assert "split.json" in str(error)
    else:
        lists = read_split_file(tmp_path / "split.json")
        assert {entry.label for entries in lists.values() for entry in entries} == set(range(len(names)))

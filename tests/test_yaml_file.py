from __future__ import annotations

from pathlib import Path

import pytest

from ammpl.errors import UserError
from ammpl.yaml_file import LARGEST_FILE, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-0.5", -0.5),
        ("12", 12),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("none", "none"),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("a photo of a", "a photo of a"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", [1e-5, "1e-5", "no", "null", None, True, "true", "on", 0, "0", 1e300, "2024-01-01", "é"]
)
def test_what_is_written_is_read_back_equal(value: object) -> None:
    assert parse_yaml(dump_yaml({"key": [value]}), "text") == {"key": [value]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml, line 3, column 1: is not valid YAML: 'a' is given twice"),
        ("a: {b: 1, b: 2}", "x.yaml, line 1, column 11: is not valid YAML: 'b' is given twice"),
        ("a: [1, 2", "x.yaml, line 1, column 9: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("? [a]\n: 1", "x.yaml, line 1, column 3: is not valid YAML: a key must be plain text"),
        ("!!python/object/apply:os.system [ls]", "x.yaml, line 1, column 1: is not valid YAML: could not determine a"),
        ("a: &a [1]\nb: *a", "x.yaml: must not use YAML aliases"),
        ("a: 1\n---\nb: 2", "x.yaml, line 2, column 1: is not valid YAML: but found another document"),
        ("a: \x07", "x.yaml: is not valid YAML: unacceptable character"),
        ("[" * 5000 + "]" * 5000, "x.yaml: is nested too deeply"),
    ],
)
def test_broken_yaml_is_named_by_line_and_column(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(message)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.yaml: cannot be read \(No such file or directory\)"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(UserError, match=r"latin.yaml: must be UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_bytes(b" " * (LARGEST_FILE + 1))
    with pytest.raises(UserError, match=r"huge.yaml: must be smaller than 1048576 bytes, got 1048577"):
        read_yaml(tmp_path / "huge.yaml")
    with pytest.raises(UserError, match=r"/dev/zero: must be smaller than 1048576 bytes, got 1048577"):
        read_yaml(Path("/dev/zero"))

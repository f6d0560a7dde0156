from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from ammpl.data.listing import Item
from ammpl.data.own import PICTURES, read_own
from ammpl.data.store import Store
from ammpl.data.stored import dataset_on_disk
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError
from tests.data.on_disk import picture, write


def pictures(folder: Path, classes: Mapping[str, int]) -> Path:
    """Write 1.jpg, 2.jpg, ... into a folder per class, last ones first: a listing should not depend on it."""
    for name, count in classes.items():
        for number in range(count, 0, -1):
            picture(folder / name / f"{number}.jpg")
    return folder


def manifest(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    table = pa.table(dict(columns))
    write(file.parent / "y" / "1.png", "")  # one of its pictures is there
    write(file.parent / "0.jpg", "")
    file.parent.mkdir(parents=True, exist_ok=True)
    (pa.csv.write_csv if file.suffix == ".csv" else pa.parquet.write_table)(table, file)
    return file


def paths(items: Sequence[Item]) -> list[str]:
    return [item.path for item in items]


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_per_class_is_cut_50_20_30_by_the_documented_rule(tmp_path: Path) -> None:
    own = read_own(pictures(tmp_path, {"sea_lion": 10, "Cat": 4}))
    listing = own.listing
    assert listing.class_names == ("Cat", "sea lion")  # sorted as ASCII; underscores become spaces
    stream = random.Random(1)
    cats = [f"Cat/{number}.jpg" for number in (1, 2, 3, 4)]
    lions = [f"sea_lion/{number}.jpg" for number in (1, 10, 2, 3, 4, 5, 6, 7, 8, 9)]
    stream.shuffle(cats)
    stream.shuffle(lions)
    assert paths(listing.train) == cats[:2] + lions[:5]
    assert paths(listing.validation) == cats[2:3] + lions[5:7]
    assert paths(listing.test) == cats[3:] + lions[7:]
    assert [item.label for item in listing.train] == [0, 0, 1, 1, 1, 1, 1]
    rule = "50 % of each class train, 20 % validate, 30 % test, shuffled with seed 1"
    assert listing.split_source == f"folders of classes; {rule}"
    assert own.template == "a photo of a {}." and own.warnings == ()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_three_lists_stay_as_they_are(tmp_path: Path, name: str) -> None:
    for part in ("train", name, "test"):
        pictures(tmp_path / part, {"a": 2, "b": 1})
    listing = read_own(tmp_path).listing
    assert paths(listing.train) == ["train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg"]
    assert paths(listing.validation) == [f"{name}/a/1.jpg", f"{name}/a/2.jpg", f"{name}/b/1.jpg"]
    assert paths(listing.test) == ["test/a/1.jpg", "test/a/2.jpg", "test/b/1.jpg"]
    assert "seed" not in listing.split_source


@pytest.mark.parametrize(
    ("given", "sizes", "rule"),
    [
        (("train",), (10, 4, 6), "50 % of each class train, 20 % validate, 30 % test"),
        (("train", "test"), (16, 4, 20), "validation is 20 % of each class of train"),
        (("train", "val"), (14, 20, 6), "test is 30 % of each class of train"),
    ],
)
def test_missing_lists_are_cut_from_train(tmp_path: Path, given: Sequence[str], sizes: Any, rule: str) -> None:
    for part in given:
        pictures(tmp_path / part, {"a": 10, "b": 10})
    listing = read_own(tmp_path).listing
    lists = (listing.train, listing.validation, listing.test)
    assert tuple(map(len, lists)) == sizes
    assert all(len(set(Counter(item.label for item in items).values())) == 1 for items in lists)  # of each class
    together = [path for items in lists for path in paths(items)]
    assert len(set(together)) == len(together) == 20 * len(given)
    assert rule in listing.split_source and "seed 1" in listing.split_source


def test_train_is_a_class_too(tmp_path: Path) -> None:
    assert read_own(pictures(tmp_path, {"train": 4, "plane": 4})).listing.class_names == ("plane", "train")


def test_pictures_are_known_by_their_endings_and_the_rest_is_told(tmp_path: Path) -> None:
    pictures(tmp_path, {"a": 4})
    for number, ending in enumerate(PICTURES):
        write(tmp_path / "b" / f"{number}{ending.upper()}", "")
    for name in (".hidden.jpg", "notes.txt", "x.heic"):
        write(tmp_path / "b" / name, "")
    write(tmp_path / ".cache" / "1.jpg", "")
    write(tmp_path / "README.md", "")
    own = read_own(tmp_path)
    listing = own.listing
    assert {Path(item.path).name for part in (listing.train, listing.validation, listing.test) for item in part} == {
        *(f"{number}.jpg" for number in (1, 2, 3, 4)),
        *(f"{number}{ending.upper()}" for number, ending in enumerate(PICTURES)),
    }
    assert own.warnings == (f"2 files left out, no picture by name: '{tmp_path}/b/notes.txt', '{tmp_path}/b/x.heic'",)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda at: None, "must have a folder per class:\n  cat/1.jpg"),
        (lambda at: pictures(at, {"a": 4}), "must have two classes or more, got 'a'"),
        (lambda at: (pictures(at, {"a": 4}), (at / "b").mkdir()), r"/b: has no pictures \(.jpg .jpeg"),
        (
            lambda at: pictures(at, {"a": 4, "b": 4, "a/deep": 1}),
            "/a: must hold pictures only; .*: 'deep'. Fix: a fol",
        ),
        (lambda at: pictures(at, {"a": 4, "b": 3}), "class 'b' .*too few pictures to divide .*, got 3. Fix: add"),
        (lambda at: pictures(at, {"a": 4, "b": 4, ".": 7}), "beside its folders: '1.jpg', .* and 2 more. Fix: put th"),
        (lambda at: pictures(at, {"a_b": 4, "a b": 4}), "labels 0 and 1 have one name, got 'a b'"),
        (lambda at: pictures(at, {"train/a": 1, "tset/a": 1}), "/tset: must be train, .* did you mean 'test'"),
        (lambda at: pictures(at, {"trian/a": 1, "tset/a": 1}), "/trian: must hold pictures .* did you mean 'train'"),
        (lambda at: pictures(at, {"train": 4, "test": 4}), "/test: must have a folder per class"),
        (lambda at: pictures(at, {"train/a": 1, "val/a": 1, "valid/a": 1}), "another folder for validation"),
        (lambda at: pictures(at, {"train/a": 4, "train/b": 4, "test/c": 1}), "'c' must have training pictures"),
        (lambda at: pictures(at, {"test/a": 4, "test/b": 4}), "has no training pictures"),
        (lambda at: (pictures(at, {"train/a": 4}), (at / "test").mkdir()), "/test: must have a folder per class"),
        (lambda at: pictures(at, {"train/a": 4, "train/b": 4, "test/.": 1}), "/test: has pictures beside its folders"),
    ],
)
def test_mistakes_in_folders(tmp_path: Path, build: Any, message: str) -> None:
    build(tmp_path)
    with pytest.raises(UserError, match=message):
        read_own(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"flower: does not exist. Fix: did you mean 'flowers'?"):
        read_own(tmp_path / "flower")
    write(tmp_path / "list.txt", "")
    with pytest.raises(UserError, match=r"list.txt: must be a folder, or a manifest: .csv or .parquet"):
        read_own(tmp_path / "list.txt")


def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere = pictures(tmp_path / "elsewhere", {"cats": 4})
    data = pictures(tmp_path / "data", {"dog": 4})
    (data / "cat").symlink_to(elsewhere / "cats")
    listing = read_own(data).listing
    assert listing.class_names == ("cat", "dog") and listing.train[0].path.startswith("cat/")

    (data / "kitten").symlink_to(elsewhere / "cats")
    with pytest.raises(UserError, match=r"kitten: is the same folder, by a link, got '.*cat'"):
        read_own(data)
    (data / "kitten").unlink()
    (data / "loop").symlink_to(data)
    with pytest.raises(UserError, match="loop: must hold pictures only"):
        read_own(data)
    (data / "loop").unlink()
    (data / "itself").symlink_to(data / "itself")
    with pytest.raises(UserError, match=r"itself: cannot be read \(Too many levels"):
        read_own(data)


# Manifests -----------------------------------------------------------------------------------------------------------

ROWS: dict[str, Sequence[Any]] = {
    "path": ["x/3.jpg", "x/1.jpg", "y/1.png", "x/2.jpg", "y/2.jpg"],
    "label": [1, 1, 0, 1, 0],
    "class_name": ["cat", "cat", "sea_lion", "cat", "sea_lion"],
    "split": ["train", "val", "train", "test", "test"],
}


@pytest.mark.parametrize("file", ["list.csv", "list.parquet", "LIST.CSV"])
def test_a_manifest_keeps_its_order_and_labels(tmp_path: Path, file: str) -> None:
    written = manifest(tmp_path / "list.csv", ROWS).rename(tmp_path / file) if "CSV" in file else tmp_path / file
    own = read_own(written if "CSV" in file else manifest(written, ROWS))
    listing = own.listing
    assert listing.folder == tmp_path and listing.split_source == file
    assert listing.class_names == ("sea lion", "cat")
    assert listing.train == (Item("x/3.jpg", 1), Item("y/1.png", 0))
    assert listing.validation == (Item("x/1.jpg", 1),)
    assert listing.test == (Item("x/2.jpg", 1), Item("y/2.jpg", 0))


def test_without_labels_and_lists_names_are_sorted_and_our_rule_cuts(tmp_path: Path) -> None:
    names = ["007"] * 10 + ["001"] * 10  # texts: the zeros stay
    columns = {"path": [f"{number}.jpg" for number in range(20)], "class name": names, "remark": [1.5] * 20}
    listing = read_own(manifest(tmp_path / "list.csv", columns)).listing
    assert listing.class_names == ("001", "007")
    assert listing.counts() == {"classes": 2, "train": 10, "validation": 4, "test": 6}
    assert {item.label for item in listing.train if int(item.path.split(".")[0]) < 10} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": ["train", "trian", "train", "test", "test"]}, r"row 2: split: must be .* did you mean 'train'"),
        ({"split": ["train", None, "train", "test", "test"]}, r"row 2: split: must be train, val"),
        ({"path": ["../x.jpg", "b", "c", "d", "e"]}, r"row 1: path: must lead from the manifest's folder"),
        ({"path": ["a", "/etc/x.jpg", "c", "d", "e"]}, r"row 2: path: must lead"),
        ({"path": ["a", "x/../../y", "c", "d", "e"]}, r"row 2: path: must lead"),
        ({"path": ["a", "x\\..\\..\\y.jpg", "c", "d", "e"]}, r"row 2: path: must lead"),
        ({"path": ["a", "C:\\y.jpg", "c", "d", "e"]}, r"row 2: path: must lead"),
        ({"path": ["a", "b", "c", "d", "e"]}, r"none of its 5 pictures is there, got 'a'. Fix: paths start at"),
        ({"path": ["a", "C:x.jpg", "c", "d", "e"]}, r"row 2: path: must lead"),
        ({"path": ["a", "b", "c", "d", None]}, r"row 5: path: must be a text"),
        ({"path": ["a", "b", "c", "d", "a"]}, r"row 5: path: is that of row 1 too, got 'a'"),
        ({"class_name": ["cat", "dog", "sea", "cat", "sea"]}, r"row 2: class_name: label 1 is 'cat' in row 1, got 'd"),
        ({"label": [1, 1, 0, 2, 0]}, r"row 4: label: 'cat' is 1 in row 1, got"),
        ({"label": [2, 2, 0, 2, 0]}, r"labels must be 0, 1, 2, ...; none is 1"),
        ({"label": [1, None, 0, 1, 0]}, r"row 2: label: must be 0, 1, 2, ..., .*leave the column out"),
        ({"label": [1, -1, 0, 1, 0]}, r"row 2: label: must be 0"),
        ({"class_name": ["cat", "cat", " ", "cat", "sea"]}, r"row 3: class_name: must be a text"),
        ({"split": ["train", "val", "val", "test", "test"]}, r"'sea_lion' must have training pictures"),
        ({"path": None}, r"must have a column path, got \['label"),
        ({"class_name": None}, r"must have a column class_name"),
        ({"class name": ROWS["class_name"]}, r"has a column twice, got 'class_name'"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_mistakes_in_manifests(tmp_path: Path, change: dict[str, Any], message: str, ending: str) -> None:
    columns = {name: values for name, values in (ROWS | change).items() if values is not None}
    file = manifest(tmp_path / f"list{ending}", columns)
    with pytest.raises(UserError, match=message) as caught:
        read_own(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", b"", "a.csv: cannot be read as CSV"),
        ("a.csv", b"path,class_name\nx,\xff\xfe\n", "a.csv: cannot be read as CSV"),
        ("a.csv", b"path,class_name\nx,y\nx\n", "a.csv: cannot be read as CSV .*Row #3: Expected 2 columns, got 1"),
        ("a.csv", b"path|class_name\nx|y\n", "must have a column path, .* Fix: separate columns by commas"),
        ("a.csv", b"path,class_name\n", "has no training pictures"),
        ("a.parquet", b"", "a.parquet: cannot be read as PARQUET"),
        ("a.parquet", b"PAR1 and no more PAR1", "a.parquet: cannot be read as PARQUET"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_own(tmp_path / file)


# dataset.yaml --------------------------------------------------------------------------------------------------------


def test_settings_name_classes_and_set_the_template(tmp_path: Path) -> None:
    pictures(tmp_path, {"n01": 4, "n02": 4, "7": 4})
    write(tmp_path / "dataset.yaml", "class_names: {n02: sea_lion, 7: seven}\ntemplate: 'a {} at sea.'\n")
    own = read_own(tmp_path)
    assert own.listing.class_names == ("seven", "n01", "sea lion")  # labels follow the folders
    assert own.template == "a {} at sea."


def test_settings_lead_to_a_manifest(tmp_path: Path) -> None:
    manifest(tmp_path / "list.csv", ROWS)
    write(tmp_path / "dataset.yaml", "manifest: list.csv\nclass_names: {cat: tom cat}\n")
    assert read_own(tmp_path).listing.class_names == ("sea lion", "tom cat")
    assert read_own(tmp_path) == read_own(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be keys and values, of class_names, template, manifest"),
        ("templat: x", "unknown key, got 'templat'. Fix: did you mean 'template'?"),
        ("template: a photo", r"template: must be a text with exactly one {}.* got 'a photo'"),
        ("template: '{} and {}'", "exactly one {}"),
        ("template: '{} {0}'", "exactly one {}"),
        ("template: 3", "exactly one {}"),
        ("class_names: [a]", "class_names: must map each folder to a name"),
        ("class_names: {b: 3}", "class_names: b: the name must be a text, got 3. Fix: write it in quotes"),
        ("class_names: {true: x}", "class_names: a folder must be a text, got True"),
        ("class_names: {alfa: x}", "class_names: is no class, got 'alfa'. Fix: did you mean 'alpha'?"),
        ("class_names: {alpha: b}", "labels 0 and 1 have one name, got 'b'"),
        ("manifest: lost.csv", "manifest: there is no such file, got 'lost.csv'. Fix: did you mean 'list.csv'"),
        ("manifest: ../list.csv", "manifest: must be a file in this folder"),
        ("a: [", "dataset.yaml, line 1.*is not valid YAML"),
    ],
)
def test_mistakes_in_settings(tmp_path: Path, text: str, message: str) -> None:
    pictures(tmp_path, {"alpha": 4, "b": 4})
    write(tmp_path / "list.csv", "")
    write(tmp_path / "dataset.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        read_own(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_own_pictures_can_be_read(tmp_path: Path) -> None:
    own = read_own(pictures(tmp_path / "data", {"a": 4, "b": 4}))
    dataset = dataset_on_disk("mine", own.listing, own.template, "the user's", Store(tmp_path / "store"))
    split = dataset.train.open(ImageTransform(28))
    assert split.pixels().shape == (4, 3, 28, 28) and split.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".git", ".ipynb_checkpoints"])
def test_what_systems_leave_in_folders_is_no_class(tmp_path, name):
    plain = read_own(pictures(tmp_path / "plain", {"one": 6, "two": 6})).listing
    folder = pictures(tmp_path / "cluttered", {"one": 6, "two": 6, name: 1})
    (folder / "one" / name).mkdir()
    found = read_own(folder)
    assert found.listing.class_names == plain.class_names == ("one", "two")
    assert found.listing.counts() == plain.counts()
    noted = [warning for warning in found.warnings if repr(name) in warning]
    assert len(noted) == (0 if name.startswith(".") else 1)


@pytest.mark.parametrize(
    "pair",
    [
        ("Cat", "cat"),
        ("sea__lion", "sea_lion"),
        ("a&amp;b", "a&b"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_two_classes_that_are_one_to_the_text_tower_are_refused(tmp_path, pair):
    folder = pictures(tmp_path / "mine", dict.fromkeys(pair, 6) | {"other": 6})
    with pytest.raises(UserError, match="are one to the text tower") as refused:
        read_own(folder)
    assert all(repr(name.replace("_", " ")) in str(refused.value) for name in pair)


def test_a_manifest_as_other_tools_write_it(tmp_path):
    """Blanks after commas and around names, ./ before paths, labels that pandas has made floats of."""
    pictures(tmp_path, {"one": 6, "007": 6})
    rows = [(f"{name}/{n}.jpg", label, name) for label, name in enumerate(("one", "007")) for n in range(6)]
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv"
    plain.write_text("path,label,class_name\n" + "".join(f"{path},{label},{name}\n" for path, label, name in rows))
    other.write_text(
        "path, label, class_name\n" + "".join(f"./{path}, {label}.0, {name} \n" for path, label, name in rows)
    )
    expected, found = read_own(plain).listing, read_own(other).listing
    assert found.class_names == expected.class_names == ("one", "007")
    assert (found.train, found.validation, found.test) == (expected.train, expected.validation, expected.test)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda text, folder: text.replace(",", ";"), None),
        (lambda text, folder: text.replace(",", "\t"), None),
        (lambda text, folder: "\ufeff" + text, None),
        (lambda text, folder: text.replace("/", "\\"), "m.csv: backslashes read as slashes: 12 of 12"),
        (
            lambda text, folder: text.replace("\none/", f"\n{folder}/one/"),
            "m.csv: absolute paths below its folder: 6 of 12",
        ),
        (
            lambda text, folder: text.replace("1.jpg", "1.JPG"),
            "m.csv: 2 files have other capitals than listed, such as",
        ),
    ],
    ids=["semicolons", "tabs", "byte-order mark", "backslashes", "absolute", "capitals"],
)
def test_a_manifest_that_can_be_read_in_one_way_alone_is_read(tmp_path, change, note):
    pictures(tmp_path, {"one": 6, "two": 6})
    text = "path,class_name\n" + "".join(f"{name}/{n}.jpg,{name}\n" for name in ("one", "two") for n in range(1, 7))
    (tmp_path / "m.csv").write_text(text)
    plain = read_own(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(change(text, tmp_path), encoding="utf-8")
    found = read_own(tmp_path / "m.csv")
    assert found.listing == plain.listing and not plain.warnings
    assert [w[: len(note)] for w in found.warnings] == [note] if note else not found.warnings


def test_two_files_that_differ_in_capitals_alone_are_not_confused(tmp_path):
    pictures(tmp_path, {"one": 6, "two": 6})
    picture(tmp_path / "one" / "1.JPG")
    rows = "".join(
        f"{name}/{n}.{end},{name}\n" for name in ("one", "two") for n in range(1, 7) for end in ("jpg", "Jpg")
    )
    (tmp_path / "m.csv").write_text("path,class_name\n" + rows)
    listing = read_own(tmp_path / "m.csv").listing
    assert "one/1.Jpg" in {item.path for part in (listing.train, listing.validation, listing.test) for item in part}


@pytest.mark.parametrize("below", ["pets", "."])
def test_a_manifest_beside_the_wrong_folder_says_where_the_pictures_are(tmp_path, below):
    folder = tmp_path / "list"
    pictures(folder / below if below != "." else tmp_path, {"one": 6, "two": 6})
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{name}/{n}.jpg,{name}\n" for name in ("one", "two") for n in range(1, 7))
    (folder / "m.csv").write_text("path,class_name\n" + rows)
    with pytest.raises(UserError) as caught:
        read_own(folder / "m.csv")
    there = folder / below if below != "." else tmp_path
    assert f"and the pictures are below {there}: move the manifest there" in str(caught.value)


def test_a_folder_one_level_too_high_or_too_deep_is_told(tmp_path):
    pictures(tmp_path / "pets" / "pets", {"one": 6, "two": 6})
    with pytest.raises(UserError, match=r"holds one folder, 'pets', .* Fix: --dataset .*/pets/pets$"):
        read_own(tmp_path / "pets")
    with pytest.raises(
        UserError, match=r"must hold a folder per class. Fix: did you mean the folder above, .*pets/pets\?"
    ):
        read_own(tmp_path / "pets" / "pets" / "one")
    for part in ("train", "test"):
        pictures(tmp_path / "divided" / part, {"one": 6, "two": 6})
    assert read_own(tmp_path / "divided").warnings == ()
    (note,) = read_own(tmp_path / "divided" / "train").warnings
    assert note.endswith(f"{tmp_path}/divided has them all")


def test_all_that_is_wrong_with_folders_is_told_in_one_round_with_counts(tmp_path):
    folder = pictures(tmp_path / "pets", {"cat": 12, "dog": 2, "fish/deep": 3, "one": 6, ".": 1})
    (folder / "empty").mkdir()
    (folder / "one" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_own(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    for line, part in zip(
        lines,
        [
            "has pictures beside its folders: '1.jpg'",
            "/empty: has no pictures",
            "/fish: must hold pictures only; there are folders in it: 'deep'",
            "/one: a name is not UTF-8: 'caf\\xe9.png'. Fix: rename, for example by: convmv",
            "class 'dog' (dog/1.jpg, ...): has too few pictures to divide",
            "pictures found: cat 12, dog 2, empty 0, fish 0, one 7",
        ],
        strict=True,
    ):
        assert part in line

"""Every data set of the catalogue, read from files in its own format; expectations are worked out by hand."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ammpl.data import layouts
from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.description import Description, shared_pictures
from ammpl.data.listing import Item, Listing
from ammpl.data.split_file import Entry
from ammpl.data.task import base_and_new
from ammpl.errors import UserError
from tests.data import on_disk

NAMES = {
    "oxford_pets": ["abyssinian", "american bulldog", "basset hound"],
    "oxford_flowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "food101": ["apple pie", "baby back ribs"],
    "fgvc_aircraft": ["707-320", "Cessna 172", "F-16A/B"],
    # Capitals first; the ignored folders have no label.
    "caltech101": ["face", "leopard", "motorbike", "accordion", "airplane", "crocodile head"],
    "eurosat": [
        "Annual Crop Land",
        "Forest",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Industrial Buildings",
        "Pasture Land",
        "Permanent Crop Land",
        "Residential Buildings",
        "River",
        "Sea or Lake",
    ],
    "dtd": ["banded", "blotchy"],
    "ucf101": ["Apply Eye Makeup", "Handstand Pushups", "Yo Yo"],
    "sun397": ["abbey", "airplane cabin", "indoor apse"],
    "stanford_cars": ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TTS Coupe"],
    "imagenet": ["tench", "goldfish", "missile", "missile"],
    "imagenetv2": [
        "tench",
        "goldfish",
        "great white shark",
        "tiger shark",
        "hammerhead shark",
        "electric ray",
        "stingray",
        "rooster",
        "hen",
        "ostrich",
        "missile",
        "missile",
    ],
    "imagenet_a": ["stingray", "missile"],
    "imagenet_r": ["goldfish", "great white shark"],
}
NAMES["imagenet_sketch"] = NAMES["imagenetv2"]

# Without the split file: per class (train, validation, test), by Python's rounding. 80/20: 5 -> round(1.0) = 1 to
# validate; 8 -> round(1.6) = 2; 3 -> round(0.6) = 1. 50/20/30: 5 -> round(2.5) = 2, 1; 7 -> round(3.5) = 4, 1;
# 15 -> round(7.5) = 8, 3; 6 -> 3, 1; 10 -> 5, 2; 4 -> 2, 1. Ties go to the even number.
FALLBACK = {
    "oxford_pets": [(4, 1, 2), (4, 1, 2), (6, 2, 2)],
    "oxford_flowers": [(4, 1, 2), (2, 1, 1), (2, 1, 2)],
    "food101": [(2, 1, 2), (8, 3, 4)],
    "caltech101": [(2, 1, 2), (3, 1, 2), (2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    "eurosat": [(2, 1, 1)] * 10,
    "dtd": [(5, 2, 3), (2, 1, 1)],
    "ucf101": [(4, 1, 1), (3, 1, 1), (2, 1, 1)],
    "sun397": [(4, 1, 1)] * 3,
    "stanford_cars": [(4, 1, 1)] * 3,
}
OFFICIAL = {
    "fgvc_aircraft": [(1, 1, 1)] * 3,
    "imagenet": [(3, 2, 2)] * 4,
    "imagenetv2": [(0, 0, 2)] * 12,
    "imagenet_sketch": [(0, 0, 1)] * 12,
    "imagenet_a": [(0, 0, 2), (0, 0, 1)],
    "imagenet_r": [(0, 0, 1), (0, 0, 2)],
}
WITH_SPLIT_FILE = sorted(FALLBACK)


def per_class(listing: Listing) -> list[tuple[int, ...]]:
    lists = (listing.train, listing.validation, listing.test)
    return [
        tuple(sum(item.label == label for item in items) for items in lists)
        for label in range(len(listing.class_names))
    ]


def expected_labels(name: str) -> dict[str, int]:
    return {
        path: label
        for label, of_class in enumerate(on_disk.ARCHIVES[name].classes)
        for path in of_class.trainval + of_class.test
    }


@pytest.mark.parametrize("published", [True, False], ids=["split_file", "annotations"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_contract(name: str, published: bool, tmp_path: Path) -> None:
    description = DESCRIPTIONS[name]
    folder = on_disk.build(name, tmp_path, published=published)
    listing = description.read(tmp_path)

    assert list(listing.class_names) == NAMES[name]
    everything = listing.train + listing.validation + listing.test
    labels = expected_labels(name)
    assert all(labels[item.path] == item.label for item in everything)
    assert {item.path for item in everything} == set(labels)
    for item in everything:
        with Image.open(listing.folder / item.path) as image:
            image.load()
    assert not shared_pictures(listing)
    if name == "imagenet":
        assert listing.validation == listing.test
    else:
        assert len(everything) == len(set(everything))

    if published and name in FALLBACK:
        split = json.loads((folder / str(description.split_file)).read_text())
        assert listing.split_source == description.split_file
        assert [list(item) for item in listing.train] == [row[:2] for row in split["train"]]
        assert [list(item) for item in listing.validation] == [row[:2] for row in split["val"]]
        assert [list(item) for item in listing.test] == [row[:2] for row in split["test"]]
    else:
        assert per_class(listing) == (FALLBACK | OFFICIAL)[name]
        ours = "(our fallback, seed 1: not the published split)" in listing.split_source
        assert ours == (name in FALLBACK)
        assert any("do not compare" in warning for warning in description.warnings(listing)) == ours


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_split_file_alone_defines_the_lists(name: str, tmp_path: Path) -> None:
    """Annotations beside it, even broken ones, are never opened."""
    folder = on_disk.build(name, tmp_path, published=True)
    before = DESCRIPTIONS[name].read(tmp_path)
    for file in DESCRIPTIONS[name].annotations:
        on_disk.write(folder / file, "broken\0")
    assert DESCRIPTIONS[name].read(tmp_path) == before


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_listings_do_not_depend_on_the_file_system(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.build(name, tmp_path, published=False)
    before = DESCRIPTIONS[name].read(tmp_path)
    scandir = os.scandir

    class Backwards:
        """What os.scandir returns, in another order."""

        def __init__(self, path: str) -> None:
            with scandir(path) as found:
                self.entries = list(found)
            random.Random(7).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert DESCRIPTIONS[name].read(tmp_path) == before


def test_the_fallback_is_this_one(tmp_path: Path) -> None:
    """Frozen: another division would silently make other numbers."""
    on_disk.build("dtd", tmp_path, published=False)
    listing = DESCRIPTIONS["dtd"].read(tmp_path)
    # random.Random(1) shuffles banded_0001..0010, then blotchy_0001..0004: 5 + 2, 2 + 1, the rest.
    stream = random.Random(1)
    banded, blotchy = list(range(1, 11)), list(range(1, 5))
    stream.shuffle(banded)
    stream.shuffle(blotchy)
    number = [int(item.path[-8:-4]) for item in listing.train + listing.validation + listing.test]
    assert number == banded[:5] + blotchy[:2] + banded[5:7] + blotchy[2:3] + banded[7:] + blotchy[3:]
    assert [item.path for item in listing.train[:3]] == [
        "banded/banded_0007.jpg",
        "banded/banded_0009.jpg",
        "banded/banded_0010.jpg",
    ]


def test_trainval_is_cut_as_published(tmp_path: Path) -> None:
    """The first round(0.2 n) of each shuffled class validate."""
    on_disk.build("oxford_pets", tmp_path, published=False)
    listing = DESCRIPTIONS["oxford_pets"].read(tmp_path)
    stream = random.Random(1)
    shuffled = []
    for count in (5, 5, 8):
        shuffled.append(list(range(1, count + 1)))
        stream.shuffle(shuffled[-1])
    number = [int(item.path.rpartition("_")[2][:-4]) for item in listing.validation + listing.train]
    first, second, third = shuffled
    assert number == first[:1] + second[:1] + third[:2] + first[1:] + second[1:] + third[2:]


def test_ratios_round_ties_to_even() -> None:
    def divided(count: int) -> list[int]:
        entries = [Entry(f"{number}.jpg", 0, "a") for number in range(count)]
        lists = layouts.deal(entries, {"train": 0.5, "validation": 0.2}, "test", random.Random(1))
        return [len(lists["train"]), len(lists["validation"]), len(lists["test"])]

    assert [divided(count) for count in (5, 7, 9, 13)] == [[2, 1, 2], [4, 1, 2], [4, 2, 3], [6, 3, 4]]
    with pytest.raises(UserError, match=r"class 'a' .*: has too few pictures to divide .*, got 3"):
        divided(3)  # round(1.5) = 2, round(0.6) = 1, none to test


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_folders_at_another_level_are_told(name: str, tmp_path: Path) -> None:
    description = DESCRIPTIONS[name]
    root = tmp_path / "root"
    folder = on_disk.build(name, root, published=False)
    with pytest.raises(UserError) as caught:
        description.read(folder)
    assert str(caught.value).endswith(f"Fix: did you mean --data-root {root}?")

    folder.rename(tmp_path / "aside")
    folder.mkdir()
    (tmp_path / "aside").rename(folder / folder.name)
    with pytest.raises(UserError) as caught:
        description.read(root)
    assert str(caught.value).endswith(f"Fix: move what is in {folder.name}/{folder.name} one level up")

    if inner := Path(description.images).name:  # unpacked into a folder of the archive's name
        root = tmp_path / "unpacked"
        images = on_disk.build(name, root, published=False) / description.images
        (images / inner).mkdir()
        with pytest.raises(UserError, match=f"holds a folder '{inner}', .* Fix: move them one level up"):
            description.read(root)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_is_missing_is_said_with_the_layout(name: str, tmp_path: Path) -> None:
    description = DESCRIPTIONS[name]
    with pytest.raises(UserError) as nothing:
        description.read(tmp_path)
    text = str(nothing.value)
    assert text.startswith(f"{description.title} in {tmp_path}: files are missing. Expected there:\n")
    assert f"\nMissing: {description.folder}/. Fix: --data-root DIR or AMMPL_DATA_ROOT" in text
    for path in (description.split_file or "", *description.annotations, *description.pictures, description.images):
        assert path in text

    folder = on_disk.build(name, tmp_path, published=False)
    for file in description.annotations:
        (folder / file).rename(folder / "aside")
        with pytest.raises(UserError, match=f"Missing: {description.folder}/{file}. Fix"):
            description.read(tmp_path)
        (folder / "aside").rename(folder / file)
    shutil.rmtree(folder / (*description.pictures, description.images)[0])
    with pytest.raises(
        UserError, match=f"Missing: {description.folder}/{(*description.pictures, description.images)[0]}"
    ):
        description.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "oxford_pets",
            "annotations/test.txt",
            "Abyssinian_1 1 1\n",
            r"test.txt line 1: must look like 'Abyssinian_100",
        ),
        ("oxford_pets", "annotations/test.txt", "\nAbyssinian_1 one 1 1\n", r"test.txt line 2: must look like"),
        ("oxford_pets", "annotations/test.txt", "Pug_1 9 1 1\n", r"test\[0\]: the label is not among the classes"),
        ("oxford_pets", "annotations/test.txt", "Pug_1 1 1 1\n", r"label 0 has the name 'abyssinian' elsewhere, got"),
        ("oxford_pets", "annotations/test.txt", "../Abyssinian_1 1 1 1\n", r"test\[0\]: the path must be relative"),
        ("oxford_pets", "annotations/trainval.txt", "", r"OxfordPets, .*: train: names no picture"),
        ("oxford_pets", "annotations/test.txt", "\xff", r"test.txt: must be UTF-8"),
        (
            "fgvc_aircraft",
            "images_variant_val.txt",
            "1 Concorde\n",
            r"val.txt line 1: the class is not in the data set's",
        ),
        (
            "fgvc_aircraft",
            "images_variant_val.txt",
            "1\n",
            r"val.txt line 1: must look like '1025794 707-320', got '1'",
        ),
        (
            "ucf101",
            "ucfTrainTestlist/classInd.txt",
            "YoYo\n",
            r"line 1: must be '<number from 1> <class>', got 'YoYo'",
        ),
        ("ucf101", "ucfTrainTestlist/testlist01.txt", "YoYo.avi\n", r"testlist01.txt line 1: must look like 'YoYo/v_"),
        ("sun397", "Testing_01.txt", "/z/zoo/sun_1.jpg", r"Testing_01.txt line 1: the class is not in the data set's"),
        (
            "oxford_flowers",
            "imagelabels.mat",
            "no",
            r"imagelabels.mat: must be a MATLAB file with the variable labels",
        ),
        (
            "oxford_flowers",
            "cat_to_name.json",
            '{"1": "rose"}',
            r"cat_to_name.json: must be an object that names every",
        ),
        (
            "stanford_cars",
            "devkit/cars_meta.mat",
            "",
            r"cars_meta.mat: must be a MATLAB file with the variable class_n",
        ),
        (
            "imagenet",
            "classnames.txt",
            "n01440764\n",
            r"classnames.txt line 1: must be '<WordNet id> <class name>', got",
        ),
        ("imagenet_r", "classnames.txt", "n01440764 tench\n", r"must name every folder of pictures, got 'n01443537'"),
        ("imagenetv2", "classnames.txt", "n01440764 tench\n", r"val/1: must be the number of a row of classnames.txt"),
        ("imagenet", "images/val/n99999999/a.JPEG", "", r"n99999999: has no counterpart in .*images/train"),
        ("dtd", "images/empty/.hidden", "", r"images/empty: has no pictures"),
        ("dtd", "images/few/a.jpg", "", r"class 'few' .*has too few pictures to divide among train, validation, test"),
    ],
)
def test_broken_annotations(name: str, file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = on_disk.build(name, tmp_path, published=False)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        DESCRIPTIONS[name].read(tmp_path)


def test_a_matlab_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    folder = on_disk.build("stanford_cars", tmp_path, published=False)
    file = folder / "cars_test_annos_withlabels.mat"
    content = file.read_bytes()
    for length in range(0, len(content), 16):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"withlabels.mat: must (be a MATLAB file|hold)"):
            DESCRIPTIONS["stanford_cars"].read(tmp_path)


def test_a_dangling_split_file_is_not_a_wish_for_the_fallback(tmp_path: Path) -> None:
    folder = on_disk.build("oxford_pets", tmp_path, published=False)
    (folder / "split_zhou_OxfordPets.json").symlink_to("gone.json")
    with pytest.raises(UserError, match=r"OxfordPets: .*OxfordPets.json: cannot be read \(No such file or directory"):
        DESCRIPTIONS["oxford_pets"].read(tmp_path)


def test_a_picture_that_is_a_dangling_link_stays_in_the_list(tmp_path: Path) -> None:
    """Nothing is dropped silently: whoever opens it will say so."""
    folder = on_disk.build("dtd", tmp_path, published=False)
    (folder / "images/banded/banded_0011.jpg").symlink_to("gone.jpg")
    assert sum(DESCRIPTIONS["dtd"].read(tmp_path).counts().values()) == 2 + 14 + 1


def test_warnings(tmp_path: Path) -> None:
    pets = DESCRIPTIONS["oxford_pets"]
    on_disk.build("oxford_pets", tmp_path, published=False)
    assert pets.warnings(pets.read(tmp_path)) == (
        "OxfordPets: split_zhou_OxfordPets.json is not there, so that results do not compare with published ones; the"
        " lists come from annotations/trainval.txt split 80/20 per class, annotations/test.txt (our fallback, seed 1:"
        " not the published split)",
        "OxfordPets: classes: 3 found, 37 expected",
        "OxfordPets: train: 14 found, 2944 expected",
        "OxfordPets: validation: 4 found, 736 expected",
        "OxfordPets: test: 6 found, 3669 expected",
    )


def test_pictures_in_two_lists_are_told() -> None:
    def items(*paths: str) -> tuple[Item, ...]:
        return tuple(Item(path, 0) for path in paths)

    listing = Listing(Path(), ("a",), items("1", "2", "2"), items("3"), items("1", "2", "4"), "")
    assert shared_pictures(listing) == [
        "1 picture more than once in train, the first is 2",
        "2 pictures in train and in test, the first is 1",
    ]


def test_descriptions_are_complete() -> None:
    assert len(DESCRIPTIONS) == 15
    for name, description in DESCRIPTIONS.items():
        assert isinstance(description, Description) and description.name == name
        assert description.template.count("{}") == 1
        base, new = description.sizes.base_test, description.sizes.new_test
        assert base is None or new is None or base + new == description.sizes.test


def test_documents_agree() -> None:
    docs = Path(__file__).parents[2] / "docs"
    protocol, data = ((docs / file).read_text(encoding="utf-8") for file in ("protocol.md", "data.md"))
    for description in DESCRIPTIONS.values():
        sizes = description.sizes
        cells = [description.title, *(f"{size:,}" if size else "–" for size in sizes[:4])]
        if sizes.base_test is not None and sizes.new_test is not None:
            base, new = base_and_new(sizes.classes)
            cells += [f"{len(base)} / {sizes.base_test:,}", f"{len(new)} / {sizes.new_test:,}"]
        else:
            cells += ["–", "–"]
        assert f"| {' | '.join(cells)} |" in protocol
        row = [f"`{description.name}`", description.title, f"`{description.template}`", description.source]
        assert f"| {' | '.join(row)} |" in data
        assert description.layout in data

"""Small data sets in the exact formats of the real archives: a few classes, pictures of a few pixels.

``build(name, root, published=True)`` writes the pictures and the published split file, without any annotation;
``published=False`` writes the archive's own annotations instead, where there are any.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat


class Class(NamedTuple):
    """A class of a fixture: its name as split files write it, and its pictures."""

    name: str
    trainval: list[str]
    test: list[str]


def numbered(pattern: str, first: int, last: int) -> list[str]:
    return [pattern.format(number) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Archive:
    """A fixture: where it lies, its classes in the order of their labels, and what else the real archive holds."""

    folder: str
    images: str
    classes: Sequence[Class]
    annotate: Callable[[Path], None] = lambda folder: None
    split_file: str | None = None


def picture(path: Path) -> None:
    """Write 8x6 real pixels, of a colour of the file's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue, _ = zlib.crc32(path.name.encode()).to_bytes(4)
    Image.new("RGB", (8, 6), (red, green, blue)).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")


def build(name: str, root: Path, *, published: bool) -> Path:
    """Write a fixture and return its folder."""
    archive = ARCHIVES[name]
    folder = root / archive.folder
    for of_class in archive.classes:
        for path in of_class.trainval + of_class.test:
            picture(folder / archive.images / path)
    if not published or archive.split_file is None:
        archive.annotate(folder)
    else:
        write(folder / archive.split_file, json.dumps(split_of(archive)))
    return folder


def split_of(archive: Archive) -> dict[str, list[tuple[str, int, str]]]:
    """The last picture of each class tests, the one before validates; labels do not appear in order."""
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for label, of_class in reversed(list(enumerate(archive.classes))):
        entries = [(path, label, of_class.name) for path in of_class.trainval + of_class.test]
        split["train"] += entries[:-2]
        split["val"] += entries[-2:-1]
        split["test"] += entries[-1:]
    return split


# Annotations as the archives have them -------------------------------------------------------------------------------


def annotate_pets(folder: Path) -> None:
    for part, file in (("trainval", "trainval.txt"), ("test", "test.txt")):
        lines = [
            f"{Path(path).stem} {label} 2 1"
            for label, of_class in enumerate(PETS, start=1)
            for path in getattr(of_class, part)
        ]
        write(folder / "annotations" / file, "\n".join(lines) + "\n")


def annotate_flowers(folder: Path) -> None:
    # Pictures are numbered through; classes do not come in order, as in the real file.
    labels = [3] * 5 + [1] * 7 + [2] * 4
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)}, do_compression=True)
    names = {"2": "hard-leaved pocket orchid", "1": "pink primrose", "3": "canterbury bells"}
    write(folder / "cat_to_name.json", json.dumps(names))


def annotate_aircraft(folder: Path) -> None:
    write(folder / "variants.txt", "707-320\nCessna 172\nF-16A/B\n")
    for part, chosen in (("train", slice(0, 1)), ("val", slice(1, 2)), ("test", slice(2, 3))):
        pairs = [
            (path, of_class.name) for of_class in AIRCRAFT for path in (of_class.trainval + of_class.test)[chosen]
        ]
        lines = [f"{Path(path).stem} {name}\n" for path, name in pairs]
        write(folder / f"images_variant_{part}.txt", "".join(lines))


def annotate_caltech(folder: Path) -> None:
    for path in ("BACKGROUND_Google/image_0001.jpg", "Faces_easy/image_0001.jpg"):
        picture(folder / "101_ObjectCategories" / path)
    write(folder / "101_ObjectCategories/BACKGROUND_Google/tmp", "")


def annotate_food(folder: Path) -> None:
    write(folder / "meta/train.txt", "apple_pie/1\n")
    write(folder / "README.txt", "")


def annotate_dtd(folder: Path) -> None:
    write(folder / "images/banded/.directory", "")
    write(folder / "labels/train1.txt", "banded/banded_0002.jpg\n")


def annotate_ucf(folder: Path) -> None:
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n")
    actions = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    train, test = [], []
    for label, (action, of_class) in enumerate(zip(actions, UCF, strict=True), start=1):
        train += [f"{action}/{Path(path).stem}.avi {label}" for path in of_class.trainval]
        test += [f"{action}/{Path(path).stem}.avi" for path in of_class.test]
    write(lists / "trainlist01.txt", "\r\n".join(train) + "\r\n")
    write(lists / "testlist01.txt", "\r\n".join(test) + "\r\n")


def annotate_sun(folder: Path) -> None:
    write(folder / "ClassName.txt", "/a/abbey\n/a/airplane_cabin\n/a/apse/indoor\n")
    for part, file in (("trainval", "Training_01.txt"), ("test", "Testing_01.txt")):
        write(folder / file, "".join(f"/{path}\n" for of_class in SUN for path in getattr(of_class, part)))


def annotate_cars(folder: Path) -> None:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TTS Coupe 2012"]
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)}, do_compression=True)
    for part, file in (("trainval", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        # Every second picture of a class comes in a second round, so that classes are mixed as in the real files.
        found = [(path, label) for label, of_class in enumerate(CARS, start=1) for path in getattr(of_class, part)]
        rows = [(1, 2, 7, 5, label, Path(path).name) for path, label in found[::2] + found[1::2]]
        kinds = [(field, object) for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        annotations = np.array([rows], dtype=kinds).reshape(1, -1)
        savemat(folder / file, {"annotations": annotations}, do_compression=True)


def annotate_wordnet(folder: Path) -> None:
    write(folder / "classnames.txt", "".join(f"{wordnet_id} {name}\n" for wordnet_id, name in WORDNET.items()))


def annotate_rendition(folder: Path) -> None:
    annotate_wordnet(folder)
    write(folder / "imagenet-r/README.txt", "ImageNet-R\n")


# The fixtures --------------------------------------------------------------------------------------------------------

PETS = (
    Class("abyssinian", numbered("Abyssinian_{}.jpg", 1, 5), numbered("Abyssinian_{}.jpg", 201, 202)),
    Class(
        "american_bulldog", numbered("american_bulldog_{}.jpg", 1, 5), numbered("american_bulldog_{}.jpg", 201, 202)
    ),
    Class("basset_hound", numbered("basset_hound_{}.jpg", 1, 8), numbered("basset_hound_{}.jpg", 201, 202)),
)
FLOWERS = (
    Class("pink primrose", numbered("image_{:05d}.jpg", 6, 12), []),
    Class("hard-leaved pocket orchid", numbered("image_{:05d}.jpg", 13, 16), []),
    Class("canterbury bells", numbered("image_{:05d}.jpg", 1, 5), []),
)
FOOD = (
    Class("apple_pie", numbered("apple_pie/{}.jpg", 1, 5), []),
    Class("baby_back_ribs", numbered("baby_back_ribs/{}.jpg", 1, 15), []),
)
AIRCRAFT = (
    Class("707-320", ["1001.jpg", "1002.jpg"], ["1003.jpg"]),
    Class("Cessna 172", ["2001.jpg", "2002.jpg"], ["2003.jpg"]),
    Class("F-16A/B", ["3001.jpg", "3002.jpg"], ["3003.jpg"]),
)
CALTECH = (
    Class("face", numbered("Faces/image_{:04d}.jpg", 1, 5), []),
    Class("leopard", numbered("Leopards/image_{:04d}.jpg", 1, 6), []),
    Class("motorbike", numbered("Motorbikes/image_{:04d}.jpg", 1, 4), []),
    Class("accordion", numbered("accordion/image_{:04d}.jpg", 1, 4), []),
    Class("airplane", numbered("airplanes/image_{:04d}.jpg", 1, 4), []),
    Class("crocodile_head", numbered("crocodile_head/image_{:04d}.jpg", 1, 4), []),
)
EUROSAT = tuple(
    Class(name, numbered(f"{folder}/{folder}_{{}}.jpg", 1, 4), [])
    for folder, name in {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }.items()
)
DTD = (
    Class("banded", numbered("banded/banded_{:04d}.jpg", 1, 10), []),
    Class("blotchy", numbered("blotchy/blotchy_{:04d}.jpg", 1, 4), []),
)
UCF = (
    Class(
        "Apply_Eye_Makeup",
        numbered("Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c{:02d}.jpg", 1, 5),
        numbered("Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c{:02d}.jpg", 1, 1),
    ),
    Class(  # the real archive spells the folder and its clips differently, too
        "Handstand_Pushups",
        numbered("Handstand_Pushups/v_HandStandPushups_g08_c{:02d}.jpg", 1, 4),
        numbered("Handstand_Pushups/v_HandStandPushups_g01_c{:02d}.jpg", 1, 1),
    ),
    Class("Yo_Yo", numbered("Yo_Yo/v_YoYo_g08_c{:02d}.jpg", 1, 3), numbered("Yo_Yo/v_YoYo_g01_c{:02d}.jpg", 1, 1)),
)
SUN = (
    Class("abbey", numbered("a/abbey/sun_a{}.jpg", 1, 5), ["a/abbey/sun_t.jpg"]),
    Class("airplane_cabin", numbered("a/airplane_cabin/sun_b{}.jpg", 1, 5), ["a/airplane_cabin/sun_u.jpg"]),
    Class("indoor apse", numbered("a/apse/indoor/sun_c{}.jpg", 1, 5), ["a/apse/indoor/sun_v.jpg"]),
)
CARS = (
    Class("2000 AM General Hummer SUV", numbered("cars_train/{:05d}.jpg", 1, 5), ["cars_test/00001.jpg"]),
    Class("2012 Acura RL Sedan", numbered("cars_train/{:05d}.jpg", 6, 10), ["cars_test/00002.jpg"]),
    Class("2012 Audi TTS Coupe", numbered("cars_train/{:05d}.jpg", 11, 15), ["cars_test/00003.jpg"]),
)
WORDNET = {  # classnames.txt; the real one has this name twice, too
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "rooster",
    "n01514859": "hen",
    "n01518878": "ostrich",
    "n03773504": "missile",
    "n04008634": "missile",
}
IMAGENET = tuple(
    Class(
        WORDNET[wordnet_id],
        numbered(f"train/{wordnet_id}/{wordnet_id}_{{}}.JPEG", 1, 3),
        numbered(f"val/{wordnet_id}/ILSVRC2012_val_{rank}000000{{}}.JPEG", 1, 2),
    )
    for rank, wordnet_id in enumerate(("n01440764", "n01443537", "n03773504", "n04008634"))
)
V2 = tuple(Class(name, [], [f"{row}/a.jpeg", f"{row}/b.jpeg"]) for row, name in enumerate(WORDNET.values()))
SKETCH = tuple(Class(name, [], [f"{wordnet_id}/sketch_1.JPEG"]) for wordnet_id, name in WORDNET.items())
ADVERSARIAL = (
    Class("stingray", [], ["n01498041/0.001_fox.jpg", "n01498041/0.002_fox.jpg"]),
    Class("missile", [], ["n03773504/0.1_x.jpg"]),
)
RENDITION = (
    Class("goldfish", [], ["n01443537/art_0.jpg"]),
    Class("great white shark", [], ["n01484850/art_0.jpg", "n01484850/toy_1.jpg"]),
)

ARCHIVES = {
    "oxford_pets": Archive("oxford_pets", "images", PETS, annotate_pets, "split_zhou_OxfordPets.json"),
    "oxford_flowers": Archive("oxford_flowers", "jpg", FLOWERS, annotate_flowers, "split_zhou_OxfordFlowers.json"),
    "food101": Archive("food-101", "images", FOOD, annotate_food, "split_zhou_Food101.json"),
    "fgvc_aircraft": Archive("fgvc_aircraft", "images", AIRCRAFT, annotate_aircraft),
    "caltech101": Archive(
        "caltech-101", "101_ObjectCategories", CALTECH, annotate_caltech, "split_zhou_Caltech101.json"
    ),
    "eurosat": Archive("eurosat", "2750", EUROSAT, split_file="split_zhou_EuroSAT.json"),
    "dtd": Archive("dtd", "images", DTD, annotate_dtd, "split_zhou_DescribableTextures.json"),
    "ucf101": Archive("ucf101", "UCF-101-midframes", UCF, annotate_ucf, "split_zhou_UCF101.json"),
    "sun397": Archive("sun397", "SUN397", SUN, annotate_sun, "split_zhou_SUN397.json"),
    "stanford_cars": Archive("stanford_cars", "", CARS, annotate_cars, "split_zhou_StanfordCars.json"),
    "imagenet": Archive("imagenet", "images", IMAGENET, annotate_wordnet),
    "imagenetv2": Archive("imagenetv2", "imagenetv2-matched-frequency-format-val", V2, annotate_wordnet),
    "imagenet_sketch": Archive("imagenet-sketch", "images", SKETCH, annotate_wordnet),
    "imagenet_a": Archive("imagenet-adversarial", "imagenet-a", ADVERSARIAL, annotate_wordnet),
    "imagenet_r": Archive("imagenet-rendition", "imagenet-r", RENDITION, annotate_rendition),
}

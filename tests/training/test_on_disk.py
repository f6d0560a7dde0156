"""Trials on data sets in the published formats, through the store, with a small random backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ammpl.config import resolve
from ammpl.data import decoded
from ammpl.data.home import DataHome
from ammpl.data.registry import open_dataset
from ammpl.data.task import load_task, load_test
from ammpl.data.transform import ImageTransform
from ammpl.errors import UserError
from ammpl.model.backbone import load_backbone, load_preprocessing
from ammpl.training import prepare, run
from tests.training.published import VALUES, VIT, write_published

pytestmark = pytest.mark.usefixtures("small_vit")


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("ammpl", {}),
        ("ammpl", {"model.padding.content": "mean", "model.interaction.direction": "none"}),
        ("ammpl", {"data.augmentation": "none"}),
        ("cocoop", {"training.batch_size": 2}),
        ("coop", {"model.text.length": 4}),
    ],
)
def test_a_trial_is_a_pure_function_of_its_config(method, values, home, tmp_path):
    model = {} if method == "ammpl" else {"model.mask.scope": None}
    chosen = {name: value for name, value in {**VALUES, **model, **values}.items() if value is not None}
    config = resolve(method, chosen)
    ((step, metrics),) = run.train(config, tmp_path / "a", home)
    assert step == 3 and 0 <= metrics["validation/accuracy"] <= 1
    assert [(step, metrics)] == list(run.train(config, tmp_path / "b", home))
    assert (tmp_path / "a/learnables.safetensors").read_bytes() == (tmp_path / "b/learnables.safetensors").read_bytes()
    record = json.loads((tmp_path / "a/data.json").read_text())
    assert record["dataset"] == "eurosat" and record["split"] == "split_zhou_EuroSAT.json"
    assert record["transform"]["size"] == 32 and record["train_images"] == 14
    assert (record["augmentation"] is None) == (values.get("data.augmentation") == "none")
    assert "EuroSAT: train: 21 found, 13500 expected" in record["warnings"]
    ((_, tested),) = run.test(config, tmp_path / "a/learnables.safetensors", tmp_path, home)
    assert tested["test/accuracy"] * 14 == pytest.approx(round(tested["test/accuracy"] * 14))


def test_crops_change_what_is_learned(home, tmp_path):
    for augmentation in ("crop_and_mirror", "none"):
        list(run.train(resolve("ammpl", VALUES | {"data.augmentation": augmentation}), tmp_path / augmentation, home))
    one, other = ((tmp_path / name / "learnables.safetensors").read_bytes() for name in ("crop_and_mirror", "none"))
    assert one != other


@pytest.mark.gpu
def test_on_a_gpu_crops_are_made_there(home, tmp_path, monkeypatch):
    made = []
    views = decoded.resize_crops
    monkeypatch.setattr(decoded, "resize_crops", lambda *args: made.append(views(*args)) or made[-1])
    ((_, metrics),) = run.train(resolve("ammpl", VALUES), tmp_path, home)
    assert np.isfinite(metrics["train/loss"])
    assert len(made) >= VALUES["training.steps"] and all(pixels.is_cuda for pixels in made)


def test_transfer_scores_every_target_among_its_own_names(home, tmp_path):
    write_published(home.root, "sun397", "SUN397", "split_zhou_SUN397.json", ("abbey", "river"))
    config = resolve("ammpl", VALUES | {"data.task": "cross_dataset", "data.targets": "dtd, sun397"})
    list(run.train(config, tmp_path, home))
    ((_, metrics),) = run.test(config, tmp_path / "learnables.safetensors", tmp_path, home)
    assert metrics["test/target_accuracy"] == (metrics["test/dtd_accuracy"] + metrics["test/sun397_accuracy"]) / 2
    own = resolve("ammpl", VALUES)
    ((_, alone),) = run.test(own, tmp_path / "learnables.safetensors", tmp_path, home)
    assert metrics["test/accuracy"] == alone["test/accuracy"]  # its own test list is scored as ever, beside them
    lists = load_test(config.data, ImageTransform(32), home)
    assert lists["dtd"].split.class_names == ("banded", "river") and lists["dtd"].template == "{} texture."


def test_zero_shot_reads_every_target_with_its_own_sentence(home, tmp_path):
    values = {name: value for name, value in VALUES.items() if name.startswith(("backbone", "data"))}
    there = resolve("zero_shot", values | {"data.name": "dtd"})
    from_here = resolve("zero_shot", values | {"data.task": "cross_dataset", "data.targets": "dtd"})
    ((_, expected),) = run.test(there, None, tmp_path, home)
    ((_, found),) = run.test(from_here, None, tmp_path, home)
    assert found["test/dtd_loss"] == expected["test/loss"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.targets": "dtb"}, "data.targets: unknown data set or folder, got 'dtb'. Fix: did you mean 'dtd'?"),
        ({}, "Caltech101 in .*missing. Expected there"),
        ({"data.targets": "dtd,"}, "data.targets: must be names joined by commas, got 'dtd,'"),
        ({"data.targets": "eurosat"}, "data.targets: names what is trained on, which is tested anyway, got 'eurosat'"),
        ({"data.targets": "dtd,dtd"}, "data.targets: names two data sets whose figures would be called alike"),
    ],
)
def test_targets_are_looked_for_before_any_training(values, message, home):
    with pytest.raises(UserError, match=message):
        run.preflight(resolve("ammpl", VALUES | {"data.task": "cross_dataset"} | values), home)


def test_pseudo_new_is_tuned_without_new_classes_and_tested_as_base_to_new(home, tmp_path):
    write_published(home.root, "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", tuple("abcdefghij"))
    values = VALUES | {"data.name": "ucf101", "data.task": "pseudo_new"}
    config = resolve("ammpl", values)
    ((_, metrics),) = run.train(config, tmp_path / "tuned", home)
    base, new = metrics["validation/accuracy"], metrics["validation/new_accuracy"]
    above = [max(0, (base - 1 / 3) / (2 / 3)), max(0, (new - 1 / 2) / (1 / 2))]
    expected = 2 * above[0] * above[1] / sum(above) if all(above) else 0
    assert metrics["validation/harmonic_mean"] == pytest.approx(expected)
    ((_, tested),) = run.test(config, tmp_path / "tuned/learnables.safetensors", tmp_path / "test", home)
    published = resolve("ammpl", values | {"data.task": "base_to_new"})
    list(run.train(published, tmp_path / "base", home))
    assert [(0, tested)] == list(run.test(published, tmp_path / "base/learnables.safetensors", tmp_path, home))


def test_long_training_lists_are_drawn_from_first(home, monkeypatch, tmp_path):
    from ammpl.data import registry

    whole = load_task(resolve("ammpl", VALUES).data, 1, ImageTransform(32), home)
    open_dataset.cache_clear()
    load_task.cache_clear()
    monkeypatch.setattr(registry, "LONGEST_LIST", 0)
    elsewhere = DataHome(home.root, tmp_path)
    drawn = load_task(resolve("ammpl", VALUES).data, 1, ImageTransform(32), elsewhere)
    assert torch.equal(drawn.train.pixels(), whole.train.pixels())
    assert torch.equal(drawn.validation.pixels(), whole.validation.pixels())
    load_task(resolve("ammpl", VALUES).data, 2, ImageTransform(32), elsewhere)
    # Each sample has a place of its own: repeats do not remove each other's.
    assert not list(tmp_path.glob("eurosat/train-????????/*.arrow"))
    assert len(list(tmp_path.glob("eurosat/train-????????-????????/*.arrow"))) == 2
    open_dataset.cache_clear()
    load_task.cache_clear()


def test_imagenet_is_not_tuned_on_its_test_list(tmp_path):
    """The published validation list is the test list."""
    root = tmp_path / "data/imagenet"
    (root / "images").mkdir(parents=True)
    ids = [f"n0000000{number}" for number in range(3)]
    (root / "classnames.txt").write_text("".join(f"{wnid} name {wnid[-1]}\n" for wnid in ids))
    for part, count in (("train", 6), ("val", 2)):
        for label, wnid in enumerate(ids):
            (root / "images" / part / wnid).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((33, 35, 3), 10 * number + 60 * label + (5 if part == "val" else 0), np.uint8)
                Image.fromarray(pixels).save(root / "images" / part / wnid / f"{wnid}_{number}.JPEG")
    home = DataHome(tmp_path / "data", tmp_path / "store")
    config = resolve("ammpl", VALUES | {"data.name": "imagenet", "data.validation_shots": 3})
    task = load_task(config.data, 1, ImageTransform(32), home)
    drawn = [{(int(image.float().mean()), int(label)) for image, label in zip(s.pixels(), s.labels, strict=True)}
             for s in (task.train, task.validation)]  # fmt: skip
    assert len(drawn[0]) == 6 and len(drawn[1]) == 9 and not drawn[0] & drawn[1]
    assert all(value % 10 == 0 or value % 10 == 9 for value, _ in drawn[0] | drawn[1])  # none of val's


def test_prepare_makes_all_that_trials_read(home, tmp_path):
    elsewhere = DataHome(home.root, tmp_path / "store")
    config = resolve("ammpl", VALUES | {"data.task": "cross_dataset", "data.targets": "dtd"})
    told: dict[str, int] = {}

    def bar(part):
        name = f"{part.dataset.name}/{part.name}"
        told[name] = 0
        return lambda done: told.update({name: told[name] + done})

    for part in prepare.parts(config, elsewhere):
        assert part.prepare(bar(part)) == []
    assert told == {"eurosat/train": 21, "eurosat/validation": 14, "eurosat/test": 14, "dtd/test": 4}
    before = {path: path.stat().st_mtime_ns for path in elsewhere.store.rglob("*.arrow")}
    list(run.train(config, tmp_path / "trial", elsewhere))
    list(run.test(config, tmp_path / "trial/learnables.safetensors", tmp_path, elsewhere))
    assert {path: path.stat().st_mtime_ns for path in elsewhere.store.rglob("*.arrow")} == before


@pytest.mark.parametrize(("name", "tag"), [("tiny-glyph", None), (VIT, "random")])
def test_preprocessing_is_known_without_the_weights(name, tag):
    config = resolve("ammpl", {"backbone.name": name, "backbone.pretrained": tag}).backbone
    assert load_preprocessing(config) == load_backbone(config).preprocessing


def test_broken_pictures_stop_a_trial_unless_it_may_do_without_them(tmp_path):
    write_published(tmp_path, "dtd", "images", "split_zhou_DescribableTextures.json", ("banded", "river"))
    (tmp_path / "dtd/images/river/train_1.jpg").write_bytes(b"")
    (tmp_path / "dtd/images/banded/test_0.jpg").unlink()
    home = DataHome(tmp_path, tmp_path / "store")
    values = VALUES | {"data.name": "dtd", "data.shots": 3}
    with pytest.raises(UserError, match=r"1 of 6 pictures cannot be read:\n  river/train_1.jpg: the file is empty"):
        run.preflight(resolve("ammpl", values), home)
    config = resolve("ammpl", values | {"data.skip_broken": True})
    notes = [note for part in prepare.parts(config, home) for note in part.prepare()]
    assert notes == [
        "dtd/train: 1 pictures left out:\n  river/train_1.jpg: the file is empty",
        "dtd/test: 1 pictures left out:\n  banded/test_0.jpg: the file is not there",
    ]
    task = load_task(config.data, 1, ImageTransform(32), home)
    assert torch.bincount(task.train.labels).tolist() == [3, 2]
    ((_, metrics),) = run.test(resolve("zero_shot", {**dict(list(values.items())[:4]), "data.skip_broken": True}),
                               None, tmp_path, home)  # fmt: skip
    assert metrics["test/accuracy"] * 3 == pytest.approx(round(metrics["test/accuracy"] * 3))


def lists(root: Path, train, val, test) -> DataHome:
    """A data set whose lists hold these labels, two pictures each."""
    write_published(root, "dtd", "images", "split_zhou_DescribableTextures.json", tuple("abcdefghij"))
    file = root / "dtd/split_zhou_DescribableTextures.json"
    split = json.loads(file.read_text())
    kept = {part: [entry for entry in split[part] if entry[1] in labels]
            for part, labels in (("train", train), ("val", val), ("test", test))}  # fmt: skip
    file.write_text(json.dumps(kept))
    return DataHome(root, root / "store")


@pytest.mark.parametrize(
    ("task", "val", "test", "message"),
    [
        ("base_to_new", range(10), range(5), "dtd/test: has no picture of the classes to score: f, g, h"),
        ("base_to_new", range(5, 10), range(10), "has no validation image of the trained classes"),
        ("pseudo_new", range(2, 10), range(10), "has no validation image held out"),
    ],
)
def test_lists_that_lack_what_is_scored_are_found_before_training(task, val, test, message, tmp_path):
    home = lists(tmp_path, range(10), val, test)
    holdout = {"data.holdout": 0} if task == "pseudo_new" else {}
    with pytest.raises(UserError, match=message):
        run.preflight(resolve("ammpl", VALUES | {"data.name": "dtd", "data.task": task} | holdout), home)


def test_a_validation_list_may_lack_a_class(tmp_path):
    home = lists(tmp_path, range(10), range(1, 10), range(10))
    ((_, metrics),) = run.train(resolve("ammpl", VALUES | {"data.name": "dtd"}), tmp_path / "trial", home)
    assert "validation/accuracy" in metrics and (tmp_path / "trial/masks.png").exists()


def test_names_that_only_the_test_has_are_read_before_training(tmp_path):
    """The embedded tower does not know every word; new classes and targets are told of at once."""
    names = ("zero", "one", "two", "zebra")
    write_published(tmp_path, "dtd", "images", "split_zhou_DescribableTextures.json", names)
    home = DataHome(tmp_path, tmp_path / "store")
    values = {"data.name": "dtd", "data.shots": 2, "data.task": "base_to_new"}
    with pytest.raises(UserError, match="it has never seen 'zebra'"):
        run.preflight(resolve("ammpl", values), home)
    values = {"data.name": "digits", "data.task": "cross_dataset", "data.targets": "dtd"}
    with pytest.raises(UserError, match="it has never seen 'zebra'"):
        run.preflight(resolve("ammpl", values), home)


def test_a_class_whose_pictures_are_all_broken_is_an_error_even_so(tmp_path):
    write_published(tmp_path, "dtd", "images", "split_zhou_DescribableTextures.json", ("banded", "river"))
    for path in (tmp_path / "dtd/images/river").glob("train_*"):
        path.write_bytes(b"")
    config = resolve("ammpl", VALUES | {"data.name": "dtd", "data.skip_broken": True})
    with pytest.raises(UserError, match="has no training image that can be read of a class, got 'river'"):
        run.preflight(config, DataHome(tmp_path, tmp_path / "store"))

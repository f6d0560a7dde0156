"""A trained trial as a classifier: the numbers of its test, from pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ammpl.config import resolve
from ammpl.data.home import DataHome
from ammpl.data.task import load_test
from ammpl.errors import UserError
from ammpl.model.backbone import load_backbone
from ammpl.training import run
from ammpl.training.checkpoint import FILE
from ammpl.training.classifier import Classifier

SMALL = {"data.shots": 1, "data.validation_shots": 1, "training.steps": 3, "training.evaluate_every": 3}
FORMS = {
    "task scope": ("ammpl", {**SMALL, "model.mask.scope": "task"}),
    "mean colour": ("ammpl", {**SMALL, "model.mask.scope": "task", "model.padding.content": "mean"}),
    "fixed sentence": (
        "ammpl",
        {
            **SMALL,
            "model.mask.scope": "task",
            "model.text.context": "fixed",
            "model.text.template": "the number {}",
            "model.interaction.direction": "none",
            "model.padding.content": "learned",
        },
    ),
    "coop": ("coop", SMALL),
    "zero-shot": ("zero_shot", {"data.shots": 1, "data.validation_shots": 1}),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_has_the_accuracy_of_the_trials_test(form, tmp_path):
    method, values = FORMS[form]
    config = resolve(method, values)
    list(run.train(config, tmp_path))
    [(_, tested)] = run.test(config, tmp_path / FILE, tmp_path)

    transform = run.image_transform(load_backbone(config.backbone).preprocessing)
    [(_, split, _)] = load_test(config.data, transform, DataHome()).values()
    classifier = Classifier(tmp_path / FILE)
    predicted = classifier.predict(split.pixels())
    right = [name == split.class_names[label] for name, label in zip(predicted, split.labels, strict=True)]
    assert sum(right) / len(right) == tested["test/accuracy"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    list(run.train(resolve(*FORMS["task scope"]), folder))
    return folder / FILE


@pytest.fixture(scope="module")
def classifier(path):
    return Classifier(path)


def test_pictures_and_files_are_prepared_as_evaluation_does(classifier, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8), "RGBA")
    picture.save(tmp_path / "a.png")
    pixels = classifier._transform.evaluation_pixels(picture.convert("RGB"))
    from_file, from_memory = classifier.logits([tmp_path / "a.png", picture])
    assert torch.equal(from_file, from_memory)
    assert torch.equal(from_file, classifier.logits(torch.from_numpy(pixels)[None].repeat(2, 1, 1, 1))[0])


def test_probabilities_sum_to_one_over_the_names_asked_for(classifier):
    images = [Image.new("RGB", (28, 28), color) for color in ("black", "white", "gray")]
    names = ["zero", "letter a"]
    probabilities = classifier.probabilities(images, names)
    assert probabilities.shape == (3, 2)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
    assert set(classifier.predict(images, names)) <= set(names)


def test_what_is_no_picture_is_said(classifier, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    for images, message in (
        ([tmp_path / "a.jpg"], "a.jpg: is not a picture that can be read"),
        ([str(tmp_path / "b.jpg")], "b.jpg: is not a picture that can be read"),
        ([], "images: must hold at least one picture"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"images: prepared ones must be uint8 \(B, 3, 28, 28\)"),
        (torch.zeros(1, 3, 28, 28), r"images: prepared ones must be uint8 \(B, 3, 28, 28\), got 'torch.float32"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.predict(images)


def test_a_file_that_is_no_trials_is_said(path, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say which trial it is of"):
        Classifier(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        Classifier(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="no such file of learnables"):
        Classifier(tmp_path / "none.safetensors")


def test_one_picture_an_array_and_names_that_are_none(tmp_path):
    method, values = FORMS["zero-shot"]
    list(run.train(resolve(method, values), tmp_path))
    classifier = Classifier(tmp_path / FILE)
    grey = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "one.png")
    alone = classifier.predict(tmp_path / "one.png")
    assert len(alone) == 1
    for other in (str(tmp_path / "one.png"), grey, [grey], np.stack([grey] * 3, -1), Image.fromarray(grey)):
        assert classifier.predict(other) == alone
    for names in ("one", [], ()):
        with pytest.raises(UserError, match="class_names: must be a list of names, one at least"):
            classifier.predict(grey, names)
    for array in (grey.astype(float), grey[None, None], np.stack([grey] * 4, -1)):
        with pytest.raises(UserError, match=r"an array must be uint8 \(height, width, 3\)"):
            classifier.predict([array])

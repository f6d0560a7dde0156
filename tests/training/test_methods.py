"""What every method keeps: one trial from its start to its test on new classes, by the same code."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from ammpl.config import METHODS, BackboneConfig, resolve
from ammpl.model.backbone import load_backbone
from ammpl.training import run
from ammpl.training.checkpoint import load_learnables
from ammpl.training.evaluation import evaluate

SMALL = {"data.shots": 2, "data.validation_shots": 4, "data.task": "base_to_new"}
BRIEF = {"training.steps": 4, "training.evaluate_every": 2, "training.batch_size": 2}
LEARNED = {
    "ammpl": {"text_prompt", "image_prompt", "image_to_text", "text_to_image"},
    "coop": {"text_prompt"},
    "cocoop": {"text_prompt", "image_to_text"},
    "vpt": {"tokens"},
    "maple": {"text_prompt", "tokens"},
    "zero_shot": set(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_from_start_to_test(method, tmp_path):
    quick = {"model.mask.scope": "task"} if method == "ammpl" else {}
    config = resolve(method, SMALL | quick | ({} if method == "zero_shot" else BRIEF))
    checksum = load_backbone(BackboneConfig()).checksum()
    evaluations = list(run.train(config, tmp_path / "a"))
    assert [step for step, _ in evaluations] == ([0] if method == "zero_shot" else [2, 4])
    assert evaluations == list(run.train(config, tmp_path / "b"))

    file = tmp_path / "a" / "learnables.safetensors"
    with safe_open(file, "pt") as tensors:
        assert {name.split(".")[0] for name in tensors.keys()} == LEARNED[method]  # noqa: SIM118 (not a dict)
        assert json.loads(tensors.metadata()["ammpl"])["config"]["method"] == method
    assert file.stat().st_size < 1_000_000
    assert file.read_bytes() == (tmp_path / "b" / "learnables.safetensors").read_bytes()

    backbone, task = run._open(config, None)
    model = run._model(config, backbone, task)
    load_learnables(model, file)
    last = evaluations[-1][1]
    assert evaluate(model, task.validation)["accuracy"] == last["validation/accuracy"]
    ((_, tested),) = run.test(config, None if method == "zero_shot" else file, tmp_path)
    assert {"test/base_accuracy", "test/new_accuracy", "test/harmonic_mean"} <= tested.keys()
    assert load_backbone(BackboneConfig()).checksum() == checksum

"""A step has no shape and no value that depends on data, and as many operations as a GPU can be given at once."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ammpl.config import SeedConfig, resolve
from ammpl.model.ammpl import AMMPL
from ammpl.training import step
from ammpl.training.optimization import build_optimizer, set_rates
from ammpl.training.run import train
from ammpl.training.step import Batch, run_step
from tests.model.conftest import NAMES, small_backbone

SMALL = {"model.tokens.depth": 2}
CASES = {
    "coop": ("coop", {}),
    "coop with a context a class": ("coop", {"model.text.context": "class"}),
    "cocoop": ("cocoop", {}),
    "vpt": ("vpt", SMALL),
    "maple": ("maple", SMALL),
    "ammpl of a task": ("ammpl", {"model.mask.scope": "task"}),
    "ammpl of a class": ("ammpl", {"model.mask.scope": "class"}),
    "ammpl of a class, in parts": ("ammpl", {"model.mask.scope": "class", "training.chunk": 8}),
    "ammpl of a class, deep": ("ammpl", {"model.mask.scope": "class", "model.padding.depth": 3}),
    "ammpl of a text": ("ammpl", {"model.mask.scope": "text"}),
    "candidates": ("ammpl", {"model.mask.scope": "class", "model.candidates": 2}),
    "candidates, in parts": ("ammpl", {"model.mask.scope": "text", "model.candidates": 2, "training.chunk": 4}),
    "binary masks": ("ammpl", {"model.mask.kind": "binary"}),
    "random masks": ("ammpl", {"model.mask.kind": "random"}),
    "padding of noise": ("ammpl", {"model.padding.content": "noise", "model.interaction.direction": "image_to_text"}),
}


def prepared(case, *, pixels=False, images=5):
    """Return a trial's parts on a small backbone laid out for a GPU, and a batch of any images."""
    method, values = CASES[case]
    config = resolve(method, {"model.text.init": "a", "model.text.length": None} | values)
    backbone = small_backbone()
    backbone.static_shapes = True
    model = AMMPL(config.model, backbone, NAMES, SeedConfig())
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(images) % len(NAMES)
    if pixels:
        batch = Batch(labels, torch.randint(0, 256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8))
    else:
        patches = torch.randn(images, backbone.patch_count, backbone.vision_width, generator=generator)
        pooled = torch.randn(images, backbone.joint_width, generator=generator)
        batch = Batch(labels, None, patches if model.reads_patches else None, pooled if model.reads_pooled else None)
    return config, model, model.classes(NAMES), build_optimizer(model, config.training), batch


@pytest.mark.parametrize(
    ("case", "pixels"), [*((case, False) for case in CASES), ("coop", True), ("vpt", True), ("ammpl of a class", True)]
)
def test_no_shape_and_no_value_of_a_step_depends_on_data(case, pixels):
    """Fake tensors have shapes and no values: whatever asked for a value, or made a shape of one, would raise."""
    config, model, classes, optimizer, batch = prepared(case, pixels=pixels)
    draws = model.draws(len(batch.labels_B), classes, 0)
    set_rates(optimizer, 0.5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = run_step(config.training, model, classes, optimizer, batch, draws)
    assert result.back.loss.shape == result.gradient_norm.shape == ()


@pytest.mark.parametrize("whole", [False, True], ids=["masked", "whole"])
@pytest.mark.parametrize("case", CASES)
def test_no_shape_and_no_value_of_an_evaluation_depends_on_data(case, whole):
    """But which masks keep everything, which is asked once before."""
    _, model, classes, _, batch = prepared(case)
    filler = None if model.image_prompt is None else model.image_prompt.filler(None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        if model.image_prompt is None:
            logits = model.predict(batch.patches_BNV, batch.pooled_BD, classes)
        else:
            top = model.candidates(batch.pooled_BD, classes)
            for mask in model._evaluation_masks(classes):
                logits = model.score_masked(
                    batch.patches_BNV, batch.pooled_BD, classes, top, mask, [whole] * len(mask), filler
                )
    assert logits.shape == (5, len(NAMES))


TRIAL = {"data.shots": 4, "data.validation_shots": 4, "training.steps": 8, "training.evaluate_every": 4}
TRIALS = {
    "coop": ("coop", {}),
    "cocoop": ("cocoop", {"training.batch_size": 2}),
    "maple": ("maple", {}),
    "ammpl of a task": ("ammpl", {"model.mask.scope": "task"}),
    "ammpl of a class": ("ammpl", {"model.mask.scope": "class", "backbone.precision": "bf16"}),
    "candidates in parts": ("ammpl", {"model.candidates": 4, "training.chunk": 32, "training.optimizer": "sgd"}),
}


def told(method, values, folder):
    """Return what a trial tells, and what it has learned."""
    return list(train(resolve(method, TRIAL | values), folder)), (folder / "learnables.safetensors").read_bytes()


@pytest.fixture
def nothing_kept():
    step._recordings.clear()
    yield
    step._recordings.clear()


@pytest.mark.gpu
@pytest.mark.parametrize("case", TRIALS)
def test_a_trial_on_a_gpu_is_the_same_to_the_bit_recorded_or_not(case, tmp_path, monkeypatch, nothing_kept):
    first = told(*TRIALS[case], tmp_path / "first")
    assert len(step._recordings) == 1
    assert told(*TRIALS[case], tmp_path / "replayed from the start") == first
    assert len(step._recordings) == 1
    monkeypatch.setattr(step.TrainingStep, "_obstacle", lambda self: "a test")
    assert told(*TRIALS[case], tmp_path / "kernel by kernel") == first


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["coop", "ammpl of a class"])
def test_one_recording_serves_trials_that_differ_in_values(case, tmp_path, nothing_kept):
    method, values = TRIALS[case]
    others = [{"training.learning_rate": 0.02}, {"seeds.noise": 5, "seeds.init": 3}]
    if method == "ammpl":
        others += [{"model.mask.temperature": 0.7, "model.interaction.strength": 0.3, "training.steps": 9}]
    alone = []
    for index, other in enumerate(others):
        step._recordings.clear()
        alone.append(told(method, values | other, tmp_path / f"alone {index}"))
    (recording,) = step._recordings.values()
    assert [told(method, values | other, tmp_path / str(index)) for index, other in enumerate(others)] == alone
    assert list(step._recordings.values()) == [recording]
    assert len({learnables for _, learnables in alone}) == len(others)


@pytest.mark.gpu
@pytest.mark.parametrize("case", TRIALS)
def test_a_trial_that_dies_on_a_gpu_goes_on_with_the_same_bits(case, tmp_path, nothing_kept):
    method, values = TRIALS[case]
    whole = told(method, values, tmp_path / "whole")
    trial = train(resolve(method, TRIAL | values), tmp_path / "dies")
    next(trial)
    with pytest.raises(ZeroDivisionError):
        trial.throw(ZeroDivisionError())
    assert told(method, values, tmp_path / "dies") == whole


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", [False, True], ids=["kernel by kernel", "recorded"])
@pytest.mark.parametrize("case", TRIALS)
def test_steps_do_not_wait_for_the_gpu(case, recorded, tmp_path, monkeypatch, nothing_kept):
    method, values = TRIALS[case]
    told(method, values, tmp_path)  # what is kept of pictures and towers is there
    step._recordings.clear()
    take, numbers = step.TrainingStep.__call__, []

    def watched(self, batch, number, factor):
        numbers.append(number)
        torch.cuda.set_sync_debug_mode("error" if number > step.EAGER_STEPS or not recorded else "default")
        try:
            return take(self, batch, number, factor)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(step.TrainingStep, "__call__", watched)
    if not recorded:
        monkeypatch.setattr(step.TrainingStep, "_obstacle", lambda self: "a test")
    told(method, values, tmp_path / "watched")
    assert numbers == list(range(8))

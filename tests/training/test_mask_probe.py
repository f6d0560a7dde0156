"""The probe of masks on masks whose meaning is known because the test wrote them."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ammpl.config import BackboneConfig, SeedConfig, resolve
from ammpl.data.distractor import meaningless_patches
from ammpl.data.home import DataHome
from ammpl.data.task import load_task
from ammpl.model.ammpl import AMMPL
from ammpl.model.backbone import load_backbone
from ammpl.training.evaluation import evaluate
from ammpl.training.mask_probe import probe_masks
from ammpl.training.run import image_transform, train

SMALL = {"data.shots": 1, "data.validation_shots": 4, "training.steps": 2, "training.batch_size": 2}


def written(dataset, logits, **mask):
    """A model of the data set whose masks have these logits, and its validation images."""
    values = {f"model.mask.{name}": value for name, value in mask.items()}
    config = resolve("ammpl", {"data.name": dataset, **SMALL, "model.padding.content": "zero", **values})
    backbone = load_backbone(BackboneConfig())
    task = load_task(config.data, 1, image_transform(backbone.preprocessing), DataHome())
    model = AMMPL(config.model, backbone, task.train.class_names, SeedConfig())
    with torch.no_grad():
        model.image_prompt.mask.matrix_GN.copy_(logits)
    return model, task.validation


@pytest.mark.parametrize("dataset", ["digits-distractor", "digits-distractor-right"])
def test_a_mask_that_hides_the_useless_patches(dataset):
    useless = meaningless_patches(dataset)
    model, split = written(dataset, torch.where(useless, -3.0, 3.0)[None], scope="task")
    accuracy = evaluate(model, split)["accuracy"]
    found = probe_masks(model, split, dataset, accuracy)
    assert found.keys() == {"validation/mask_auc", "validation/mirror_cost"}
    assert found["validation/mask_auc"] == 1
    # The mirrored mask hides a part of the digit and shows the distractor.
    mirrored, _ = written(dataset, torch.where(useless.view(7, 7).flip(1).flatten(), -3.0, 3.0)[None], scope="task")
    assert found["validation/mirror_cost"] == accuracy - evaluate(mirrored, split)["accuracy"]
    assert found["validation/mirror_cost"] > 0
    noise = torch.randn(10, 49, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # with ties
    expected = [roc_auc_score(~useless, row) for row in noise]
    auc = probe_masks(written(dataset, noise)[0], split, dataset, 0.0)["validation/mask_auc"]
    assert auc == pytest.approx(sum(expected) / 10)
    idle, _ = written(dataset, torch.zeros(1, 49), scope="task")
    assert probe_masks(idle, split, dataset, 0.0)["validation/mask_auc"] == 0.5


def test_masks_of_classes_are_swapped_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 49, generator=generator)
    model, split = written("digits", logits)
    swapped, _ = written("digits", logits.roll(1, 0))
    found = probe_masks(model, split, "digits", 0.5)
    assert found["validation/swap_cost"] == 0.5 - evaluate(swapped, split)["accuracy"]
    p = logits.double().sigmoid()
    pairs = [(p[c] - p[d]).abs().mean().item() for c in range(10) for d in range(c)]
    assert found == {
        "validation/swap_cost": found["validation/swap_cost"],
        "validation/mask_distance": pytest.approx(sum(pairs) / len(pairs)),
    }
    alike, _ = written("digits", logits[:1].expand(10, -1))
    again = probe_masks(alike, split, "digits", evaluate(alike, split)["accuracy"])
    assert again == {"validation/swap_cost": 0, "validation/mask_distance": 0}


def test_a_trial_probes_at_its_last_evaluation_if_asked(tmp_path):
    values = {**SMALL, "data.name": "digits-distractor", "training.evaluate_every": 1}
    names = [
        {name.removeprefix("validation/") for name in metrics if name.startswith("validation/")}
        for method, more in (("ammpl", {"model.mask.scope": "text"}), ("ammpl", {"model.mask.kind": "random"}))
        for probed in (True, False)
        for _, metrics in train(resolve(method, {**values, **more, "training.probe_masks": probed}), tmp_path)
    ]
    plain = {"accuracy", "loss"}
    probed = plain | {"mask_auc", "mirror_cost", "mask_distance", "swap_cost"}
    assert names == [plain, probed, plain, plain, plain, plain, plain, plain]

"""One trial, from its configuration to its numbers.

:func:`train` and :func:`test` are generators of (step, metrics): whoever drives them may stop in between (a pruner
does). Where the process dies instead, :func:`train` goes on from the trial's running checkpoint
(:mod:`ammpl.training.running_checkpoint`). Metric names: ``train/...`` over the steps since the last evaluation,
``validation/...``, ``test/...``, and the diagnostics of :mod:`ammpl.training.evaluation`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ammpl.config import TrialConfig
from ammpl.data.home import DataHome
from ammpl.data.loading import load_batches
from ammpl.data.task import Task, check_tests, load_task, load_test
from ammpl.data.transform import ImageTransform
from ammpl.model.ammpl import AMMPL, check_model, model_class
from ammpl.model.backbone import Backbone, Preprocessing, load_backbone
from ammpl.model.image_prompt import to_device
from ammpl.training import checkpoint, running_checkpoint
from ammpl.training.device import set_up
from ammpl.training.evaluation import above_chance, diagnostics, evaluate, harmonic_mean
from ammpl.training.features import patch_tokens, pooled_features
from ammpl.training.figures import draw_masks
from ammpl.training.mask_probe import probe_masks
from ammpl.training.optimization import batches, build_optimizer, schedule, total_steps
from ammpl.training.step import Batch, TrainingStep


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number; the text names the step and the learning rate."""

    def __init__(self, loss: float, step: int, learning_rate: float):
        super().__init__(f"loss is {loss} at step {step} (learning rate {learning_rate:g})")


def preflight(config: TrialConfig, home: DataHome | None = None) -> None:
    """Open everything a trial needs and build its model, without training.

    Raises:
        UserError: anything the user can mend: unknown names, missing files, shots beyond the data, class names that
            the backbone cannot read, prompts too long, padding too deep.
    """
    backbone, task = _open(config, home)
    check_model(config.model, backbone)
    _model(config, backbone, task).classes(task.train.class_names)
    for dataset in check_tests(config.data, home or DataHome()).values():
        _model(config, backbone, task, dataset.template).classes(dataset.class_names)


def train(config: TrialConfig, folder: Path, home: DataHome | None = None) -> Iterator[tuple[int, dict[str, float]]]:
    """Train one trial, yielding at each evaluation; write its files once it is complete.

    Where a trial of this configuration has died in this folder, it goes on: the evaluations made before are yielded
    again, then those still to come, exactly as if it had not died. Closing the generator ends the trial for good.

    Args:
        config: everything that decides the numbers.
        folder: gets ``learnables.safetensors``, ``config.json``, ``data.json``, ``machine.json`` and, with a learned
            mask, ``masks.png``; from the first evaluation until then ``running.safetensors``.
        home: where data lie; None takes the environment's.

    Yields:
        (optimiser steps done, metrics).

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
        UserError: see :func:`preflight`.
    """
    backbone, task = _open(config, home)
    model = _model(config, backbone, task)
    try:
        if config.training.steps != 0:
            yield from _optimize(config, model, task, folder)
        else:
            yield 0, {**_validate(model, task), **diagnostics(model)}
    except (GeneratorExit, TrainingDivergedError):  # pruned, or the configuration's own fault: nobody will go on
        if not sys.is_finalizing():  # a process that exits closes what waits in it, and decides nothing by that
            running_checkpoint.remove(folder)
        raise
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_learnables(model, config, folder / checkpoint.FILE)
    (folder / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    machine = {"device": backbone.device_name, "precision": backbone.precision, "threads": torch.get_num_threads()}
    for name, record in (("data.json", task.record()), ("machine.json", machine)):
        (folder / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw_masks(model, task.validation, folder / "masks.png")
    running_checkpoint.remove(folder)  # last: a trial that dies over its files goes on, too


def test(
    config: TrialConfig, learnables: Path | None, folder: Path, home: DataHome | None = None
) -> Iterator[tuple[int, dict[str, float]]]:
    """Open the sealed test split and score it once.

    Args:
        config: the configuration that was trained.
        learnables: its final learnables; None for a method that learns nothing.
        folder: unused: a test leaves nothing but its numbers.
        home: where data lie; None takes the environment's.

    Yields:
        Once, (0, metrics): ``test/accuracy``; with ``base_to_new`` and ``pseudo_new``, ``test/base_accuracy``,
        ``test/new_accuracy`` and their ``test/harmonic_mean``; with targets, ``test/<name>_accuracy`` of each and
        ``test/target_accuracy``, their plain mean, in addition.
    """
    if config.data.task == "pseudo_new":
        # The held-out classes have served to choose; what is tested is trained on all base classes, once more.
        config = config.with_values({"data.task": "base_to_new", "data.holdout": None})
        for _ in train(config, folder, home):
            pass
        learnables = folder / checkpoint.FILE if config.training.steps != 0 else None
    backbone, task = _open(config, home)
    metrics: dict[str, float] = {}
    tests = load_test(config.data, task.transform, home or DataHome())
    for name, (_, split, template) in tests.items():
        model = _model(config, backbone, task, template)
        if learnables is not None:
            checkpoint.load_learnables(model, learnables)
        scores = evaluate(model, split)
        metrics.update({f"test/{name}_{key}" if name else f"test/{key}": value for key, value in scores.items()})
    if "test/base_accuracy" in metrics:
        base, new = metrics["test/base_accuracy"], metrics["test/new_accuracy"]
        metrics["test/harmonic_mean"] = harmonic_mean(base, new)
    elif targets := [name for name in tests if name]:
        metrics["test/target_accuracy"] = sum(metrics[f"test/{name}_accuracy"] for name in targets) / len(targets)
    yield 0, metrics


def image_transform(preprocessing: Preprocessing) -> ImageTransform:
    """Return the geometry of a backbone's preprocessing, which is what the data side needs of it."""
    return ImageTransform(
        preprocessing.size, preprocessing.interpolation, preprocessing.resize_mode, preprocessing.fill_color
    )


def _open(config: TrialConfig, home: DataHome | None) -> tuple[Backbone, Task]:
    device = set_up(config.backbone, deterministic=config.training.deterministic)
    backbone = load_backbone(config.backbone, device)
    transform = image_transform(backbone.preprocessing)
    return backbone, load_task(config.data, config.seeds.data, transform, home or DataHome())


def _model(config: TrialConfig, backbone: Backbone, task: Task, template: str | None = None) -> AMMPL:
    names, template = task.train.class_names, template or task.dataset.template
    # The mean colour may cost a pass over the data: only where it is used.
    color = {"mean_pixel": task.mean_color} if config.model.padding.content == "mean" else {}
    return model_class(config.method)(config.model, backbone, names, config.seeds, template, **color)


def _optimize(config: TrialConfig, model: AMMPL, task: Task, folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    training, images, seed = config.training, len(task.train), config.seeds.noise
    optimizer, factor = build_optimizer(model, training), schedule(training, images)
    resumable = running_checkpoint.RunningCheckpoint(folder, config, model, optimizer)
    evaluations = resumable.restore()
    yield from evaluations
    first, total = evaluations[-1][0] if evaluations else 0, total_steps(training, images)
    classes = model.classes(task.train.class_names)
    order = itertools.islice(batches(images, training, seed, first), total - first)
    device = model.backbone.device
    loaded: Iterable[tuple[torch.Tensor, torch.Tensor | None]] = load_batches(task.train, order, seed, first, device)
    if not _reads_pixels(model, task):
        loaded = ((chosen, None) for chosen in order)
    take_step, told = TrainingStep(training, model, classes, optimizer), _Steps()
    model.train()
    try:
        for step, (chosen, pixels) in enumerate(loaded, first):
            result = take_step(_batch(model, task, chosen, pixels), step, factor(step))
            told.add({"train/loss": result.back.loss, "train/gradient_norm": result.gradient_norm})
            if training.grad_tolerance:
                skipped, left_out = result.back.skipped, result.back.skipped_gradient
                told.add({"train/skipped_pairs": skipped, "train/skipped_gradient": left_out})
            done = step + 1
            evaluates = done % training.evaluate_every == 0 or done == total
            if evaluates or device.type == "cpu":  # a GPU is not waited for at every step
                told.check(done, lambda step: training.learning_rate * factor(step))
            if evaluates:
                metrics = {**told.take(), **_validate(model, task), **diagnostics(model)}
                model.train()
                if done == total and training.probe_masks:
                    accuracy = metrics["validation/accuracy"]
                    metrics.update(probe_masks(model, task.validation, config.data.name, accuracy))
                evaluations.append((done, metrics))
                resumable.save(evaluations)  # before it is told: what was told can be gone on from
                yield done, metrics
    finally:
        take_step.close()


class _Steps:
    """What the steps since the last evaluation told; on a GPU it stays there until it is read."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = {}
        self._checked = 0

    def add(self, values: Mapping[str, torch.Tensor | float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value))

    def check(self, done: int, learning_rate: Callable[[int], float]) -> None:
        """Refuse a loss that is no number.

        Args:
            done: steps, the last one that was added included.
            learning_rate: of a step.

        Raises:
            TrainingDivergedError: naming the first such step.
        """
        losses = self._values["train/loss"]
        first = done - len(losses)
        for index, loss in enumerate(torch.stack(losses[self._checked :]).tolist(), self._checked):
            if not math.isfinite(loss):
                raise TrainingDivergedError(loss, first + index, learning_rate(first + index))
        self._checked = len(losses)

    def take(self) -> dict[str, float]:
        """Return means, and begin anew."""
        means = {name: sum(torch.stack(values).tolist()) / len(values) for name, values in self._values.items()}
        self._values, self._checked = {}, 0
        return means


def _reads_pixels(model: AMMPL, task: Task) -> bool:
    """Return whether steps read pixels: not where all they need of the images is kept."""
    return task.augmented or (model.reads_patches and patch_tokens(model.backbone, task.train) is None)


def _batch(model: AMMPL, task: Task, chosen: torch.Tensor, pixels: torch.Tensor | None) -> Batch:
    """Return what a step reads of some training images; nothing waits for a GPU."""
    backbone = model.backbone
    labels_B = to_device(task.train.labels[chosen], backbone.device)
    if task.augmented:
        return Batch(labels_B, pixels)
    chosen = to_device(chosen, backbone.device)
    kept = Batch(labels_B)
    if model.reads_pooled:
        kept = replace(kept, pooled_BD=pooled_features(backbone, task.train).index_select(0, chosen))
    if model.reads_patches:
        kept_nNV = patch_tokens(backbone, task.train)
        return replace(kept, pixels=pixels) if kept_nNV is None else replace(kept, patches_BNV=kept_nNV[chosen])
    return kept


def _validate(model: AMMPL, task: Task) -> dict[str, float]:
    """Return what tuning may know of a model.

    ``validation/accuracy`` and ``validation/loss``; with held-out classes, in addition ``validation/new_accuracy``,
    theirs among their own names, and ``validation/harmonic_mean`` of the two accuracies above chance,
    (accuracy - 1/C) / (1 - 1/C): a few classes among themselves are easier than many.
    """
    metrics = {f"validation/{name}": value for name, value in evaluate(model, task.validation).items()}
    if task.pseudo_new is not None:
        new = evaluate(model, task.pseudo_new)["accuracy"]
        metrics["validation/new_accuracy"] = new
        metrics["validation/harmonic_mean"] = harmonic_mean(
            above_chance(metrics["validation/accuracy"], len(task.validation.class_names)),
            above_chance(new, len(task.pseudo_new.class_names)),
        )
    return metrics

"""Optimiser, schedule and the order of batches of one trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch

from ammpl.config import TrainingConfig
from ammpl.model.ammpl import AMMPL
from ammpl.model.image_prompt import seeded_generator

COOP_WARMUP_LR = 1e-5
MOMENTUM = 0.9
MASK = ("image_prompt.mask.matrix_GN", "image_prompt.mask.from_name.output_")


def build_optimizer(model: AMMPL, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser: the mask in its own group, with its own learning rate and no weight decay.

    The mask is what its logits are linear in: the matrix, and the last layer of scope ``text``'s network.
    Each group's ``initial_lr`` is its peak, which :func:`schedule` scales.
    """
    mask: list[torch.nn.Parameter] = []
    common: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (mask if name.startswith(MASK) else common).append(parameter)
    groups = [{"params": common, "lr": config.learning_rate, "weight_decay": config.weight_decay}]
    if mask:
        mask_lr = config.learning_rate * config.mask_lr_multiplier
        groups.append({"params": mask, "lr": mask_lr, "weight_decay": 0.0})
    groups = [group | {"initial_lr": group["lr"]} for group in groups if group["params"]]
    recorded = model.backbone.device.type == "cuda"  # then rates are tensors, which a recorded step reads
    if recorded:
        groups = [group | {"lr": torch.tensor(group["lr"], device=model.backbone.device)} for group in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, capturable=recorded)
    return torch.optim.SGD(groups, momentum=MOMENTUM, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to a part of its peak."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches an epoch: the last, partial one is dropped unless it is the only one (the protocol's loader)."""
    return max(1, images // batch_size)


def schedule(config: TrainingConfig, images: int) -> Callable[[int], float]:
    """Return step -> factor on the peak learning rate.

    ``coop`` is the published schedule, stepped each epoch e = 1, 2, ... of E: 1e-5 in the first, then
    (1 + cos(pi (e - 2) / E)) / 2 (Dassl's constant warm-up before a cosine over E epochs).
    """
    if config.schedule == "constant":
        return lambda step: 1.0
    total = total_steps(config, images)
    if config.schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
    epochs, length = config.epochs, steps_per_epoch(images, config.batch_size)
    assert epochs is not None  # the config's own rule

    def by_epoch(step: int) -> float:
        before = step // length  # whole epochs behind us
        if before == 0:
            return COOP_WARMUP_LR / config.learning_rate
        return 0.5 * (1 + math.cos(math.pi * (before - 1) / epochs))

    return by_epoch


def total_steps(config: TrainingConfig, images: int) -> int:
    """Return the trial's budget in optimiser steps."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # the config's own rule
    return config.epochs * steps_per_epoch(images, config.batch_size)


def batches(images: int, config: TrainingConfig, seed: int, first: int = 0) -> Iterator[torch.Tensor]:
    """Yield positions of each step's images, without end: every epoch in a new order that (seed, epoch) decides.

    Args:
        images: there are in all.
        config: decides how many of them make a batch.
        seed: of the orders.
        first: the number of the first batch to yield, counted from 0 over all epochs.
    """
    size, length = min(config.batch_size, images), steps_per_epoch(images, config.batch_size)
    for number in itertools.count(first):
        epoch, index = divmod(number, length)
        if index == 0 or number == first:
            order = torch.randperm(images, generator=seeded_generator(seed, "order", epoch))
        yield order[index * size : (index + 1) * size]

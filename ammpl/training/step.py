"""One optimiser step, and how a GPU runs it: recorded once for its shapes, then replayed.

A step is some hundred to some thousand kernels, many of a few microseconds: a CPU that launches them one by one holds
the GPU up. Nothing in a step depends on data (:attr:`Backbone.static_shapes <ammpl.model.backbone.Backbone>`), so a
GPU records its kernels as a CUDA graph and is given all of them at once. What differs from step to step or from trial
to trial enters as values in tensors that stay where they are: images, labels, noise, learning rates, learnables, mask
temperature, interaction strength. One recording so serves all trials of a process that have the same shapes.

The same kernels in the same order: a recorded step has the bits of one that is not (tests/training/test_step.py).
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ammpl.config import TrainingConfig
from ammpl.model.ammpl import AMMPL, Draws
from ammpl.model.scoring import Backward, backward, pairs_in_flight
from ammpl.model.text_prompt import Classes
from ammpl.training.features import patches
from ammpl.training.optimization import set_rates

EAGER_STEPS = 2
"""Steps of a trial before it is recorded: libraries set themselves up in the first, optimisers their state."""
KEPT = 4
"""Recordings that a process keeps for trials to come."""

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """What a step reads, on the device.

    Attributes:
        labels_B: the true classes.
        pixels: uint8 (B, 3, S, S), where patch tokens and features are not kept.
        patches_BNV: patch tokens, where they are read and kept.
        pooled_BD: frozen features, where they are read and kept.
    """

    labels_B: Tensor
    pixels: Tensor | None = None
    patches_BNV: Tensor | None = None
    pooled_BD: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        back: of its backward pass.
        gradient_norm: of all learnables together.
    """

    back: Backward
    gradient_norm: Tensor


class TrainingStep:
    """The steps of one trial.

    Args:
        training: see :class:`~ammpl.config.TrainingConfig`.
        model: what learns.
        classes: what it is trained on.
        optimizer: from :func:`~ammpl.training.optimization.build_optimizer`, restored where the trial goes on.
    """

    def __init__(self, training: TrainingConfig, model: AMMPL, classes: Classes, optimizer: torch.optim.Optimizer):
        self._training = training
        self._model = model
        self._classes = classes
        self._optimizer = optimizer
        self._done = 0
        self._recording: _Recording | None = None
        self._records = model.backbone.device.type == "cuda"
        if self._records and (reason := self._obstacle()):
            self._records = False
            log.info("steps are launched kernel by kernel: %s", reason)

    def __call__(self, batch: Batch, number: int, factor: float) -> StepResult:
        """Take one step.

        Args:
            batch: its images.
            number: of the step, from 0; with the noise seed it decides every random draw.
            factor: on the peak learning rates.
        """
        set_rates(self._optimizer, factor)
        self._done += 1
        noise: Draws | int = number
        if type(self._model) is AMMPL:
            noise = self._model.draws(len(batch.labels_B), self._classes, number)
            if self._records and self._recording is None:
                self._recording = self._taken(batch, noise)
            if self._recording is not None:
                return self._recording.replay(batch, noise)
        trial = (self._training, self._model, self._classes, self._optimizer)
        return _with_room(self._optimizer, lambda: run_step(*trial, batch, noise))

    def close(self) -> None:
        """Keep what was recorded for another trial; the model keeps its learnables."""
        if self._recording is not None:
            self._recording.leave(self._model, self._optimizer)
            _recordings[self._recording.key] = self._recording
            _recordings.move_to_end(self._recording.key)
            while len(_recordings) > KEPT:
                _recordings.popitem(last=False)
            self._recording, self._records = None, False

    def _obstacle(self) -> str | None:
        if type(self._model) is not AMMPL:
            return f"what {type(self._model).__name__} computes is not known"
        if self._training.grad_tolerance > 0:
            return "with training.grad_tolerance their number depends on data"
        return None

    def _taken(self, batch: Batch, draws: Draws) -> _Recording | None:
        """Return a recording that does this trial's steps, kept or new; None while it is too early for one."""
        key = _key(self._training, self._model, batch)
        if (kept := _recordings.pop(key, None)) is not None:
            kept.enter(self._model, self._optimizer)
            return kept
        if self._done <= EAGER_STEPS:
            return None
        trial = (self._training, self._model, self._classes, self._optimizer)
        try:
            return _with_room(self._optimizer, lambda: _Recording(key, *trial, batch, draws))
        except torch.cuda.OutOfMemoryError:
            log.warning("steps are launched kernel by kernel: no GPU memory is left to record one")
            self._records = False
            _make_room(self._optimizer)
            return None


def _with_room(optimizer: torch.optim.Optimizer, run: Callable[[], Result]) -> Result:
    """Return what a function does; where GPU memory runs out, once more without the recordings of other shapes."""
    try:
        return run()
    except torch.cuda.OutOfMemoryError:
        if not _recordings:
            raise
    forget()
    _make_room(optimizer)
    return run()


def _make_room(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()


def run_step(
    training: TrainingConfig,
    model: AMMPL,
    classes: Classes,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    noise: Draws | int,
) -> StepResult:
    """Take one step, kernel by kernel: forward, backward, gradient norm, optimiser.

    Args:
        training: see :class:`~ammpl.config.TrainingConfig`.
        model: what learns.
        classes: what it is trained on.
        optimizer: with its learning rates set.
        batch: the step's images.
        noise: what the step draws; its number, where the model is a subclass that may draw otherwise.
    """
    backbone, patches_BNV, pooled_BD = model.backbone, batch.patches_BNV, batch.pooled_BD
    if batch.pixels is not None:
        patches_BNV = patches(backbone, batch.pixels)
        if model.reads_pooled and pooled_BD is None:  # a crop is seen once
            with torch.no_grad():
                pooled_BD = backbone.image_features(patches_BNV)
    optimizer.zero_grad(set_to_none=True)
    if model.masks_each_class:
        assert patches_BNV is not None
        draws = noise if isinstance(noise, Draws) else model.draws(len(patches_BNV), classes, noise)
        chunk = training.chunk or pairs_in_flight(backbone)
        tolerance = training.grad_tolerance
        back = backward(
            model, patches_BNV, pooled_BD, classes, batch.labels_B, draws, chunk=chunk, tolerance=tolerance
        )
    else:
        inputs = (patches_BNV, pooled_BD, classes)
        scores_BC = model.scores(*inputs, noise) if isinstance(noise, Draws) else model(*inputs, noise)
        loss = F.cross_entropy(scores_BC.float(), batch.labels_B)
        loss.backward()
        back = Backward(loss.detach())
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.step()
    return StepResult(back, norm)


class _Recording:
    """A recorded step: what it reads and writes stays where it is.

    Args:
        key: of :func:`_key`.
        training: see :class:`~ammpl.config.TrainingConfig`.
        model: the trial's, which has taken some steps.
        classes: the trial's.
        optimizer: the trial's, whose state exists.
        batch: any of the trial's.
        draws: any of the trial's.
    """

    def __init__(
        self,
        key: _Key,
        training: TrainingConfig,
        model: AMMPL,
        classes: Classes,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        draws: Draws,
    ):
        self.key = key
        self._batch, self._draws = _copy(batch), _copy(draws)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._buffers = list(model.buffers())
        self._learnables = [parameter.detach() for parameter in model.parameters()]
        self._states = [optimizer.state[parameter] for parameter in model.parameters()]
        self._reads = (model.backbone, classes)  # kept alive: the kernels know their addresses
        _make_room(optimizer)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=next((other._graph.pool() for other in _living), None)):
            self._result = run_step(training, model, classes, optimizer, self._batch, self._draws)
        optimizer.zero_grad(set_to_none=True)  # they are the graph's own
        _living.add(self)

    def replay(self, batch: Batch, draws: Draws) -> StepResult:
        """Take one step of the trial whose learnables are here."""
        for static, value in zip(_tensors(self._batch, self._draws), _tensors(batch, draws), strict=True):
            static.copy_(value)
        self._graph.replay()
        back = self._result.back
        return StepResult(replace(back, loss=back.loss.clone()), self._result.gradient_norm.clone())

    def enter(self, model: AMMPL, optimizer: torch.optim.Optimizer) -> None:
        """Let a trial's learnables and its optimiser's state, fresh or restored, be those of the recorded step."""
        for static, buffer in zip(self._buffers, model.buffers(), strict=True):
            static.copy_(buffer)
        for static, parameter, state in zip(self._learnables, model.parameters(), self._states, strict=True):
            static.copy_(parameter.detach())
            parameter.data = static
            own = optimizer.state[parameter]
            for name, value in state.items():
                if isinstance(value, Tensor):
                    # An optimiser's state begins as zeros, momentum too: 0.9 * 0 + g is g.
                    value.copy_(own[name]) if isinstance(own.get(name), Tensor) else value.zero_()
                own[name] = value
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            rate.copy_(group["lr"])
            group["lr"] = rate

    def leave(self, model: AMMPL, optimizer: torch.optim.Optimizer) -> None:
        """Give a trial learnables of its own again; its optimiser is done."""
        for parameter in model.parameters():
            parameter.data = parameter.detach().clone()
        optimizer.state.clear()


_Key = tuple[object, ...]
_recordings: OrderedDict[_Key, _Recording] = OrderedDict()
"""Those that no trial uses now."""

_living: weakref.WeakSet[_Recording] = weakref.WeakSet()
"""All there are. They share their memory: only one of them runs at a time."""

NOT_RECORDED = {"mask": {"temperature", "initial_probability", "evaluation", "samples"}, "interaction": {"strength"}}
"""Settings of a model that trials with one recording may differ in: they enter by value, or not into steps at all."""


def _key(training: TrainingConfig, model: AMMPL, batch: Batch) -> _Key:
    """Return what must be equal for a recording to do a trial's steps; all else enters as values."""
    settings = model.config.model_dump_json(exclude=NOT_RECORDED)
    shapes = tuple((tensor.shape, tensor.dtype) if tensor is not None else None for tensor in vars(batch).values())
    text = model.text_prompt
    optimizer = (training.optimizer, training.weight_decay, training.chunk, training.deterministic)
    return (model.backbone, settings, text.class_names, text.template, optimizer, shapes)


Record = TypeVar("Record", Batch, Draws)


def _copy(record: Record) -> Record:
    return replace(record, **{name: value.clone() for name, value in vars(record).items() if value is not None})


def _tensors(*records: Batch | Draws) -> list[Tensor]:
    return [value for record in records for value in vars(record).values() if value is not None]


def forget() -> None:
    """Let go of all recordings that no trial uses."""
    _recordings.clear()

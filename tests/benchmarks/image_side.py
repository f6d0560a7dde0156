"""The image tower from tokens to features and back, and a step of class scope: against open_clip's modules, and
against the arithmetic.

The floor is the operations that FlopCounterMode counts (products; of the fused attention of fp32 they are added by
hand), over the rate at which this processor multiplies matrices of the MLP's shape. One thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ammpl.config import BackboneConfig, resolve
from ammpl.model.backbone import Backbone, Preprocessing, load_backbone
from ammpl.training import run
from ammpl.training.optimization import build_optimizer
from ammpl.training.step import run_step
from tests.benchmarks.record import Record
from tests.benchmarks.timing import medians

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPEATS = 5


def benchmark() -> Iterator[Record]:
    """Yield the towers' speed, their share of the floor, and a class-scope step's."""
    torch.set_num_threads(1)
    yield from _tower("ViT-B/16", _vit(), images=2, repeats=3)
    yield from _tower("embedded", load_backbone(BackboneConfig()), images=80, repeats=9)
    yield from _step()


def _vit() -> Backbone:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1},
    )
    half = (0.5, 0.5, 0.5)
    return Backbone(clip, open_clip.get_tokenizer("ViT-B-16"), Preprocessing(224, half, half), "ViT-B-16, random")


def _tower(name: str, exact: Backbone, images: int, repeats: int) -> Iterator[Record]:
    rough = Backbone(copy.deepcopy(exact.clip), exact.tokenizer, exact.preprocessing, exact.name)
    rough.cast_blocks(torch.bfloat16)
    plain = Backbone(copy.deepcopy(exact.clip), exact.tokenizer, exact.preprocessing, exact.name)
    plain.to(dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    patches = 0.1 * torch.randn(images, exact.patch_count, exact.vision_width, generator=generator)
    sides: dict[str, tuple[Callable[[Backbone, Tensor], Tensor], Backbone, Tensor]] = {
        "ours, fp32": (Backbone.image_features, exact, patches),
        "ours, bf16": (Backbone.image_features, rough, patches),
        "modules, fp32": (_modules, exact, patches),
        "modules, bf16": (_modules, plain, patches.bfloat16()),
    }
    found = {side: _forward_backward(*parts) for side, parts in sides.items()}
    seconds = medians({s: lambda parts=parts: _forward_backward(*parts) for s, parts in sides.items()}, repeats)
    with torch.no_grad():
        forward = medians({s: lambda parts=parts: parts[0](*parts[1:]) for s, parts in sides.items()}, repeats)
    for mine, other in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
        ours, reference = f"ours, {mine}", f"modules, {other}"
        errors = (_relative(a, b) for a, b in zip(found[ours], found["modules, fp32"], strict=True))
        note = "relative error of features and gradients against the modules in fp32: {:.1e}, {:.1e}".format(*errors)
        for what, taken in (("forward and backward", seconds), ("forward", forward)):
            case = f"{name} tower, {what}, {mine} against modules in {other}"
            yield Record("image_side", case, images / taken[ours], images / taken[reference], "images/s", note)
    for precision, backbone in (("fp32", exact), ("bf16", rough)):
        floor = _floor(lambda b=backbone: _forward_backward(Backbone.image_features, b, patches), backbone, images)
        case = f"{name} tower, {precision}, forward and backward of {images} images, against the floor"
        yield Record("image_side", case, 1000 * seconds[f"ours, {precision}"], 1000 * floor, "ms")


def _modules(backbone: Backbone, patches: Tensor) -> Tensor:
    visual = backbone.clip.visual
    tokens = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches], 1) + visual.positional_embedding
    return visual.ln_post(visual.transformer(visual.ln_pre(tokens))[:, 0]) @ visual.proj


def _forward_backward(
    features: Callable[[Backbone, Tensor], Tensor], backbone: Backbone, patches: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = patches.detach().clone().requires_grad_()
    output = features(backbone, leaf)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (gradient,) = torch.autograd.grad((output.float() * weights).sum(), leaf)
    return output.detach().float(), gradient.float()


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def _step() -> Iterator[Record]:
    """A training step of class scope on the embedded backbone: 16 images, 10 classes."""
    steps: dict[str, Callable[[], object]] = {}
    backbones = {}
    for precision in PRECISIONS:
        values = {"backbone.precision": precision, "model.mask.scope": "class", "training.batch_size": 16}
        config = resolve("ammpl", values)
        backbone, task = run._open(config, None)
        model = run._model(config, backbone, task)
        classes, chosen = model.classes(task.train.class_names), torch.arange(0, 160, 10)
        batch, backbones[precision] = run._batch(model, task, chosen, task.train.pixels(chosen)), backbone
        optimizer = build_optimizer(model, config.training)

        def step(config=config, model=model, classes=classes, optimizer=optimizer, batch=batch) -> None:  # type: ignore[no-untyped-def]
            run_step(config.training, model, classes, optimizer, batch, model.draws(16, classes, 0))

        steps[precision] = step
    seconds = medians(steps, REPEATS)
    for precision, step in steps.items():
        floor = _floor(step, backbones[precision], images=160)
        case = f"class-scope step, embedded, {precision}, 16 images x 10 classes, against the floor"
        yield Record("image_side", case, 1000 * seconds[precision], 1000 * floor, "ms")
    yield Record("image_side", "the same, bf16 against fp32", 1000 * seconds["bf16"], 1000 * seconds["fp32"], "ms")


def _floor(work: Callable[[], object], backbone: Backbone, images: int) -> float:
    """Return the seconds that the work's products take at this machine's rate."""
    with FlopCounterMode(display=False) as counter:
        work()
    operations = counter.get_total_flops()
    if backbone.block_dtype is torch.float32:  # the fused attention of a CPU is not counted: 4 L^2 W, backward 2.5 x
        tokens = backbone.patch_count + 1
        operations += int(3.5 * 4 * tokens**2 * backbone.vision_width * (backbone.vision_layers - 1) * images)
    return operations / _rate(backbone, images)


def _rate(backbone: Backbone, images: int) -> float:
    """Return operations a second of the MLP's first product, the best of several."""
    rows = images * (backbone.patch_count + 1)
    left = torch.randn(rows, backbone.vision_width).to(backbone.block_dtype)
    right = torch.randn(4 * backbone.vision_width, backbone.vision_width).to(backbone.block_dtype)
    taken = []
    for _ in range(20):
        began = time.process_time()
        F.linear(left, right)
        taken.append(time.process_time() - began)
    return 2 * rows * 4 * backbone.vision_width**2 / min(taken)

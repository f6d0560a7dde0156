"""Images a second of evaluation by scope of the mask, on the embedded backbone and its digits, one thread.

Matrices are random: some patches of every class are masked, so that no pass is shared. The reference is the same
scope in fp32 for bf16, and for a method that is evaluated from kept features the method without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ammpl.config import resolve
from ammpl.data.dataset import Split
from ammpl.model.ammpl import AMMPL
from ammpl.training import features, run
from ammpl.training.evaluation import evaluate
from tests.benchmarks.record import Record
from tests.benchmarks.timing import medians

DATA = {"data.shots": 16, "data.validation_shots": 40}
SCOPES = ("task", "text", "class")
IMAGES = {"task": 400, "text": 100, "class": 100}
REPEATS = 3


def benchmark() -> Iterator[Record]:
    """Yield each scope in both precisions, one where every mask keeps everything, and CoOp."""
    torch.set_num_threads(1)
    for scope in SCOPES:
        sides = {precision: _ammpl(scope, precision) for precision in ("fp32", "bf16")}
        seconds = medians(sides, REPEATS)
        fp32, bf16 = (IMAGES[scope] / seconds[precision] for precision in ("fp32", "bf16"))
        yield Record("evaluation", f"scope {scope}, 10 classes, fp32", fp32, None, "images/s")
        yield Record("evaluation", f"scope {scope}, 10 classes, bf16 against fp32", bf16, fp32, "images/s")
    seconds = medians({"some": _ammpl("class", "fp32"), "all": _ammpl("class", "fp32", keep_all=True)}, REPEATS)
    some, everything = (IMAGES["class"] / seconds[side] for side in ("some", "all"))
    yield Record("evaluation", "scope class, masks that keep all against some patches", everything, some, "images/s")
    seconds = medians({"kept": _coop(), "anew": _coop(forget=True)}, REPEATS)
    kept, anew = (400 / seconds[side] for side in ("kept", "anew"))
    yield Record("evaluation", "CoOp, kept image features against new ones", kept, anew, "images/s")


def _ammpl(scope: str, precision: str, *, keep_all: bool = False) -> Callable[[], object]:
    model, split = _model("ammpl", {"model.mask.scope": scope, "backbone.precision": precision})
    assert model.image_prompt is not None
    if not keep_all:
        with torch.no_grad():
            matrix = model.image_prompt.mask.matrix_GN
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0)))
    split = split.at(torch.arange(0, 400, 400 // IMAGES[scope]))
    return lambda: evaluate(model, split)


def _coop(*, forget: bool = False) -> Callable[[], object]:
    model, split = _model("coop", {})

    def work() -> None:
        if forget:
            features.forget()
        evaluate(model, split)

    return work


def _model(method: str, values: dict[str, object]) -> tuple[AMMPL, Split]:
    config = resolve(method, {**DATA, **values})
    backbone, task = run._open(config, None)
    return run._model(config, backbone, task), task.validation

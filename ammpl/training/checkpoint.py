"""Final learnables on disk: safetensors, kilobytes, with the configuration they belong to. Never pickles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ammpl.config import TrialConfig
from ammpl.errors import UserError
from ammpl.model.ammpl import AMMPL

FILE = "learnables.safetensors"


@dataclass(frozen=True)
class Origin:
    """What learnables belong to.

    Attributes:
        config: the trial's.
        class_names: that they were trained on.
        template: the sentence of a fixed context.
        mean_pixel: see :class:`~ammpl.model.ammpl.AMMPL`.
    """

    config: TrialConfig
    class_names: tuple[str, ...]
    template: str
    mean_pixel: tuple[float, float, float]


def save_learnables(model: AMMPL, config: TrialConfig, path: Path) -> None:
    """Write the learnables (the backbone is not among them), the configuration and the class names to one file.

    The file appears whole or not at all.
    """
    origin = {
        "class_names": model.text_prompt.class_names,
        "config": config.model_dump(),
        "mean_pixel": model.mean_pixel,
        "template": model.text_prompt.template,
    }
    # One key: safetensors writes several in no fixed order, and equal trials should leave equal files.
    metadata = {"ammpl": json.dumps(origin)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def read_origin(path: Path) -> Origin:
    """Return what the learnables in a file belong to.

    Raises:
        UserError: the file is missing, no safetensors file, or none that a trial of this version wrote.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get("ammpl")
    try:
        data = json.loads(text or "null")
        r, g, b = data["mean_pixel"]
        config = TrialConfig.model_validate_json(json.dumps(data["config"]))
        return Origin(config, tuple(data["class_names"]), data["template"], (r, g, b))
    except (KeyError, TypeError, ValueError, ValidationError):
        raise UserError(str(path), "does not say which trial it is of", fix="name a trial's learnables") from None


def load_learnables(model: AMMPL, path: Path) -> None:
    """Fill a model with saved learnables.

    Raises:
        UserError: the file is missing or no safetensors file, or holds learnables of other names or shapes.
    """
    with _opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    expected = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise UserError(
                str(path),
                f"{name} should have shape {wanted.get(name)}",
                got=shapes.get(name),
                fix="load it with the configuration and classes that it was trained with",
            )
    model.load_state_dict(found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(str(path), "no such file of learnables")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(str(path), f"is not a whole safetensors file ({error})") from None

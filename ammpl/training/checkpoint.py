"""Final learnables on disk: safetensors, kilobytes, with the configuration they belong to. Never pickles."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ammpl.config import TrialConfig
from ammpl.errors import UserError
from ammpl.model.ammpl import AMMPL

FILE = "learnables.safetensors"


def save_learnables(model: AMMPL, config: TrialConfig, path: Path) -> None:
    """Write the learnables (the backbone is not among them), the configuration and the class names to one file.

    The file appears whole or not at all.
    """
    # One key: safetensors writes several in no fixed order, and equal trials should leave equal files.
    metadata = {"ammpl": json.dumps({"class_names": model.text_prompt.class_names, "config": config.model_dump()})}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def load_learnables(model: AMMPL, path: Path) -> None:
    """Fill a model with saved learnables.

    Raises:
        UserError: the file is missing or no safetensors file, or holds learnables of other names or shapes.
    """
    if not path.is_file():
        raise UserError(str(path), "no such file of learnables")
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(str(path), f"is not a whole safetensors file ({error})") from None
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

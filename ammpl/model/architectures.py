"""Names of backbones: open_clip's architectures, its ``hf-hub:`` and ``local-dir:``, and other spellings of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub import constants

from ammpl.errors import UserError, did_you_mean, reason_of
from ammpl.model import tiny_glyph

FOLDER, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"


def has_own_weights(name: str) -> bool:
    """Return whether a name is that of a model with its weights, in a folder or a repository of the hub."""
    return name.startswith((FOLDER, HUB))


def model_config(name: str) -> Mapping[str, Any]:
    """Return open_clip's description of an architecture that can be a backbone; weights are not needed.

    Raises:
        UserError: unknown, unreadable, or none of those that are supported.
    """
    if has_own_weights(name):
        config = _own_config(name)
        found = config.get("model_cfg", config)
    else:
        found = open_clip.get_model_config(name)
    if not isinstance(found, dict):
        raise UserError("backbone.name", "unknown backbone", got=name, fix=_suggestion(name))
    if (problem := _unsupported(found)) is not None:
        raise unsupported(name, problem)
    return found


def preprocess_config(name: str, pretrained: str | None) -> Mapping[str, Any]:
    """Return what is said of the images that a model was trained on; empty where nothing is."""
    if has_own_weights(name):
        return dict(_own_config(name).get("preprocess_cfg", {}))
    return dict(open_clip.get_pretrained_cfg(name, pretrained)) if pretrained else {}


def unsupported(name: str, problem: str) -> UserError:
    """Return the error that a model is of a kind whose inside is not known."""
    rule = f"its {problem}, and only CLIP models with a plain ViT image tower and a causal text tower are supported"
    return UserError(f"backbone {name}", rule, fix="use an architecture such as ViT-B-16, ViT-B-32 or ViT-L-14")


def supported() -> list[str]:
    """Return the names of the architectures that can be a backbone."""
    names = [name for name in open_clip.list_models() if _unsupported(open_clip.get_model_config(name)) is None]
    return [tiny_glyph.NAME, *names]


def is_here(name: str, files: tuple[str, ...]) -> bool:
    """Return whether the hub's copy of a model, any of these files, is on this machine."""
    repository = name.removeprefix(HUB)
    found = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
    return any(isinstance(path, str) for path in found)


def _own_config(name: str) -> Mapping[str, Any]:
    try:
        if name.startswith(FOLDER):
            path = Path(name.removeprefix(FOLDER)) / CONFIG
        else:
            path = Path(huggingface_hub.hf_hub_download(name.removeprefix(HUB), CONFIG))
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # of the hub's library, the network or the file
        if name.startswith(FOLDER):
            fix = f"name a folder that has {CONFIG} and the weights"
        elif constants.HF_HUB_OFFLINE:
            fix = "unset HF_HUB_OFFLINE, or copy the repository here and name its folder: --backbone local-dir:FOLDER"
        else:
            fix = "look at the name and the network, or copy the repository here: --backbone local-dir:FOLDER"
        rule = f"its {CONFIG} cannot be read ({reason_of(error)})"
        raise UserError("backbone.name", rule, got=name, fix=fix) from None
    if not isinstance(config, dict):
        raise UserError("backbone.name", f"its {CONFIG} is no object of JSON", got=name)
    return config


def _unsupported(config: Mapping[str, Any]) -> str | None:
    """Return which part of a model is of a kind that is not supported, as far as its description tells."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if "multimodal_cfg" in config or config.get("custom_text"):
        return "model is not a plain CLIP"
    if "timm_model_name" in vision or not isinstance(vision.get("layers", 12), int):
        return "image tower is not a plain ViT"
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        return "image tower does not read its class token"
    if "hf_model_name" in text or text.get("no_causal_mask") or text.get("pool_type", "argmax") != "argmax":
        return "text tower does not read its end token causally"
    return None


def _suggestion(name: str) -> str | None:
    known = supported()
    by_form = {_form(other): other for other in reversed(known)}  # the shortest of one form comes first in the list
    if (meant := by_form.get(_form(name))) is not None:
        return f"did you mean {meant!r}?"
    return did_you_mean(name, known)


def _form(name: str) -> str:
    """Return what spellings of one architecture have in common: ``openai/clip-vit-base-patch16`` is ``vitb16``."""
    form = name.lower().rpartition("clip-")[2]
    form = re.sub(r"^(openai|laion)/", "", form)
    for word, letter in (("base", "b"), ("large", "l"), ("huge", "h"), ("small", "s"), ("patch", ""), ("px", "")):
        form = form.replace(word, letter)
    return re.sub(r"[^a-z0-9]", "", form)

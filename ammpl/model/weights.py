"""Pretrained weights of open_clip's architectures: a tag, fetched once and kept where open_clip keeps it, or a file.

Weights are read as tensors only (``weights_only``, safetensors); nothing in a file is ever run.
"""

from __future__ import annotations

import os
import pickle
import socket
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
from huggingface_hub import constants
from safetensors import SafetensorError

from ammpl.errors import UserError, did_you_mean, reason_of
from ammpl.model import architectures

CONNECT_SECONDS = 5.0
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What a repository of the hub calls its weights, the better form first."""


def create_clip(name: str, pretrained: str) -> Any:
    """Return an open_clip model with its weights, on the CPU.

    OpenAI's weights, and some others, were trained with QuickGELU. open_clip's architectures ``ViT-B-16`` and
    ``ViT-B-16-quickgelu`` differ in nothing else, and a tag under the wrong one of the two would be worse by several
    points without an error: so a tag decides the activation itself. A file does not tell; the architecture decides.

    Args:
        name: one of open_clip's architectures.
        pretrained: a tag of that architecture, or the path of a checkpoint.

    Raises:
        UserError: neither a tag nor a file; weights that cannot be fetched, are damaged, or are of another shape.
    """
    tag = _tag(name, pretrained)
    given = Path(os.path.expandvars(pretrained)).expanduser()
    if not tag and not given.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        fix = did_you_mean(pretrained, tags)
        raise UserError(
            "backbone.pretrained", f"neither a pretrained tag of {name} nor a file", got=pretrained, fix=fix
        )
    file = _file_of(name, pretrained, tag) if tag else given
    quick_gelu = bool(tag.get("quick_gelu", False))
    try:
        clip = open_clip.create_model(
            name, pretrained=str(file), weights_only=True, device="cpu", force_quick_gelu=quick_gelu
        )
        return _finite(clip)
    except UserError:
        raise
    except Exception as error:
        rule, fix = _problem(name, error)
        raise UserError("backbone.pretrained", rule, got=pretrained, fix=fix) from error


def create_own_clip(name: str) -> Any:
    """Return the open_clip model of ``hf-hub:`` or ``local-dir:`` with its weights, on the CPU.

    Raises:
        UserError: weights that cannot be fetched, are damaged, or are of another shape.
    """
    try:
        return _finite(open_clip.create_model(name, weights_only=True, device="cpu"))
    except UserError:
        raise
    except Exception as error:  # of any library below
        rule, fix = _problem(name, error)
        raise UserError("backbone.name", rule, got=name, fix=fix) from error


def is_cached(name: str, pretrained: str) -> bool:
    """Return whether a tag's weights are on this machine."""
    return _cached(_tag(name, pretrained)) is not None


def needs_network(name: str, pretrained: str | None) -> bool:
    """Return whether a backbone cannot be loaded from what is on this machine."""
    if name.startswith(architectures.HUB):
        return not architectures.is_here(name, HUB_FILES)
    if pretrained is None:
        return False
    texts = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    return bool(_tag(name, pretrained)) and (not is_cached(name, pretrained) or "hf_tokenizer_name" in texts)


def tags_text(tags: Sequence[str]) -> str:
    """Return the tags of an architecture for people."""
    return "one of " + ", ".join(tags) if tags else "give a file's path"


def _finite(clip: Any) -> Any:
    """Return a model whose weights are all numbers.

    Raises:
        UserError: some are not.
    """
    broken = [name for name, value in clip.state_dict().items() if not value.isfinite().all()]
    if broken:
        rule = f"has weights that are NaN or infinite ({len(broken)} tensors, such as {broken[0]})"
        raise UserError("backbone.pretrained", rule, fix="copy or download it again, or ask who trained it")
    return clip


def _tag(name: str, pretrained: str) -> Mapping[str, Any]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return open_clip.get_pretrained_cfg(name, pretrained) if pretrained in tags else {}


def _file_of(name: str, pretrained: str, tag: Mapping[str, Any]) -> Path:
    """Return the file of a tag's weights, fetched where it is not on this machine yet."""
    if (file := _cached(tag)) is not None:
        return file
    problem = _unreachable(tag)
    if problem is None:
        try:
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:  # of any library below
            problem = f"could not be fetched ({reason_of(error, 160)})"
    raise UserError("backbone.pretrained", f"the weights of {name} {problem}", got=pretrained, fix=_by_hand(name, tag))


def _cached(tag: Mapping[str, Any]) -> Path | None:
    """Return a tag's weights where open_clip would put them, without asking the network."""
    if tag.get("hf_hub"):
        repository, own = _repository(tag)
        for file in (own,) if own else HUB_FILES:
            found = huggingface_hub.try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found)
    elif tag.get("url"):
        kept = Path("~/.cache/clip").expanduser() / Path(tag["url"]).name
        return kept if kept.is_file() else None
    return None


def _unreachable(tag: Mapping[str, Any]) -> str | None:
    """Return why a tag's weights cannot be fetched now; None where they may. Its libraries would try for a minute."""
    if constants.HF_HUB_OFFLINE:
        return "are not on this machine, and HF_HUB_OFFLINE is set"
    host = urlsplit(_address(tag)).hostname or ""
    if urllib.request.getproxies():
        return None  # the proxy knows the host, this machine may not
    try:
        socket.create_connection((host, 443), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"are not on this machine, and {host} does not answer ({error.strerror or error})"
    return None


def _by_hand(name: str, tag: Mapping[str, Any]) -> str:
    """Return how to bring weights here without network."""
    needs = tag.get("quick_gelu", False) and not open_clip.get_model_config(name).get("quick_gelu", False)
    architecture = f"{name}-quickgelu" if needs else name
    given = f"give the file: --backbone {architecture} --pretrained FILE"
    if not tag.get("hf_hub"):
        return f"fetch {_address(tag)} elsewhere and {given}"
    repository, _ = _repository(tag)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return (
        f"fetch {_address(tag)} elsewhere and {given}; or run 'hf download {repository}' there and copy its cache "
        f"folder to {folder}"
    )


def _repository(tag: Mapping[str, Any]) -> tuple[str, str]:
    """Return the hub's repository of a tag, and the file in it where the tag names one."""
    return os.path.split(tag["hf_hub"])


def _address(tag: Mapping[str, Any]) -> str:
    if not tag.get("hf_hub"):
        return str(tag["url"])
    repository, file = _repository(tag)
    return f"{constants.ENDPOINT}/{repository}/resolve/main/{file or HUB_FILES[0]}"


def _problem(name: str, error: Exception) -> tuple[str, str]:
    """Return what is wrong with a checkpoint and what to do; torch's own advice would be to run what it contains."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return "is a TorchScript archive, which holds code and is never loaded", (
            "take the tensors alone, such as open_clip_model.safetensors of the same weights"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "is damaged, or a pickle that holds more than tensors, which could run code and is never loaded", (
            "save its state dict as safetensors where you trust it, or download it again"
        )
    if isinstance(error, EOFError | SafetensorError) or "zip archive" in text:
        return f"is not a whole checkpoint ({text[:100] or 'it ends too early'})", "copy or download it again"
    if "state_dict" in text:
        return f"does not fit {name}: {text.partition(':')[2].strip()[:160]} …", (
            "set backbone.name to the architecture that it was saved from"
        )
    return f"these weights of {name} could not be loaded ({type(error).__name__}: {text[:160]})", (
        "give the path of a checkpoint of that architecture"
    )

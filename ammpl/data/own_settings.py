"""The optional ``dataset.yaml`` beside a user's own pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ammpl.data.manifest import MANIFESTS
from ammpl.errors import UserError, did_you_mean
from ammpl.yaml_file import read_yaml

SETTINGS = "dataset.yaml"
KEYS = ("class_names", "template", "manifest")
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Settings:
    """What the file says.

    Attributes:
        class_names: the class as folders or the manifest call it -> its name in prompts.
        template: the zero-shot sentence, ``{}`` for the name.
        manifest: the file that lists the pictures; None for class folders.
    """

    class_names: Mapping[str, str] = field(default_factory=dict)
    template: str = TEMPLATE
    manifest: Path | None = None


def read_settings(folder: Path) -> Settings:
    """Read the folder's ``dataset.yaml``, if there is one.

    Raises:
        UserError: the file is not as it should be; with the key.
    """
    file = folder / SETTINGS
    if not file.exists() and not file.is_symlink():  # a dangling link is a mistake, not a wish for the defaults
        return Settings()
    content = read_yaml(file)
    if content is None:  # all of it commented out
        return Settings()
    if not isinstance(content, dict):
        raise UserError(str(file), f"must be keys and values, of {', '.join(KEYS)}", got=content)
    for key in content:
        if key not in KEYS:
            raise UserError(str(file), "unknown key", got=key, fix=did_you_mean(str(key), KEYS))
    return Settings(
        _class_names(content.get("class_names", {}), f"{file}: class_names"),
        _template(content.get("template", TEMPLATE), f"{file}: template"),
        _manifest(folder, content.get("manifest"), f"{file}: manifest"),
    )


def _class_names(names: Any, where: str) -> dict[str, str]:
    if not isinstance(names, dict):
        raise UserError(where, "must map each folder to a name, as in 'n02084071: dog'", got=names)
    for folder, name in names.items():
        if type(folder) not in (str, int):  # true is no number here
            raise UserError(where, "a folder must be a text", got=folder, fix="write it in quotes")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: {folder}", "the name must be a text", got=name, fix="write it in quotes")
    return {str(folder): name for folder, name in names.items()}


def _template(template: Any, where: str) -> str:
    if not isinstance(template, str) or template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise UserError(where, "must be a text with exactly one {}, where the name goes", got=template, fix=TEMPLATE)
    return template


def _manifest(folder: Path, manifest: Any, where: str) -> Path | None:
    if manifest is None:
        return None
    if not isinstance(manifest, str) or Path(manifest).name != manifest or not manifest.endswith(MANIFESTS):
        rule = f"must be a file in this folder, {' or '.join(MANIFESTS)}"
        raise UserError(where, rule, got=manifest)
    if not (folder / manifest).is_file():
        there = [path.name for path in folder.iterdir() if path.name.endswith(MANIFESTS)]
        raise UserError(where, "there is no such file", got=manifest, fix=did_you_mean(manifest, there))
    return folder / manifest

"""What a study ran on, for the record: versions, machine, code, command."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ammpl
from ammpl.config import METHODS
from ammpl.redaction import redacted
from ammpl.study.addresses import without_path

PACKAGES = (
    "ammpl-study",
    "torch",
    "torchvision",
    "open_clip_torch",
    "numpy",
    "ray",
    "optuna",
    "mlflow",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "pydantic",
)


def describe_environment(ray_resources: Mapping[str, float], command: list[str]) -> dict[str, Any]:
    """Return versions, machine, code revision and command line as plain data.

    Nothing is imported to find a version, and torch is not asked for devices: the driver stays free of both.

    Args:
        ray_resources: what the Ray cluster offers in all.
        command: the command line; passwords in its URIs are left out.
    """
    return {
        "command": _without_secrets(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "gpus": _gpus(),
        "ray": {name: amount for name, amount in ray_resources.items() if name in ("CPU", "GPU", "memory")},
        "code": _revision(),
        "packages": {name: version for name in (*PACKAGES, *METHODS.packages) if (version := _version(name))},
    }


def changed_packages(folder: Path) -> list[str]:
    """Return the packages whose versions are not those that a study began with: ``optuna 5.0.0 then, 5.1.0 now``."""
    try:
        then = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["packages"]
        return [f"{n} {v} then, {_version(n)} now" for n, v in then.items() if v != _version(n)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def session_environment(folder: Path, session: int) -> dict[str, Any] | None:
    """Return what a session of a study (from 1) ran on; None where its record cannot be read."""
    name = "environment.json" if session <= 1 else f"environment-{session}.json"
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return in what two records differ (``cpus 2 then, 4 now``), by ``machine``, ``versions`` and ``device``.

    The device is the GPUs where trials had some, else the processor, which is the machine's.
    """

    def changed(was: Mapping[str, Any], names: Iterable[str], of: Mapping[str, Any]) -> list[str]:
        return [f"{n} {was.get(n)} then, {of.get(n)} now" for n in names if was.get(n) != of.get(n)]

    was, of = then.get("packages", {}), now.get("packages", {})
    versions = [*changed(then, ["python"], now), *changed(was, dict.fromkeys([*was, *of]), of)]
    code, code_now = then.get("code", {}), now.get("code", {})
    versions += [f"code: {text}" for text in changed(code, ["commit", "modified"], code_now)]
    if code.get("modified") and code_now.get("modified"):
        versions.append("code: modified since its commit, then and now")
    had = then.get("trial", {}).get("gpus", len(then.get("gpus", ())))
    device = changed({"GPUs": then.get("gpus")}, ["GPUs"], {"GPUs": now.get("gpus")}) if had else []
    return {"machine": changed(then, ["platform", "processor", "cpus"], now), "versions": versions, "device": device}


def _without_secrets(command: list[str]) -> list[str]:
    """Return a command line that can be saved: without passwords, and without addresses that are keys."""
    words = [redacted(word) for word in command]
    for index, word in enumerate(words):
        name, equals, url = word.partition("=")
        if equals and name == "--notify":
            words[index] = f"--notify={without_path(url)}"
        elif index and words[index - 1] == "--notify":
            words[index] = without_path(word)
    return words


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    if sys.platform == "linux":
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> list[str]:
    query = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return query.splitlines() if query else []


def _revision() -> dict[str, Any]:
    """Return the git commit of this package's sources and whether they were changed since."""
    package = Path(ammpl.__file__).resolve().parent
    commit = _output(["git", "-C", str(package), "rev-parse", "HEAD"])
    if not commit:
        return {}
    changes = _output(["git", "-C", str(package), "status", "--porcelain", "--", str(package)])
    return {"commit": commit, "modified": bool(changes)}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""Whether this machine is ready for studies: what is fine, what is not, what to do."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from ammpl.data.catalog import DESCRIPTIONS
from ammpl.data.home import DataHome
from ammpl.errors import UserError, reason_of
from ammpl.study.views.mlflow_process import DEFAULT_URI

LEAST_DISK = 2 * 2**30
"""Below this a study's own files still fit; prepared data sets may not."""
SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        text: what was found.
        fix: what to do about it; None where all is well.
        serious: whether studies cannot run before it is mended.
    """

    name: str
    text: str
    fix: str | None = None
    serious: bool = False

    @property
    def mark(self) -> str:
        """``ok``, ``note`` or ``FAIL``."""
        return "ok" if self.fix is None else "FAIL" if self.serious else "note"

    def __str__(self) -> str:
        """Return what a person reads."""
        return f"{self.mark:5}{self.name}: {self.text}" + (f"\n     to do: {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Surroundings:
    """What a study would be started with.

    Attributes:
        home: where data lie.
        tracking_uri: MLflow's; None takes the default.
        ray_address: of a cluster; None starts Ray on this machine.
        backbone: an architecture and its weights, None for the embedded one.
    """

    home: DataHome
    tracking_uri: str | None = None
    ray_address: str | None = None
    backbone: tuple[str, str | None] | None = None


def examine(surroundings: Surroundings) -> Iterator[Finding]:
    """Look at one thing after the other; nothing is left behind."""
    checks: tuple[Callable[[Surroundings], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _torch,
        _disk,
        _store,
        _backbone,
        _data,
        _ray,
    )
    for check in checks:
        try:
            yield from check(surroundings)
        except Exception as error:  # the doctor's own blindness is a finding, too
            reason = f"{type(error).__name__}: {reason_of(error)}"
            yield Finding(check.__name__.strip("_"), f"could not be looked at ({reason})", "see the reason", True)


def _python(_: Surroundings) -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    yield Finding("python", text)


def _packages(_: Surroundings) -> Iterator[Finding]:
    try:
        wanted = metadata.requires("ammpl-study") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "ammpl-study is not installed", "pip install -e . in its folder", True)
        return
    required = [item for item in map(Requirement, wanted) if item.marker is None or item.marker.evaluate()]
    wrong = []
    for item in required:
        try:
            found = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{item.name} is missing")
            continue
        if not item.specifier.contains(found, prereleases=True):
            wrong.append(f"{item.name} is {found}, needed is {item.specifier}")
    names = ("ray", "optuna", "mlflow", "open_clip_torch", "pyarrow")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names if not wrong)
    if wrong:
        yield Finding("packages", "; ".join(wrong), "pip install -e . in the project's folder", True)
    else:
        yield Finding("packages", f"all {len(required)} as needed: {versions}")


def _torch(_: Surroundings) -> Iterator[Finding]:
    import torch
    import torchvision

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    boxes, ranks = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
    torchvision.ops.nms(boxes, ranks, 0.5)  # fails where the two packages do not belong together
    yield Finding("torch", f"{torch.__version__} {build}, torchvision {torchvision.__version__}")
    devices = [
        f"{torch.cuda.get_device_name(number)} ({torch.cuda.mem_get_info(number)[1] / 2**30:.0f} GiB)"
        for number in range(torch.cuda.device_count())
    ]
    seen = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if devices:
        yield Finding("GPUs", ", ".join(devices))
    elif seen:
        fix = "install a torch build for the driver's CUDA version, or look at CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", f"the driver has {len(seen.splitlines())}, torch sees none", fix)
    else:
        yield Finding("GPUs", "none: trials run on the CPU")


def _disk(surroundings: Surroundings) -> Iterator[Finding]:
    places: dict[str, Path] = {
        "studies": Path("studies").absolute(),
        "store": surroundings.home.store,
        "scratch": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        text = f"{place}: {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK | os.X_OK):
            fix = "give another with --store" if name == "store" else "use a folder of your own"
            yield Finding(f"disk, {name}", f"{there} may not be written to", fix, serious=True)
        else:
            yield Finding(f"disk, {name}", text, "free some space" if free < LEAST_DISK else None)


def _store(surroundings: Surroundings) -> Iterator[Finding]:
    uri = surroundings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    is_folder = uri.startswith("file:") or "://" not in uri
    if is_folder or uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").removeprefix("file:").replace("///", "/")).absolute()
        if is_folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
            advice = f"take the default, {DEFAULT_URI}, or set MLFLOW_ALLOW_FILE_STORE=true"
            what = f"{path} is a folder, and MLflow no longer keeps runs in one by itself"
            yield Finding("MLflow", what, advice, serious=True)
            return
        state = "is there" if path.is_file() else "will be made"
        writable = os.access(path if path.exists() else path.parent, os.W_OK)
        fix = None if writable else "give another with --tracking-uri; without a store a study does not start"
        yield Finding("MLflow", f"{path} {state if writable else 'may not be written to'}", fix, not writable)
        return
    address = urlsplit(uri)
    port = address.port or {"https": 443, "http": 80, "postgresql": 5432, "mysql": 3306}.get(
        address.scheme.partition("+")[0], 0
    )
    shown = f"{address.scheme}://{address.hostname}:{port}"
    problem = _connection_problem(address.hostname or "", port)
    fix = "start it, or give another with --tracking-uri" if problem else None
    yield Finding("MLflow", f"{shown} {'does not answer: ' + problem if problem else 'answers'}", fix, bool(problem))


def _backbone(surroundings: Surroundings) -> Iterator[Finding]:
    from ammpl.config import BackboneConfig
    from ammpl.model.backbone import load_backbone

    name, pretrained = surroundings.backbone or ("tiny-glyph", None)
    began = time.monotonic()
    try:
        backbone = load_backbone(BackboneConfig(name=name, pretrained=pretrained))
    except UserError as error:
        yield _mistake("backbone", error)
        return
    seconds = time.monotonic() - began
    size = sum(parameter.numel() for parameter in backbone.clip.parameters()) / 1e6
    yield Finding("backbone", f"{backbone.name}: {size:.3g} million parameters, loaded in {seconds:.1f} s")


def _data(surroundings: Surroundings) -> Iterator[Finding]:
    root = surroundings.home.root
    if not root.is_dir():
        fix = "for other data sets give --data-root DIR, or get them by 'tune.py prepare NAME --download'"
        yield Finding("data", f"{root} does not exist: embedded data sets only", fix)
        return
    there = [name for name, description in DESCRIPTIONS.items() if (root / description.folder).is_dir()]
    yield Finding("data", f"{root}: {', '.join(there) if there else 'none of the published data sets'}")
    for name in there:
        description = DESCRIPTIONS[name]
        split = description.split_file
        if split and not (root / description.folder / split).is_file():
            fix = f"put {split} there, or say with your numbers that the split was drawn by our fallback rule"
            yield Finding(f"data, {name}", f"has no {split}: numbers will not compare with published ones", fix)


def _ray(surroundings: Surroundings) -> Iterator[Finding]:
    import ray

    from ammpl.study.engine.ray_cluster import connected

    began = time.monotonic()
    try:
        with connected(surroundings.ray_address):
            started = time.monotonic() - began
            host = ray.get(ray.remote(_host).remote(), timeout=60)
            resources = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
    except UserError as error:
        yield _mistake("Ray", error)
        return
    has = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs on {nodes} node(s)"
    yield Finding("Ray", f"{has}; a task ran on {host} within {time.monotonic() - began:.1f} s")
    if surroundings.ray_address:
        yield Finding(
            "Ray's ports", "whoever is let in runs code as you: keep them in a private network, with a token"
        )
    else:
        yield Finding("Ray's ports", "on 127.0.0.1 only, for who has your token")
    yield _start(surroundings, started)


def _start(surroundings: Surroundings, ray_seconds: float) -> Finding:
    """Tell the seconds of each part of a study's start."""
    from ammpl.config import BackboneConfig
    from ammpl.study.phases import phases

    name, pretrained = surroundings.backbone or ("tiny-glyph", None)
    taken = {"Ray": ray_seconds}
    try:
        taken |= phases(BackboneConfig(name=name, pretrained=pretrained))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return Finding("start", f"could not be timed ({reason})", "mend what is said above, and look again")
    order = ("imports", "Ray", "MLflow store", "worker", "backbone", "data")
    seconds = ", ".join(f"{part} {taken[part]:.1f} s" for part in order if part in taken)
    return Finding("start", f"{seconds}; store and worker begin beside Ray")


def _host() -> str:
    return socket.gethostname()


def _mistake(name: str, error: UserError) -> Finding:
    return Finding(name, f"{error.where}: {error.rule}", error.fix or "mend it", serious=True)


def _connection_problem(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _output(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""

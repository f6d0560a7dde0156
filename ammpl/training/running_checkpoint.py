"""The running checkpoint: what a trial that dies leaves behind to go on from, as if it had not died.

Written at each evaluation. Where a trial stands is one number, the steps it has done: the order of batches, crops,
masks, noise and the learning rate depend on seeds and the step alone. So the file holds that number, what the steps
have changed (learnables and the optimiser's state), and the evaluations so far, which are told again. Tensors are
safetensors, the rest is JSON in their metadata: one file, so the two are always of the same step. Never pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import ammpl
from ammpl.config import TrialConfig
from ammpl.model.ammpl import AMMPL

FILE = "running.safetensors"
DRAFT = "running.partial"
FORMAT = 1

log = logging.getLogger(__name__)

Evaluations = list[tuple[int, dict[str, float]]]


class RunningCheckpoint:
    """The running checkpoint of one trial.

    It is an insurance: a trial does not fail for want of it, and one that cannot be gone on from exactly is not used.

    Args:
        folder: the trial's own; created by the first :meth:`save`.
        config: the trial's.
        model: its model, freshly built.
        optimizer: its optimiser, freshly built.
    """

    def __init__(self, folder: Path, config: TrialConfig, model: AMMPL, optimizer: torch.optim.Optimizer):
        self._path, self._draft = folder / FILE, folder / DRAFT
        self._model = model
        self._optimizer = optimizer
        # What must be equal for the numbers to be those of a trial that never died.
        self._identity = {
            "format": FORMAT,
            "config": config.sha256,
            "ammpl-study": ammpl.__version__,
            "torch": torch.__version__,
            "device": f"{model.backbone.device_name}, {model.backbone.precision}",
            "learnables": {name: list(value.shape) for name, value in model.state_dict().items()},
        }

    def save(self, evaluations: Evaluations) -> None:
        """Write where the trial stands, at the step of its last evaluation; the file before is replaced whole.

        Where it cannot be written, as on a full disk, the file before stays, with a line in the log.

        Args:
            evaluations: (step, metrics) so far, at least one.
        """
        tensors = {f"model/{name}": value for name, value in self._model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{key}": value for key, value in state.items() if value is not None})
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps({"identity": self._identity, "evaluations": evaluations})
        content = save(tensors, {"ammpl": text, "sha256": _sha256(text, tensors)})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._draft.write_bytes(content)
            # Not synced to the disk: the checksum tells what a power cut has made of it.
            self._draft.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written (%s): the trial goes on without", self._path, error.strerror)
            with contextlib.suppress(OSError):  # half a draft would only fill a full disk
                self._draft.unlink(missing_ok=True)

    def restore(self) -> Evaluations:
        """Put model and optimiser where the file's trial stood; return its evaluations.

        Without a file, or where it is damaged or of another configuration, version or device, nothing is changed and
        the list is empty: the trial starts anew, in the latter cases with a line in the log.
        """
        try:
            with safe_open(self._path, "pt") as file:
                metadata = file.metadata() or {}
                # Copies: the file will be replaced, and memory of one's own is aligned like that of a fresh trial.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            return []
        except (OSError, SafetensorError) as error:
            return self._anew(f"is damaged ({error})")
        text = metadata.get("ammpl", "")
        if metadata.get("sha256") != _sha256(text, tensors):
            return self._anew("is damaged (its checksum differs)")
        record: dict[str, Any] = json.loads(text)
        if differing := [name for name, value in self._identity.items() if record["identity"].get(name) != value]:
            return self._anew(f"is of another {' and '.join(differing)}")
        states: dict[int, dict[str, Tensor]] = {}
        learnables: dict[str, Tensor] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "model":
                learnables[rest] = value
            else:
                index, _, key = rest.partition("/")
                states.setdefault(int(index), {})[key] = value
        self._model.load_state_dict(learnables)
        # The groups are the configuration's, fresh; loading brings each tensor to its parameter's device.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})
        evaluations: Evaluations = [(step, metrics) for step, metrics in record["evaluations"]]
        log.info("%s: the trial goes on after step %d", self._path, evaluations[-1][0])
        return evaluations

    def _anew(self, problem: str) -> Evaluations:
        log.warning("%s %s: the trial starts anew", self._path, problem)
        return []


def remove(folder: Path) -> None:
    """Remove a trial's running checkpoint, and what a process killed while writing it has left."""
    for name in (FILE, DRAFT):
        (folder / name).unlink(missing_ok=True)


def _sha256(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the checksum of a file's content, which safetensors itself does not have."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

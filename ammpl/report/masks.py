"""What was learned of the patches: pictures of masks, and how far the classes' masks lie apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ammpl.report.figures import WIDTH, Figure, draw
from ammpl.report.results import StudyResult, TrialResult
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.trial import Phase, State

MATRIX = "image_prompt.mask.matrix_GN"
MOST_PICTURES = 8
MOST_NAMED = 40
"""Classes whose names fit beside a matrix of distances."""


@dataclass(frozen=True)
class Picture:
    """A picture that a trial drew, as a PNG file's bytes."""

    name: str
    title: str
    caption: str
    png: bytes


def shown(study: StudyResult) -> list[TrialResult]:
    """Return the trials whose masks are shown: the first complete repeat of each candidate that was compared."""
    phase: Phase = "ablation" if isinstance(study.space, AblationSpace) else "confirm"
    found: dict[str, TrialResult] = {}
    for row in study.rows:
        for trial in study.of_candidate(row.candidate, phase):
            if trial.state is State.COMPLETE:
                found.setdefault(row.candidate, trial)
    return list(found.values())


def _labels(study: StudyResult) -> dict[str, str]:
    return {row.candidate: row.label for row in study.rows}


def pictures(study: StudyResult) -> list[Picture]:
    """Return the masks over sample images that trials have drawn."""
    found: list[Picture] = []
    for trial in shown(study):
        path = study.folder / "checkpoints" / trial.key / "masks.png"
        if path.is_file() and len(found) < MOST_PICTURES:
            caption = (
                "From above: a validation image of each class, the probability of keeping each patch (dark "
                "0, yellow 1), "
                f"the image as evaluation shows it. Repeat {trial.repeat}."
            )
            found.append(
                Picture(
                    f"masks-{trial.candidate}",
                    f"Masks of {_labels(study)[trial.candidate]}",
                    caption,
                    path.read_bytes(),
                )
            )
    return found


def distances(study: StudyResult) -> list[Figure]:
    """Return, for each candidate shown with a matrix a class, the distances between classes' probabilities."""
    figures = []
    for trial in shown(study):
        learned = probabilities(study.folder / "checkpoints" / trial.key / "learnables.safetensors")
        if learned is not None and len(learned[1]) > 1:
            figures.append(_distance_figure(trial, _labels(study)[trial.candidate], *learned))
    return figures


def probabilities(path: Path) -> tuple[list[str], np.ndarray] | None:
    """Return class names and the probabilities (G, N) of a trial's learned matrices; None where there are none."""
    try:
        with safe_open(path, "numpy") as file:
            if MATRIX not in file.keys():  # noqa: SIM118 (not a dict)
                return None
            matrix_GN = np.asarray(file.get_tensor(MATRIX), dtype=float)
            about = json.loads(file.metadata()["ammpl"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if about["config"]["model"]["mask"]["parameterization"] == "sigmoid":
        p_GN = 1 / (1 + np.exp(-matrix_GN))
    else:
        p_GN = matrix_GN.clip(0, 1)
    return list(about["class_names"]), p_GN


def mask_distances(p_GN: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference between two classes' probabilities, over patches: (G, G), 0 to 1."""
    found: np.ndarray = np.abs(p_GN[:, None] - p_GN[None]).mean(-1)
    return found


def _distance_figure(trial: TrialResult, label: str, names: list[str], p_GN: np.ndarray) -> Figure:
    apart = mask_distances(p_GN)

    def paint(figure: Figure) -> None:
        axes = figure.drawing.subplots()
        image = axes.imshow(apart, cmap="viridis", vmin=0)
        figure.mark(image, trial.candidate, f"{trial.key}\nmean distance {_mean_off_diagonal(apart):.4f}")
        figure.drawing.colorbar(image, ax=axes, label="mean |p − p′| over patches", shrink=0.8)
        if len(names) <= MOST_NAMED:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)

    caption = (
        f"Mean distance of two classes' probabilities, 0 for equal masks; mean over pairs "
        f"{_mean_off_diagonal(apart):.4f}. "
        f"Repeat {trial.repeat}."
    )
    name, title = f"mask-distances-{trial.candidate}", f"Distances between classes' masks, {label}"
    return draw(name, title, caption, paint, (WIDTH * 0.75, WIDTH * 0.6))


def _mean_off_diagonal(apart: np.ndarray) -> float:
    return float(apart[~np.eye(len(apart), dtype=bool)].mean())

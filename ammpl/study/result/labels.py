"""Short names for people: the terminal, MLflow's run names, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ammpl.config import Scalar
from ammpl.study.trial import Trial


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return each dotted name's shortest ending that no other of them shares.

    Examples:
        >>> short_names(["model.mask.temperature", "model.padding.depth"])
        {'model.mask.temperature': 'temperature', 'model.padding.depth': 'depth'}
    """
    parts = {name: name.split(".") for name in names}
    endings = Counter(".".join(words[-length:]) for words in parts.values() for length in range(1, len(words) + 1))

    def shortest(words: list[str]) -> str:
        candidates = (".".join(words[-length:]) for length in range(1, len(words) + 1))
        return next((ending for ending in candidates if endings[ending] == 1), ".".join(words))

    return {name: shortest(words) for name, words in parts.items()}


def value_text(value: Scalar) -> str:
    """Return a value as one would type it in a space file; floats with three significant digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def params_text(params: Mapping[str, Scalar]) -> str:
    """Return searched parameters on one line: ``temperature=0.31 depth=2 width=16``."""
    return _text(params, short_names(params))


SYMBOLS = {
    "data.shots": "shots",
    "model.interaction.strength": "strength",
    "model.interaction.width": "r",
    "model.mask.temperature": "tau",
    "model.padding.depth": "J",
    "model.text.length": "M",
    "training.batch_size": "batch",
    "training.learning_rate": "lr",
    "training.mask_lr_multiplier": "mask_lr",
    "training.weight_decay": "wd",
}
"""What the method (docs/method.md) and the field call a parameter in little space."""


def symbol(name: str) -> str:
    """Return what a parameter is called in names of runs: its symbol, else its last word."""
    return SYMBOLS.get(name, name.rpartition(".")[2])


def symbols_text(params: Mapping[str, Scalar]) -> str:
    """Return searched parameters in little space: ``tau=0.31 J=2 r=16``."""
    short = {name: symbol(name) for name in params}
    return _text(params, short if len(set(short.values())) == len(short) else short_names(params))


def _text(params: Mapping[str, Scalar], names: Mapping[str, str]) -> str:
    return " ".join(f"{names[name]}={value_text(value)}" for name, value in params.items())


def run_name(trial: Trial) -> str:
    """Return a trial's name in a list of runs: ``007 tau=0.31 J=2``, or its key outside the search."""
    if trial.phase != "search":
        return trial.key
    repeat = f" r{trial.repeat}" if "-r" in trial.key else ""
    return f"{trial.number:03d}{repeat} {symbols_text(trial.params)}".rstrip()

"""The configuration of one trial: everything that decides a number, typed, frozen, and checked as a whole.

A :class:`TrialConfig` is written with dotted names (``model.mask.temperature``), in a space file, in ``--set`` and in
the results alike. :func:`resolve` layers such values over a method's published settings and over the fields' defaults.
Equal configurations have equal hashes; trials of one study differ by hyperparameters, not by data noise.
"""

from ammpl.config.methods import METHODS, Method
from ammpl.config.sections import (
    BackboneConfig,
    DataConfig,
    InteractionConfig,
    MaskConfig,
    ModelConfig,
    PaddingConfig,
    Scalar,
    SeedConfig,
    TextConfig,
    TokensConfig,
    TrainingConfig,
)
from ammpl.config.trial import FIELD_DEFAULTS, FIELD_NAMES, TrialConfig, resolve

__all__ = [
    "FIELD_DEFAULTS",
    "FIELD_NAMES",
    "METHODS",
    "BackboneConfig",
    "DataConfig",
    "InteractionConfig",
    "MaskConfig",
    "Method",
    "ModelConfig",
    "PaddingConfig",
    "Scalar",
    "SeedConfig",
    "TextConfig",
    "TokensConfig",
    "TrainingConfig",
    "TrialConfig",
    "resolve",
]

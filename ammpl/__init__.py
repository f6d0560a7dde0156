"""AMMPL Study: distributed hyperparameter studies of adaptive multi-modality prompt learning."""

__version__ = "0.1.0"

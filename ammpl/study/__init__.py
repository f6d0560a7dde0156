"""Studies: :func:`run` a space, :func:`open` a study's folder; the modules are what they are made of."""

from ammpl.api import Study, open, prepare, run

__all__ = ["Study", "open", "prepare", "run"]

"""The commands of ``tune.py``, a file each: their flags, their help, and what they do with the package."""

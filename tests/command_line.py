"""What tests of the command line start from."""

from __future__ import annotations

SPACE = """\
version: 1
name: small
fixed: {data.shots: 1, model.mask.scope: task, training.steps: 2}
parameters:
  model.mask.temperature: {type: float, low: 0.1, high: 2.0}
budget: {trials: 2}
"""

"""What every test shares: one torch thread. Small matrices on many threads of few cores are ten times slower."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

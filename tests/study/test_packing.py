from __future__ import annotations

import pytest

from ammpl.study.engine.packing import HEADROOM, MOST_TRIALS, Memory, describe, measure, share, trials_that_fit
from ammpl.study.engine.ray_worker import Resources

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "besides", "total", "trials"),
    [
        (3.0, 0.5, 80.0, MOST_TRIALS),  # 18 would have the memory, and wait for each other
        (10.0, 0.6, 80.0, 6),
        (31.5, 0.5, 80.0, 2),
        (31.6, 0.5, 80.0, 1),  # twice with head-room is more than there is
        (79.0, 0.5, 80.0, 1),
        (0.1, 2.0, 24.0, MOST_TRIALS),
        (1.0, 2.0, 24.0, 6),  # what a process needs besides counts for each trial
    ],
)
def test_how_many_trials_fit(peak: float, besides: float, total: float, trials: int) -> None:
    memory = Memory(int(peak * GIB), int(besides * GIB), int(total * GIB))
    assert trials_that_fit(memory) == trials
    assert trials == 1 or trials * HEADROOM * (memory.peak + memory.besides) <= memory.total
    assert describe(memory) == f"the first one needed {peak + besides:.1f} of {total:.1f} GiB"


def test_without_a_measurement_a_trial_has_a_gpu_of_its_own() -> None:
    assert trials_that_fit(None) == trials_that_fit(Memory(0, GIB, GIB)) == 1
    assert measure() is None  # here without a GPU, or without having used it


@pytest.mark.parametrize("trials", range(1, MOST_TRIALS + 1))
def test_shares_add_up_to_a_gpu_at_most(trials: int) -> None:
    assert 0.999 < trials * share(trials) <= 1
    assert Resources(16, 1, share(trials)).trials_a_gpu == trials

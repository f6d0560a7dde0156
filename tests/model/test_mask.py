from __future__ import annotations

import pytest
import torch

from ammpl.config import MaskConfig
from ammpl.model.image_prompt import CLAMP, ProbabilityMatrix

ROWS = torch.arange(2)


def matrix(**values) -> ProbabilityMatrix:
    return ProbabilityMatrix(MaskConfig(**values), rows=2, patches=6, dtype=torch.float64)


def uniform(B=20_000, seed=0):
    return torch.rand(B, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("parameterization", ["sigmoid", "clamp"])
def test_starts_at_the_initial_probability(parameterization):
    _, p = matrix(parameterization=parameterization, initial_probability=0.8).logits_and_probabilities(ROWS)
    torch.testing.assert_close(p, torch.full((2, 6), 0.8, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_hard_sample_is_bernoulli_of_p_at_any_temperature(temperature):
    mask = matrix(temperature=temperature, initial_probability=0.7)
    drawn = mask.sample(ROWS, uniform())
    assert set(drawn.detach().unique().tolist()) <= {0.0, 1.0}
    # Five standard errors of the mean of 20,000 draws.
    torch.testing.assert_close(drawn.mean(0), torch.full((2, 6), 0.7).double(), rtol=0, atol=5 * 0.46 / 20_000**0.5)
    colder = matrix(temperature=0.5, initial_probability=0.7)
    assert torch.equal(drawn, colder.sample(ROWS, uniform()))


def test_temperature_shapes_the_gradient():
    """The gradient of one draw is y (1 - y) / tau: its spread at p = .9 falls steeply as tau grows."""
    deviations = {}
    for temperature in (0.1, 2.0):
        mask = matrix(temperature=temperature, initial_probability=0.9)
        noise = uniform(4000)
        soft = ((mask.matrix_GN.detach() + noise.logit()) / temperature).sigmoid()
        expected = soft * (1 - soft) / temperature
        mask.sample(ROWS, noise).sum().backward()
        torch.testing.assert_close(mask.matrix_GN.grad, expected.sum(0))
        deviations[temperature] = expected.std().item()
    assert deviations[0.1] > 5 * deviations[2.0]


def test_relaxed_samples_are_soft():
    drawn = matrix(estimator="relaxed", temperature=0.5).sample(ROWS, uniform(100))
    assert ((drawn > 0) & (drawn < 1)).all()


def test_binary_is_deterministic_with_straight_gradients():
    mask = matrix(kind="binary", initial_probability=0.6)
    drawn = mask.sample(ROWS, uniform(3))
    assert (drawn == 1).all()
    drawn.sum().backward()
    torch.testing.assert_close(mask.matrix_GN.grad, torch.full((2, 6), 3 * 0.6 * 0.4, dtype=torch.float64))


def test_random_keeps_at_its_rate_and_learns_nothing():
    mask = matrix(kind="random", keep_rate=0.3)
    assert not list(mask.parameters())
    assert mask.sample(ROWS, uniform()).mean().item() == pytest.approx(0.3, abs=0.01)
    assert mask.evaluate(ROWS, uniform(1)[0]).unique().tolist() == [0.0, 1.0]


def test_clamp_bounds_p_and_lets_gradients_back_in():
    mask = matrix(parameterization="clamp")
    with torch.no_grad():
        mask.matrix_GN[0, 0], mask.matrix_GN[1, 5] = -0.5, 1.5
    _, p = mask.logits_and_probabilities(ROWS)
    assert p[0, 0].item() == pytest.approx(CLAMP)
    assert p[1, 5].item() == pytest.approx(1 - CLAMP)
    p.sum().backward()
    assert (mask.matrix_GN.grad == 1).all()


@pytest.mark.parametrize(
    ("evaluation", "expected"), [("threshold", [1.0, 0.0]), ("expectation", [0.6, 0.4]), ("samples", None)]
)
def test_evaluation_modes(evaluation, expected):
    mask = matrix(evaluation=evaluation)
    with torch.no_grad():
        mask.matrix_GN[:] = torch.tensor([[0.6], [0.4]], dtype=torch.float64).logit()
    if expected is None:
        drawn = torch.stack([mask.evaluate(ROWS, noise) for noise in uniform(5000)])
        torch.testing.assert_close(drawn.mean((0, 2)), torch.tensor([0.6, 0.4]).double(), rtol=0, atol=0.02)
    else:
        torch.testing.assert_close(mask.evaluate(ROWS, uniform(1)[0])[:, 0], torch.tensor(expected).double())

import math

import torch

from fourdfy_cli.losses import opaqueness, smoothness, sparsity, toward_rest


def test_sparsity_in_closed_form():
    opacity = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]], dtype=torch.float64)
    expected = sum(math.sqrt(o * o + 0.01) for o in (0, 1, 0.5, 0)) / 4
    assert abs(sparsity(opacity).mean().item() - expected) < 1e-12


def test_opaqueness_in_closed_form_and_clamped():
    opacity = torch.tensor([[[0.5, 0.9], [0.0, 1.0]]], dtype=torch.float64)

    def entropy(p: float) -> float:
        return -(p * math.log(p) + (1 - p) * math.log(1 - p))

    expected = (entropy(0.5) + entropy(0.9) + 2 * entropy(1e-3)) / 4
    assert abs(opaqueness(opacity).mean().item() - expected) < 1e-12


def test_gradients():
    opacity = torch.rand(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(0.9).add(0.05).requires_grad_(True)
    assert torch.autograd.gradcheck(sparsity, opacity) and torch.autograd.gradcheck(opaqueness, opacity)
    (pull,) = torch.autograd.grad(opaqueness(opacity).sum(), opacity)
    assert ((pull > 0) == (opacity < 0.5)).all()  # descending it drives p below 1/2 to 0, the rest to 1


def test_smoothness_of_a_linear_displacement_is_the_square_of_its_slopes():
    slope = torch.arange(12, dtype=torch.float64).view(3, 4) / 10
    x = torch.rand(20, 4, dtype=torch.float64)
    assert abs(smoothness(lambda p: p @ slope.T + 0.7, x, 0.01).item() - slope.square().sum().item()) < 1e-9
    assert smoothness(lambda p: p[:, :3] * 0 + 0.7, x, 0.01) == 0


def test_smoothness_is_the_mean_over_points():
    def squares(p: torch.Tensor) -> torch.Tensor:
        return p[:, 3:].square().expand(-1, 3)

    x, apart = torch.rand(20, 4, dtype=torch.float64), 1e-3
    expected = sum(3 * (((row[3] + apart) ** 2 - row[3] ** 2) / apart) ** 2 for row in x) / 20
    assert abs(smoothness(squares, x, apart) - expected) < 1e-9


def test_toward_rest_is_the_proximal_step_of_l1():
    features = torch.tensor([[0.5, -0.3], [0.02, -0.01], [0.0, 0.05]])
    toward_rest(features, 0.05)
    assert torch.allclose(features, torch.tensor([[0.45, -0.25], [0.0, 0.0], [0.0, 0.0]]))
    x = torch.linspace(-1, 1, 201)
    kept = x.clone()
    toward_rest(kept, 0.2)
    costs = 0.5 * (x[:, None] - x) ** 2 + 0.2 * x.abs()  # what it makes least: of all values for each
    assert torch.allclose(kept, x[costs.argmin(1)], atol=5e-3)

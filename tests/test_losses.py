import math

import torch

from fourdfy_cli.losses import opaqueness, sparsity


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

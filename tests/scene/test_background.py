"""Spherical harmonics and the background network."""

from __future__ import annotations

import torch

from fourdfy_cli.scene.background import Background, spherical_harmonics


def directions(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)


def fibonacci(count: int) -> torch.Tensor:
    """Directions spread evenly over the sphere."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / count, k * (torch.pi * (1 + 5**0.5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1)


def test_harmonics_are_orthonormal_on_the_sphere():
    basis = spherical_harmonics(fibonacci(20_000))
    torch.testing.assert_close(4 * torch.pi * basis.T @ basis / len(basis), torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-3)


def test_bands_keep_their_length_under_rotation():
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    d = directions(50)
    a, b = spherical_harmonics(d), spherical_harmonics(d @ turn.T)
    for band in (slice(0, 1), slice(1, 4), slice(4, 9)):
        torch.testing.assert_close(a[:, band].square().sum(1), b[:, band].square().sum(1))


def test_constant_and_axes():
    basis = spherical_harmonics(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis[:, 0], torch.full((3,), 0.5 / torch.pi**0.5, dtype=torch.float64))
    linear = (3 / (4 * torch.pi)) ** 0.5
    expected = torch.tensor([[0, 0, -linear], [-linear, 0, 0], [0, linear, 0]], dtype=torch.float64)
    torch.testing.assert_close(basis[:, 1:4], expected)


def test_network_has_the_released_size_and_range():
    net = Background(16, torch.Generator().manual_seed(0))
    assert [tuple(p.shape) for p in net.parameters()] == [(16, 9), (16, 16), (3, 16)]
    rgb = net(directions(100).float())
    assert rgb.shape == (100, 3) and rgb.min() > 0 and rgb.max() < 1 and rgb.std(0).min() > 0


def test_gradcheck():
    net = Background(4, torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(net, directions(5).requires_grad_())
    d, weights = directions(5), [p.detach().clone().requires_grad_() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    assert torch.autograd.gradcheck(lambda *w: torch.func.functional_call(net, dict(zip(names, w, strict=True)), (d,)), weights)

"""The displacement: sizes of the released code, formula, start at rest, staying inside the box, gradients."""

from __future__ import annotations

import torch

from fourdfy_cli import config
from fourdfy_cli.scene.deformation import Deformation

GRID = config.Grid(2, 2, 5, 2, 1.5)


def make(hidden: int = 5, moving: bool = True) -> Deformation:
    generator = torch.Generator().manual_seed(0)
    module = Deformation(GRID, hidden, 0.5, generator).double()
    if moving:
        torch.nn.init.normal_(module.net[-1].weight, std=0.3, generator=generator)
    return module


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_size_of_the_released_code():
    cfg = config.Field()
    module = Deformation(cfg.deformation, cfg.hidden, cfg.init, torch.Generator())
    assert module.grid.table.numel() == 3_294_432
    assert [layer.weight.shape for layer in module.net if hasattr(layer, "weight")] == [(64, 16), (64, 64), (3, 64)]


def test_starts_at_rest():
    x = points(20)
    assert torch.equal(make(moving=False)(x), x[:, :3])


def test_by_hand():
    module, x = make(), points(20)
    first, second, last = [layer.weight for layer in module.net if hasattr(layer, "weight")]
    shift = ((module.grid(x) @ first.T).clamp(min=0) @ second.T).clamp(min=0) @ last.T
    moved = module(x)
    torch.testing.assert_close(moved, (x[:, :3] + shift).clamp(0, 1))
    assert (moved - x[:, :3]).abs().max() > 1e-3


def test_displaced_points_stay_inside():
    module, x = make(), points(50)
    module.net[-1].weight.data *= 1000
    moved = module(x)
    assert moved.min() == 0 and moved.max() == 1


def test_gradcheck():
    module, x = make(), 0.3 + 0.4 * points(3)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters.values()))


def test_the_first_step_moves_it():
    """Zero weights in the last layer still get a gradient, those before it once the last is not zero."""
    module, x = make(moving=False), points(20)
    module(x).sum().backward()
    assert module.net[-1].weight.grad.abs().max() > 0 and not module.grid.table.grad.any()
    module = make()
    module(x).sum().backward()
    assert module.grid.table.grad.abs().max() > 0

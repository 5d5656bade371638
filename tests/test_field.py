"""The field: sizes, the formulas of density and colour, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fourdfy_cli import config
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.scene.field import Field

TINY = config.Field(config.Grid(2, 2, 5, 2, 1.5), config.Grid(2, 2, 5, 2, 1.5), hidden=6, init=0.5)


def field(cfg: config.Field = TINY) -> Field:
    return Field(cfg, torch.Generator().manual_seed(0))


def where(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, generator=g, dtype=torch.float64) * 2 - 1, torch.rand(count, generator=g, dtype=torch.float64)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_nets_of_the_paper():
    cfg = dataclasses.replace(config.Field(), static=config.Grid(log2_table=6), dynamic=config.Grid(log2_table=6))
    assert (count(field(cfg).density_net), count(field(cfg).colour_net)) == (2112, 2240)


def test_density_and_colour_by_hand():
    f, (x, time) = field().double(), where(20)
    density, rgb = f(x, time, 0.7)
    features = f.static((x + 1) / 2) + f.dynamic(torch.cat([(x + 1) / 2, time[:, None]], 1))
    (a, b), (c, d) = [[layer.weight for layer in net if hasattr(layer, "weight")] for net in (f.density_net, f.colour_net)]
    blob = 10 * (1 - x.square().sum(1).sqrt() / 0.7)
    torch.testing.assert_close(density, torch.log1p(torch.exp(((features @ a.T).clamp(min=0) @ b.T)[:, 0] + blob)))
    torch.testing.assert_close(rgb, 1 / (1 + torch.exp(-(features @ c.T).clamp(min=0) @ d.T)))
    assert torch.equal(f.density(x, time, 0.7), density)


def test_starts_as_a_blob():
    f = field(dataclasses.replace(TINY, init=1e-4))
    along = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1.0, 0, 0]])
    density = f.density(along, torch.zeros(3), 0.5)
    torch.testing.assert_close(density, torch.nn.functional.softplus(torch.tensor([10.0, 0.0, -10.0])), rtol=1e-2, atol=1e-3)


def test_dynamic_grid_is_always_added_and_moves_the_scene():
    f, (x, time) = field().double(), where(10)
    assert not torch.allclose(f.features(x, time), f.features(x, 0 * time))
    torch.nn.init.zeros_(f.dynamic.table)
    assert torch.equal(f.features(x, time), f.features(x, 0 * time))


def test_gradcheck_in_points_times_and_parameters():
    f, (x, time) = field().double(), where(4)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in f.named_parameters()}

    def run(x, time, *values):
        return torch.func.functional_call(f, dict(zip(parameters, values, strict=True)), (x, time, 0.8))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), time.requires_grad_(), *parameters.values()))


def test_attach_trains_both_grids_as_features_does():
    f, (x, time) = field().double(), where(30)
    tables = (f.static.table, f.dynamic.table)
    direct = torch.autograd.grad(f.features(x, time).square().sum(), tables)
    with torch.no_grad():
        known = f.features(x, time)
    for a, b in zip(direct, torch.autograd.grad(f.attach(known, x, time).square().sum(), tables), strict=True):
        assert torch.equal(a, b)


def test_grids_that_cannot_be_added():
    with pytest.raises(FourdfyError) as error:
        field(dataclasses.replace(TINY, dynamic=config.Grid(3, 2, 5, 2, 1.5)))
    assert error.value.code == 2 and "field.dynamic.levels=2" in error.value.hint


def test_the_seed_alone_decides_the_start():
    torch.manual_seed(0)
    first = field().state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), field().state_dict().values(), strict=True))

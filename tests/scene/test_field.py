"""The field: sizes, the formulas of density and colour, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fourdfy_cli import config, presets
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.scene import mlp
from fourdfy_cli.scene.field import Field, make

TINY = config.Field(*(config.Grid(2, 2, 5, 2, 1.5),) * 2, hidden=6, init=0.5, deformation=config.Grid(3, 2, 5, 2, 1.5))
KINDS = {kind: dataclasses.replace(TINY, kind=kind) for kind in ("hashgrid", "hexplane", "deformation")}
EVERY = pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    """Even a few points are several blocks."""
    monkeypatch.setattr(mlp, "BLOCK", 2)


def field(cfg: config.Field = TINY) -> Field:
    return make(cfg, torch.Generator().manual_seed(0))


def awake(cfg: config.Field) -> Field:
    """In float64, and a deformation that already moves something."""
    f = field(cfg).double()
    if cfg.kind == "deformation":
        torch.nn.init.normal_(f.dynamic.net[-1].weight, std=0.05, generator=torch.Generator().manual_seed(2))
    return f


def where(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, generator=g, dtype=torch.float64) * 2 - 1, torch.rand(count, generator=g, dtype=torch.float64)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_nets_of_the_paper():
    cfg = dataclasses.replace(config.Field(), static=config.Grid(log2_table=6), dynamic=config.Grid(log2_table=6))
    assert (count(field(cfg).density_net), count(field(cfg).colour_net)) == (2112, 2240)


@pytest.mark.parametrize("power", (1, 2, 2.5))
def test_density_and_colour_by_hand(power):
    f, (x, time) = field(dataclasses.replace(TINY, density_power=power)).double(), where(20)
    density, rgb = f(x, time, 0.7)
    features = f.static((x + 1) / 2) + f.dynamic(torch.cat([(x + 1) / 2, time[:, None]], 1))
    (a, b), (c, d) = [[layer.weight for layer in net if hasattr(layer, "weight")] for net in (f.density_net, f.colour_net)]
    blob = 10 * (1 - x.square().sum(1).sqrt() / 0.7)
    torch.testing.assert_close(density, torch.log1p(torch.exp(((features @ a.T).clamp(min=0) @ b.T)[:, 0] + blob)) ** power)
    torch.testing.assert_close(rgb, 1 / (1 + torch.exp(-(features @ c.T).clamp(min=0) @ d.T)))
    assert torch.equal(f.density(x, time, 0.7), density)


def test_a_power_of_nothing_has_a_gradient():
    """Far outside softplus is 0 to the last digit, and so is its square's slope: not nan."""
    f, (x, time) = field(dataclasses.replace(TINY, density_power=2)).double(), where(20)
    far = (x + 1).requires_grad_()
    density, _ = f(far, time, 1e-6)
    assert (density == 0).all() and (torch.autograd.grad(density.sum(), far)[0] == 0).all()


def test_half_the_digits_give_nearly_the_same(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: products in bfloat16, everything else as it was."""
    f, (x, time) = field(dataclasses.replace(TINY, hidden=32)), [part.float() for part in where(50)]

    def run() -> list[torch.Tensor]:
        density, rgb = f(x, time, 0.7)
        return [density, rgb, *torch.autograd.grad(density.sum() + rgb.square().sum(), list(f.parameters()))]

    whole = run()
    monkeypatch.setattr(mlp, "precision", lambda x: torch.bfloat16)
    for half, full in zip(run(), whole, strict=True):
        assert half.dtype == torch.float32 and not torch.equal(half, full)
        assert (half - full).norm() < 0.02 * full.norm()


def test_only_a_gpu_computes_in_half_the_digits():
    for dtype in (torch.float32, torch.float64):
        assert mlp.precision(torch.zeros(1, dtype=dtype)) == dtype


@EVERY
def test_starts_as_a_blob(cfg):
    f = field(dataclasses.replace(cfg, init=1e-4))
    along = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1.0, 0, 0]])
    density = f.density(along, torch.zeros(3), 0.5)
    torch.testing.assert_close(density, torch.nn.functional.softplus(torch.tensor([10.0, 0.0, -10.0])), rtol=1e-2, atol=1e-3)


def test_dynamic_grid_is_always_added_and_moves_the_scene():
    f, (x, time) = field().double(), where(10)
    assert not torch.allclose(f.features(x, time), f.features(x, 0 * time))
    torch.nn.init.zeros_(f.dynamic.table)
    assert torch.equal(f.features(x, time), f.features(x, 0 * time))


@EVERY
def test_the_dynamic_part_is_hardly_there_before_stage_3(cfg):
    f, (x, time) = field(dataclasses.replace(cfg, init=1e-4)).double(), where(30)
    (density, rgb), (later, later_rgb) = f(x, 0 * time, 0.7), f(x, time, 0.7)
    torch.testing.assert_close(later, density, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(later_rgb, rgb, rtol=0, atol=1e-4)


@EVERY
def test_the_dynamic_part_moves_the_scene(cfg):
    f, (x, time) = awake(cfg), where(30)
    assert (f.density(x, time, 0.7) - f.density(x, 0 * time, 0.7)).abs().max() > 1e-3


@EVERY
@pytest.mark.parametrize("power", (1, 2))
def test_gradcheck_in_points_times_and_parameters(cfg, power):
    small = config.Grid(1, 2, 4, 2, 1.5)
    f, (x, time) = awake(dataclasses.replace(cfg, static=small, dynamic=small, deformation=small, hidden=4, density_power=power)), where(3)
    x = 0.5 * x  # away from the walls, where a displaced point stops
    parameters = {name: p.detach().clone().requires_grad_() for name, p in f.named_parameters()}

    def run(x, time, *values):
        return torch.func.functional_call(f, dict(zip(parameters, values, strict=True)), (x, time, 0.8))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), time.requires_grad_(), *parameters.values()))


@EVERY
def test_attach_trains_both_parts_as_features_does(cfg):
    f, (x, time) = awake(cfg), where(30)
    trained = (*f.static.parameters(), *f.dynamic.parameters())
    direct = torch.autograd.grad(f.features(x, time).square().sum(), trained)
    with torch.no_grad():
        known = f.features(x, time)
    attached = f.attach(known, x, time)
    assert torch.equal(attached, known)
    for a, b in zip(direct, torch.autograd.grad(attached.square().sum(), trained), strict=True):
        assert torch.equal(a, b)


@EVERY
def test_a_frozen_dynamic_part_gets_no_gradient(cfg):
    f, (x, time) = awake(cfg), where(30)
    f.dynamic.requires_grad_(False)
    f.density(x, time, 0.7).sum().backward()
    assert all(p.grad is None for p in f.dynamic.parameters()) and any(p.grad.any() for p in f.static.parameters())


def test_hexplane_by_hand():
    """Pairs of complementary planes are added, the three sums concatenated."""
    f, (x, time) = awake(KINDS["hexplane"]), where(20)
    unit = (x + 1) / 2
    context = torch.cat([unit, time[:, None]], 1)
    parts = [s(unit[:, p]) + d(context[:, q]) for s, p, d, q in zip(
        f.static.planes, ((0, 1), (0, 2), (1, 2)), f.dynamic.planes, ((2, 3), (1, 3), (0, 3)), strict=True
    )]  # fmt: skip
    torch.testing.assert_close(f.features(x, time), torch.cat(parts, 1))


def test_deformation_carries_the_whole_static_scene_along():
    """Colour, density and its bias are those of the point that x came from."""
    f, (x, time) = awake(KINDS["deformation"]), where(30)
    torch.nn.init.normal_(f.dynamic.net[-1].weight, generator=torch.Generator().manual_seed(2))
    origin = 2 * f.dynamic(torch.cat([(x + 1) / 2, time[:, None]], 1)) - 1
    assert (origin - x).abs().max() > 0.1
    (density, rgb), features = f(x, time, 0.7), f.static((origin + 1) / 2)
    bias = 10 * (1 - origin.square().sum(1).sqrt() / 0.7)
    torch.testing.assert_close(density, torch.nn.functional.softplus(f.density_net(features)[:, 0] + bias))
    torch.testing.assert_close(rgb, torch.sigmoid(f.colour_net(features)))


@pytest.mark.parametrize("name", ["nano", "paper"])
def test_kinds_cost_the_same(name):
    """A HexPlane's parts have within 2 % as many parameters as the hash grids."""
    hashed, planes = (field(dataclasses.replace(presets.preset(name).field, kind=kind)) for kind in ("hashgrid", "hexplane"))
    for part in ("static", "dynamic"):
        assert 0.98 < count(getattr(planes, part)) / count(getattr(hashed, part)) < 1.02


def test_grids_that_cannot_be_added():
    with pytest.raises(FourdfyError) as error:
        field(dataclasses.replace(TINY, dynamic=config.Grid(3, 2, 5, 2, 1.5)))
    assert error.value.code == 2 and "field.dynamic.levels=2" in error.value.hint


@EVERY
def test_the_seed_alone_decides_the_start(cfg):
    torch.manual_seed(0)
    first = field(cfg).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), field(cfg).state_dict().values(), strict=True))

"""The planes against plain loops, forward and backward, and that they cost what the hash grids cost."""

from __future__ import annotations

import math

import pytest
import torch

from fourdfy_cli import presets
from fourdfy_cli.config import Grid
from fourdfy_cli.scene.hashgrid import HashGrid, levels
from fourdfy_cli.scene.hexplane import HexPlane, matched, size

SMALL = Grid(levels=3, features=2, log2_table=7, base=3, growth=1.7)
NAMES = {3: ("xy", "xz", "yz"), 4: ("zt", "yt", "xt")}


def make(dims: int, grid: Grid = SMALL) -> HexPlane:
    return HexPlane(dims, grid, 0.5, torch.Generator().manual_seed(dims)).double()


def points(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(module: HexPlane, x: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation, point by point and plane by plane; a plane's rows run along its first axis fastest."""
    out = []
    for point in x:
        features = []
        for name, plane in zip(NAMES[x.shape[1]], module.planes, strict=True):
            a, b = ("xyzt".index(letter) for letter in name)
            for level in plane.levels:
                u, v = point[a] * level.scale + 0.5, point[b] * level.scale + 0.5
                i, j = math.floor(u.item()), math.floor(v.item())

                def row(p: int, q: int, plane=plane, level=level) -> torch.Tensor:
                    return plane.table[level.offset + (p + q * level.resolution) % level.entries]

                low = row(i, j) * (1 - (u - i)) + row(i + 1, j) * (u - i)
                high = row(i, j + 1) * (1 - (u - i)) + row(i + 1, j + 1) * (u - i)
                features.append(low * (1 - (v - j)) + high * (v - j))
        out.append(torch.cat(features))
    return torch.stack(out)


@pytest.mark.parametrize("dims", [3, 4])
def test_equals_bilinear_interpolation_forward_and_backward(dims):
    module, x = make(dims), points(30, dims).requires_grad_()
    cotangent = torch.rand(30, 18, dtype=torch.float64)
    fast, slow = module(x), by_hand(module, x)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    wanted = (x, *module.parameters())
    ours, theirs = (torch.autograd.grad((out * cotangent).sum(), wanted) for out in (fast, slow))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [3, 4])
def test_gradcheck(dims):
    module, x = make(dims, Grid(2, 1, 5, 2, 1.5)), points(3, dims, seed=2).requires_grad_()
    tables = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(tables, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *tables.values()))


def test_each_spatial_plane_meets_its_complement():
    """The pairs whose features are added share no axis, and together see all four."""
    for name, partner in zip(NAMES[3], NAMES[4], strict=True):
        assert set(name) | set(partner) == set("xyzt")
    x, module = points(2, 4), make(4)
    for moved, blind in ((0, ("zt", "yt")), (1, ("zt", "xt")), (2, ("yt", "xt"))):
        other = x.clone()
        other[:, moved] += 0.01
        same = [torch.equal(a, b) for a, b in zip(module(x).chunk(3, 1), module(other).chunk(3, 1), strict=True)]
        assert [name for name, equal in zip(NAMES[4], same, strict=True) if equal] == list(blind)


@pytest.mark.parametrize("name", ["nano", "paper"])
@pytest.mark.parametrize("dims", [3, 4])
def test_capacity_is_that_of_the_hash_grid(name, dims):
    field = presets.preset(name).field
    grid = field.static if dims == 3 else field.dynamic
    plane = matched(dims, grid)
    assert 0.98 < 3 * size(2, plane) / size(dims, grid) <= 1
    assert all(level.dense for level in levels(2, plane))
    assert (plane.levels, plane.features, plane.base) == (grid.levels, grid.features, grid.base)


def test_size_counts_what_is_there():
    generator = torch.Generator()
    for dims in (3, 4):
        assert size(dims, SMALL) == sum(p.numel() for p in HashGrid(dims, SMALL, 1.0, generator).parameters())
        assert 3 * size(2, matched(dims, SMALL)) == sum(p.numel() for p in make(dims).parameters())


def test_a_grid_too_small_to_match_still_makes_planes():
    assert matched(3, Grid(2, 2, 3, 4, 1.5)).growth == 1.0


def test_attach_gives_the_known_features_the_gradient_of_a_lookup():
    module, x = make(4), points(20, 4)
    cotangent = torch.rand(20, 18, dtype=torch.float64)
    known = module(x).detach().requires_grad_()
    attached = module.attach(known, x)
    assert torch.equal(attached, known)
    to_known, *to_tables = torch.autograd.grad((attached * cotangent).sum(), (known, *module.parameters()))
    assert torch.equal(to_known, cotangent)
    for ours, theirs in zip(to_tables, torch.autograd.grad((module(x) * cotangent).sum(), tuple(module.parameters())), strict=True):
        assert torch.equal(ours, theirs)


def test_start_is_near_zero_and_from_the_generator_alone():
    start = HexPlane(4, SMALL, 1e-4, torch.Generator().manual_seed(1))
    again = HexPlane(4, SMALL, 1e-4, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), again.parameters(), strict=True))
    assert 5e-5 < max(p.abs().max().item() for p in start.parameters()) <= 1e-4

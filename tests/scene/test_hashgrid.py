"""The hash grid against plain loops, forward and backward, and the sizes of the paper's grids."""

from __future__ import annotations

import pytest
import reference_scene as reference
import torch
from samples import SMALL

from fourdfy_cli.config import Grid
from fourdfy_cli.presets import nano
from fourdfy_cli.scene import hashgrid
from fourdfy_cli.scene.hashgrid import HashGrid, levels


def make(dims: int, grid: Grid = SMALL) -> HashGrid:
    return HashGrid(dims, grid, 0.5, torch.Generator().manual_seed(dims)).double()


def points(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dims", "floats", "dense"), [(3, 12_599_920, 5), (4, 15_474_688, 2)])
def test_sizes_of_the_paper(dims, floats, dense):
    table = levels(dims, Grid())
    assert (table[-1].offset + table[-1].entries) * Grid().features == floats
    assert [level.dense for level in table] == [True] * dense + [False] * (16 - dense)
    assert [level.resolution for level in table] == [16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096]


@pytest.mark.parametrize("dims", [3, 4])
def test_small_grid_mixes_dense_and_hashed_levels(dims):
    assert {level.dense for level in levels(dims, SMALL)} == {True, False} if dims == 3 else not levels(dims, SMALL)[0].dense


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.parametrize("log2_table", [6, 10])
def test_equals_the_loops_forward_and_backward(dims, log2_table):
    grid = Grid(3, 2, log2_table, 3, 1.7)
    module, x = make(dims, grid), points(40, dims).requires_grad_()
    x.data[0], x.data[1] = 0.0, 1.0  # the corners of the box, where dense levels wrap
    table = module.table.detach().clone().requires_grad_()
    cotangent = torch.rand(40, 6, dtype=torch.float64)
    fast, slow = module(x), reference.hash_features(x, table, grid)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((fast * cotangent).sum(), (x, module.table))
    theirs = torch.autograd.grad((slow * cotangent).sum(), (x, table))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [3, 4])
def test_gradcheck(dims):
    module, x = make(dims, Grid(2, 2, 5, 2, 1.5)), points(6, dims, seed=2).requires_grad_()
    table = module.table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, table: torch.func.functional_call(module, {"table": table}, (x,)), (x, table))


def test_real_grid_in_float32_equals_the_loops():
    grid = nano().field.dynamic
    module = HashGrid(4, grid, 1.0, torch.Generator().manual_seed(0))
    x = points(20, 4).float()
    slow = reference.hash_features(x.double(), module.table.detach().double(), grid)
    torch.testing.assert_close(module(x).double(), slow, rtol=0, atol=1e-4)


def test_large_coordinates_hash_like_exact_integers():
    grid = Grid(levels=1, features=2, log2_table=19, base=4096, growth=2.0)
    module = HashGrid(4, grid, 1.0, torch.Generator().manual_seed(0)).double()
    x = points(10, 4)
    torch.testing.assert_close(module(x), reference.hash_features(x, module.table, grid))


def test_blocks_change_nothing(monkeypatch):
    def run():
        module, x = make(3), points(50, 3).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        return out.detach(), x.grad, module.table.grad

    whole = run()
    monkeypatch.setattr(hashgrid, "BLOCK", 7)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_attach_gives_the_known_features_the_gradient_of_a_lookup():
    module, x = make(3), points(30, 3)
    cotangent = torch.rand(30, 6, dtype=torch.float64)
    known = module(x).detach().requires_grad_()
    attached = module.attach(known, x)
    assert torch.equal(attached, known)
    to_known, to_table = torch.autograd.grad((attached * cotangent).sum(), (known, module.table))
    (expected,) = torch.autograd.grad((module(x) * cotangent).sum(), module.table)
    assert torch.equal(to_known, cotangent)
    assert torch.equal(to_table, expected)


def test_frozen_table_gets_no_gradient():
    module, x = make(3), points(5, 3)
    module.table.requires_grad_(False)
    assert not module(x).requires_grad
    assert module(x.requires_grad_()).requires_grad


def test_no_points():
    module = make(3)
    out = module(torch.zeros(0, 3, dtype=torch.float64))
    out.sum().backward()
    assert out.shape == (0, 6)
    assert not module.table.grad.any()


def test_bitwise_repeatable():
    def run():
        module = HashGrid(3, nano().field.static, 1e-2, torch.Generator().manual_seed(1))
        module(points(20_000, 3).float()).square().sum().backward()
        return module.table.grad

    assert torch.equal(run(), run())


def test_start_is_uniform_and_from_the_generator_alone():
    first, second = make(3), make(3)
    assert torch.equal(first.table, second.table)
    assert first.table.abs().max() <= 0.5 and first.table.abs().max() > 0.45
    state = torch.get_rng_state()
    make(4)
    assert torch.equal(state, torch.get_rng_state())

"""The tiny-cuda-nn twin: what it asks of the bindings, and when it refuses. Where they are installed, its numbers too.

`Bindings` stands in for the compiled part of `tinycudann`: it keeps the bindings' rules (shapes, types, what wants a gradient)
and computes with the plain torch functions, so that what is tested is the calls and how their results are put together.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from fourdfy_cli.config import Grid
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.kernels import tcnn
from fourdfy_cli.presets import nano
from fourdfy_cli.scene import hashgrid

SMALL = Grid(levels=3, features=2, log2_table=8, base=3, growth=1.7)


class Native:
    """An encoding as the bindings make it. Its output is 16 wide or more."""

    def __init__(self, dims: int, wanted: dict):
        grid = Grid(
            wanted["n_levels"],
            wanted["n_features_per_level"],
            wanted["log2_hashmap_size"],
            wanted["base_resolution"],
            wanted["per_level_scale"],
        )
        self.dims, self.features, self.levels = dims, grid.features, hashgrid.levels(dims, grid)
        self.width = max(16, grid.levels * grid.features)

    def n_params(self) -> int:
        return (self.levels[-1].offset + self.levels[-1].entries) * self.features

    def fwd(self, points, parameters):
        assert points.dtype == parameters.dtype == torch.float32 and points.is_contiguous()
        assert points.shape[1:] == (self.dims,) and len(points) % 256 == 0 and len(points) and parameters.shape == (self.n_params(),)
        features = hashgrid.lookup(points.detach(), parameters.detach().view(-1, self.features), self.levels)
        context = "context" if points.requires_grad or parameters.requires_grad else None
        return context, torch.nn.functional.pad(features, (0, self.width - features.shape[1]))

    def bwd(self, context, points, parameters, output, grad):
        assert context == "context" and grad.shape == output.shape == (len(points), self.width) and not grad[:, 6:].any()
        given = points.detach(), parameters.detach().view(-1, self.features), self.levels, grad[:, : len(self.levels) * self.features]
        to_points = hashgrid.points_gradient(*given) if points.requires_grad else None
        return to_points, hashgrid.table_gradient(*given).flatten() if parameters.requires_grad else None


class Bindings:
    Precision = SimpleNamespace(Fp32="fp32")

    def __init__(self):
        self.made = []

    def batch_size_granularity(self) -> int:
        return 256

    def create_encoding(self, dims: int, wanted: dict, precision: str) -> Native:
        assert precision == "fp32"
        self.made.append((dims, wanted))
        if dims == 2:
            raise RuntimeError("compiled without 2D")
        return Native(dims, wanted)


@pytest.fixture
def bindings(monkeypatch) -> Bindings:
    stand_in = Bindings()
    monkeypatch.setitem(sys.modules, "tinycudann.modules", SimpleNamespace(_C=stand_in))
    tcnn._native.cache_clear()
    yield stand_in
    tcnn._native.cache_clear()


def table_of(dims: int, grid: Grid, dtype: torch.dtype = torch.float32):
    levels = hashgrid.levels(dims, grid)
    return levels, torch.rand(
        levels[-1].offset + levels[-1].entries, grid.features, generator=torch.Generator().manual_seed(1), dtype=dtype
    )


@pytest.mark.parametrize("count", [0, 1, 256, 300])
@pytest.mark.parametrize("dims", [3, 4])
def test_calls_give_what_torch_gives(bindings, dims, count):
    levels, table = table_of(dims, SMALL)
    g = torch.Generator().manual_seed(2)
    x, grad = torch.rand(count, dims, generator=g), torch.rand(count, 6, generator=g)
    for name, given in (("lookup", ()), ("table_gradient", (grad,)), ("points_gradient", (grad,))):
        ours, plain = (getattr(twin, name)(x, table, levels, *given) for twin in (tcnn.ENCODING, hashgrid.TORCH))
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert len(bindings.made) == 1, "one native encoding serves all calls"


def test_in_the_module_with_gradients(bindings):
    """Inside autograd, where the table wants a gradient all along."""
    x, results = torch.rand(10, 3, generator=torch.Generator().manual_seed(3)).requires_grad_(), []
    for encoding in (tcnn.ENCODING, hashgrid.TORCH):
        module = hashgrid.HashGrid(3, SMALL, 0.5, torch.Generator().manual_seed(0), encoding)
        out = module(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, module.table))))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_other_types_come_back_as_they_went(bindings):
    levels, table = table_of(3, SMALL, torch.float64)
    x, grad = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 6, dtype=torch.float64)
    assert tcnn.lookup(x, table, levels).dtype == tcnn.table_gradient(x, table, levels, grad).dtype == torch.float64


@pytest.mark.parametrize("grid", [Grid(), nano().field.static, nano().field.dynamic, SMALL, Grid(1, 4, 10, 8, 2.0)])
@pytest.mark.parametrize("dims", [3, 4])
def test_configuration_describes_the_same_grid(dims, grid):
    wanted = tcnn.configuration(dims, hashgrid.levels(dims, grid), grid.features)
    assert wanted["per_level_scale"] == pytest.approx(grid.growth if grid.levels > 1 else 1, rel=1e-12)
    assert (wanted["n_levels"], wanted["n_features_per_level"], wanted["base_resolution"]) == (grid.levels, grid.features, grid.base)
    native = Native(dims, wanted)
    assert [(a.offset, a.entries, a.dense) for a in native.levels] == [(a.offset, a.entries, a.dense) for a in hashgrid.levels(dims, grid)]


def test_configuration_of_the_paper():
    assert tcnn.configuration(4, hashgrid.levels(4, Grid()), 2) == {
        "otype": "HashGrid",
        "n_levels": 16,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 16,
        "per_level_scale": pytest.approx(1.447269237440378),
        "interpolation": "Linear",
    }


def uneven() -> list[hashgrid.Level]:
    """Levels whose middle one does not fit one growth."""
    levels = hashgrid.levels(3, SMALL)
    return [levels[0], dataclasses.replace(levels[1], scale=levels[1].scale + 0.01), levels[2]]


def off_base() -> list[hashgrid.Level]:
    """Levels whose base is no whole number."""
    return [dataclasses.replace(level, scale=1.1 * level.scale) for level in hashgrid.levels(3, SMALL)]


@pytest.mark.parametrize(
    ("dims", "levels", "features"),
    [(1, hashgrid.levels(1, SMALL), 2), (3, hashgrid.levels(3, SMALL), 3), (3, uneven(), 2), (3, off_base(), 2)],
)
def test_what_tcnn_cannot_describe_is_refused(dims, levels, features):
    with pytest.raises(FourdfyError) as caught:
        tcnn.configuration(dims, levels, features)
    assert caught.value.code == USAGE and "triton" in caught.value.hint


def test_another_table_is_refused(bindings, monkeypatch):
    monkeypatch.setattr(Native, "n_params", lambda self: 7)
    levels, table = table_of(3, SMALL)
    with pytest.raises(FourdfyError, match="wants 7 table entries") as caught:
        tcnn.lookup(torch.zeros(1, 3), table, levels)
    assert caught.value.code == USAGE and "triton" in caught.value.hint


def test_a_refusal_of_the_bindings_is_one_line(bindings):
    levels, table = table_of(2, SMALL)
    with pytest.raises(FourdfyError, match="compiled without 2D") as caught:
        tcnn.lookup(torch.zeros(1, 2), table, levels)
    assert caught.value.code == USAGE and "triton" in caught.value.hint


@pytest.mark.skipif(find_spec("tinycudann") is not None, reason="tinycudann is installed")
def test_missing_package_is_refused():
    tcnn._native.cache_clear()
    levels, table = table_of(3, SMALL)
    for call in (tcnn.bindings, lambda: tcnn.lookup(torch.zeros(1, 3), table, levels)):
        with pytest.raises(FourdfyError, match="tiny-cuda-nn cannot be used: .*tinycudann") as caught:
            call()
        assert caught.value.code == ENVIRONMENT and "pip install" in caught.value.hint and "--backend triton" in caught.value.hint


@pytest.mark.skipif(find_spec("tinycudann") is None or not torch.cuda.is_available(), reason="needs tinycudann and a GPU")
@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("grid", [SMALL, Grid()])
def test_equals_torch_on_a_gpu(dims, grid):
    tcnn._native.cache_clear()
    levels, table = table_of(dims, grid)
    g = torch.Generator().manual_seed(4)
    x, grad = torch.rand(1000, dims, generator=g).cuda(), torch.rand(1000, grid.levels * grid.features, generator=g).cuda()
    x[:1], x[1:2] = 0.0, 1.0
    for name, given in (("lookup", ()), ("table_gradient", (grad,)), ("points_gradient", (grad,))):
        ours, plain = (getattr(twin, name)(x, table.cuda(), levels, *given) for twin in (tcnn.ENCODING, hashgrid.TORCH))
        torch.testing.assert_close(ours, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))

"""The Triton kernels against the plain torch functions: on a GPU if there is one, else under Triton's interpreter.

The interpreter must be asked for before Triton is imported, so a child process runs the comparisons of this file again with
TRITON_INTERPRET=1; what it cannot know, whether the kernels compile for a GPU, is tested beside it, which needs no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import reference_scene as reference
import torch
from torch.nn.functional import normalize

from fourdfy_cli.config import Grid
from fourdfy_cli.scene import hashgrid, volume
from fourdfy_cli.scene.volume import Composite, Samples, accumulate

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
here = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="runs in a child process")
outside = pytest.mark.skipif(INTERPRETED, reason="runs in the parent process")

MIXED = Grid(levels=3, features=2, log2_table=8, base=3, growth=1.7)  # dense, then hashed, in 3 and 4 dimensions


@outside
@pytest.mark.long
def test_under_the_interpreter(tmp_path):
    report = f"--junitxml={tmp_path / 'report.xml'}"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--noconftest", "-p", "no:cacheprovider", report, __file__]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    counts = next(ElementTree.parse(tmp_path / "report.xml").iter("testsuite")).attrib
    assert int(counts["tests"]) - int(counts["skipped"]) >= 30


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(DEVICE)


def scattered(count: int, dims: int, dtype: torch.dtype) -> torch.Tensor:
    """Points, among them the corners of the box, where dense levels wrap, and points on its faces."""
    x = draw(count, dims, seed=dims, dtype=dtype)
    x[:1], x[1:2], x[2:4, 0], x[4:6, -1] = 0.0, 1.0, 1.0, 0.0
    return x


def compare_grids(x: torch.Tensor, grid: Grid, tolerance: float) -> None:
    """All three functions of both twins at points x."""
    from fourdfy_cli.kernels.triton_hashgrid import ENCODING

    levels = hashgrid.levels(x.shape[1], grid)
    table = draw(levels[-1].offset + levels[-1].entries, grid.features, seed=1, dtype=x.dtype)
    grad = draw(len(x), grid.levels * grid.features, seed=2, dtype=x.dtype) - 0.5
    torch.testing.assert_close(ENCODING.lookup(x, table, levels), hashgrid.lookup(x, table, levels), rtol=0, atol=tolerance)
    ours, plain = (twin.table_gradient(x, table, levels, grad) for twin in (ENCODING, hashgrid.TORCH))
    torch.testing.assert_close(ours, plain, rtol=0, atol=4 * tolerance)
    ours, plain = (twin.points_gradient(x, table, levels, grad) for twin in (ENCODING, hashgrid.TORCH))
    torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance * 4 * levels[-1].scale)


@here
@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize(("features", "double"), [(1, True), (2, False), (4, False), (4, True), (8, True)])
def test_grid_equals_torch(dims, features, double):
    dtype, tolerance = (torch.float64, 1e-13) if double else (torch.float32, 1e-6)
    grid = Grid(3, features, 8, 3, 1.7)
    assert {level.dense for level in hashgrid.levels(dims, grid)} == {True, False}
    compare_grids(scattered(45, dims, dtype), grid, tolerance)


@here
@pytest.mark.parametrize("dims", [1, 2])
def test_grid_of_fewer_dimensions(dims):
    compare_grids(scattered(20, dims, torch.float64), MIXED, 1e-13)


@here
@pytest.mark.parametrize("count", [0, 1, 128, 129])
def test_any_number_of_points(count):
    compare_grids(draw(count, 3), Grid(2, 2, 8, 3, 1.7), 1e-6)


@here
def test_grid_of_the_paper():
    compare_grids(draw(24, 4), Grid(levels=16, log2_table=12), 2e-6)


@here
def test_columns_of_a_wider_tensor():
    """Nothing takes its inputs to be contiguous."""
    wide = draw(20, 7, dtype=torch.float64)
    compare_grids(wide[:, 2:5], MIXED, 1e-13)


@here
def test_points_outside_the_box_stay_in_the_table():
    from fourdfy_cli.kernels.triton_hashgrid import ENCODING

    levels = hashgrid.levels(3, MIXED)
    table = torch.ones(levels[-1].offset + levels[-1].entries, 2, device=DEVICE)
    x = torch.tensor([[9.0, -9.0, 0.5], [-1.0, 0.0, 2.0]], device=DEVICE)
    torch.testing.assert_close(ENCODING.lookup(x, table, levels), torch.ones(2, 6, device=DEVICE), rtol=1e-3, atol=1e-3)


@here
def test_grid_module_with_its_gradients():
    from fourdfy_cli.kernels.triton_hashgrid import ENCODING

    x, results = scattered(30, 4, torch.float64).requires_grad_(), []
    for encoding in (ENCODING, hashgrid.TORCH):
        module = hashgrid.HashGrid(4, MIXED, 0.5, torch.Generator().manual_seed(0), encoding).to(DEVICE, torch.float64)
        out = module(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, module.table))))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def some_rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays through the box; the first along an axis, the second in a face's plane, the third from inside, the last a miss."""
    origin = 2.5 * normalize(draw(count, 3, seed=5) - 0.5, dim=-1)
    target = draw(count, 3, seed=6) * 2 - 1
    origin[0], target[0] = torch.tensor([2.5, 0.1, 0.2]), torch.tensor([0.0, 0.1, 0.2])
    origin[1], target[1] = torch.tensor([0.3, 0.97, -3.0]), torch.tensor([0.3, 0.97, 0.0])
    origin[2], target[2] = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, -1.0, 0.3])
    origin[-1], target[-1] = torch.tensor([0.0, 0.0, 2.5]), torch.tensor([0.0, 3.0, 2.0])
    return origin, normalize(target - origin, dim=-1)


@here
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_march_equals_torch(jittered, bounded):
    from fourdfy_cli.kernels.triton_volume import VOLUME

    (origin, direction), binary = some_rays(9), draw(5, 5, 5) > 0.6
    jitter = draw(9, seed=7) if jittered else None
    bounds = torch.tensor([[-0.6, -1.0, -1.0], [1.0, 0.6, 1.0]], device=DEVICE) if bounded else None
    ours = VOLUME.march(origin, direction, binary, 0.031, jitter, bounds)
    plain = volume.march(origin, direction, binary, 0.031, jitter, bounds)
    assert torch.equal(ours.ray, plain.ray) and ours.delta == plain.delta == 0.031
    torch.testing.assert_close(ours.t, plain.t, rtol=0, atol=1e-6)
    assert (ours.ray == 0).any() and (ours.ray == 2).any() and not (ours.ray == 8).any() and len(ours.ray) > 64


@here
def test_march_without_rays_or_anything_to_see():
    from fourdfy_cli.kernels.triton_volume import VOLUME

    origin, direction = some_rays(4)
    none = VOLUME.march(origin[:0], direction[:0], torch.ones(2, 2, 2, dtype=torch.bool, device=DEVICE), 0.1, None, None)
    empty = VOLUME.march(origin, direction, torch.zeros(2, 2, 2, dtype=torch.bool, device=DEVICE), 0.1, None, None)
    assert VOLUME.march(origin.double(), direction.double(), draw(2, 2, 2) < 2, 0.1, None, None).t.dtype == torch.float64
    assert none.t.shape == none.ray.shape == empty.t.shape == empty.ray.shape == (0,)


def packed(counts: list[int], density: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, Samples]:
    total = sum(counts)
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long)).to(DEVICE)
    t = torch.cat([draw(0), *(draw(count, seed=count).sort().values for count in counts)])
    return density * draw(total, seed=8), draw(total, 3, seed=9), Samples(ray, t, 0.3)


def double(parts):
    """The same numbers in float64, in which the plain functions are exact."""
    return [part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in parts]


COUNTS = [[3, 0, 150, 1, 0, 64, 65, 0], [0, 0], [200], []]  # rays within a chunk of samples, of exactly one, of several, and empty


@here
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("scale", [1e-5, 0.3, 50.0])
def test_composite_equals_torch_forward_and_backward(counts, scale):
    from fourdfy_cli.kernels.triton_volume import VOLUME

    density, rgb, samples = packed(counts, scale)
    rays = len(counts)
    grad = Composite(draw(rays, 3, seed=3) - 0.5, draw(rays, seed=4) - 0.5, draw(rays, seed=5))
    exact, twice = Samples(*double(samples)), double((density, rgb))
    for a, b in zip(VOLUME.composite(density, rgb, samples, rays), volume.composite(*twice, exact, rays), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=1e-6 * min(scale, 1))
    ours = VOLUME.composite_gradient(density, rgb, samples, rays, grad)
    for a, b in zip(ours, volume.composite_gradient(*twice, exact, rays, Composite(*double(grad))), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=1e-6)


@here
def test_composite_equals_the_loops():
    counts = [5, 0, 2]
    density, rgb, samples = packed(counts)
    from fourdfy_cli.kernels.triton_volume import VOLUME

    ours = VOLUME.composite(density, rgb, samples, 3)
    for ray in range(3):
        own = [v[samples.ray == ray].double().cpu() for v in (density, rgb, samples.t)]
        for a, b in zip(ours, reference.composite_ray(*map(list, own), [0.3] * counts[ray]) if counts[ray] else (0, 0, 0), strict=True):
            torch.testing.assert_close(a[ray].double().cpu(), torch.zeros_like(a[ray].double().cpu()) + b, rtol=0, atol=1e-6)


@here
def test_opaque_samples_hide_what_is_behind_and_nothing_else():
    from fourdfy_cli.kernels.triton_volume import VOLUME

    density, rgb, samples = packed([70, 70])
    alone = VOLUME.composite(density[70:], rgb[70:], Samples(samples.ray[70:] - 1, samples.t[70:], 0.3), 1)
    density[:70] = 1e30
    density[70 + 65] = float("inf")
    seen = VOLUME.composite(density, rgb, samples, 2)
    assert torch.equal(seen.colour[0], rgb[0]) and seen.opacity[0] == 1
    torch.testing.assert_close(seen.colour[1], alone.colour[0], rtol=0, atol=1e-6)
    grad = Composite(torch.ones(2, 3, device=DEVICE), torch.zeros(2, device=DEVICE), torch.zeros(2, device=DEVICE))
    to_density, to_rgb = VOLUME.composite_gradient(density, rgb, samples, 2, grad)
    assert to_density.isfinite().all() and not to_density[:70].any() and to_density[70:75].all()
    assert torch.equal(to_rgb[:2], torch.tensor([[1.0] * 3, [0.0] * 3], device=DEVICE))


@here
@pytest.mark.parametrize("as_tensor", [False, True])
def test_visible_equals_torch(as_tensor):
    from fourdfy_cli.kernels.triton_volume import VOLUME

    density, _, samples = packed([40, 0, 100, 3])
    alpha = torch.tensor(0.1, device=DEVICE) if as_tensor else 0.1
    keep = VOLUME.visible(density, samples, 4, alpha, 1e-3)
    assert torch.equal(keep, volume.visible(density, samples, 4, alpha, 1e-3))
    assert keep.dtype == torch.bool and keep.any() and not keep.all() and not keep[39]
    assert torch.equal(VOLUME.visible(density, samples, 4, 0.0, 0.0), torch.ones_like(keep))


@here
def test_accumulate_with_its_gradients():
    from fourdfy_cli.kernels.triton_volume import VOLUME

    density, rgb, samples = packed([6, 0, 80])
    results = []
    for twin in (VOLUME, volume.TORCH):
        leaves = density.clone().requires_grad_(), rgb.clone().requires_grad_()
        seen = accumulate(*leaves, samples, 3, twin)
        results.append(torch.autograd.grad(seen.colour.square().sum() + seen.opacity.sum() + seen.depth.sum(), leaves))
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


def signatures() -> list:
    """Kernels, types of their arguments and constants of one launch each."""
    from fourdfy_cli.kernels import triton_hashgrid as grid
    from fourdfy_cli.kernels import triton_volume as vol

    f, i, l = "*fp32", "*i32", "*i64"
    rays = [f, f, f, f, f, "*u8", "i32", "fp32", l, l, f]
    cases = [(vol._march, rays, {"WRITE": False}), (vol._march, rays, {"WRITE": True}), (vol._visible, [f, l, f, "fp32"], {})]
    cases += [(vol._composite, [f, f, f, l, f, f, f], {}), (vol._composite_gradient, [f, f, f, l, f, f, f, f, f], {})]
    for sizes in ({"D": 3, "F": 2, "B": 128}, {"D": 4, "F": 4, "B": 32}):
        cases += [(grid._lookup, [f, f, f, i, f, "i32", "i32"], sizes), (grid._table_gradient, [f, f, f, i, f, "i32", "i32"], sizes)]
        cases += [(grid._points_gradient, [f, f, f, f, i, f, "i32", "i32"], sizes)]
    return cases


@outside
@pytest.mark.parametrize("case", range(11))
def test_kernels_compile_for_a_gpu(case):
    """Down to the machine code of an RTX 30 card (compute capability 8.6), with the compiler that Triton brings along."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants = signatures()[case]
    names = [name for name in kernel.arg_names if name not in constants]
    source = ASTSource(kernel, {**dict(zip(names, types, strict=True)), **dict.fromkeys(constants, "constexpr")}, constants)
    built = triton.compile(source, target=GPUTarget("cuda", 86, 32), options={"enable_fp_fusion": False})
    assert built.asm["cubin"]

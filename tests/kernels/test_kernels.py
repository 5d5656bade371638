"""Every backend that runs on this CPU against the plain torch one, forward and backward; see test_kernels_triton.py for the GPU's."""

from __future__ import annotations

import pytest
import torch
from samples import SMALL, packed, some_rays

from fourdfy_cli import kernels
from fourdfy_cli.config import Grid
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.kernels import threads
from fourdfy_cli.presets import nano
from fourdfy_cli.scene.hashgrid import HashGrid
from fourdfy_cli.scene.mlp import decode, mlp
from fourdfy_cli.scene.occupancy import Occupancy
from fourdfy_cli.scene.volume import Composite, Samples, accumulate

NUMBA, TORCH = kernels.choose("numba", "cpu"), kernels.TORCH
GRIDS = {
    "small": SMALL,
    "four features": Grid(4, 4, 9, 4, 1.6),
    "three features": Grid(2, 3, 7, 3, 2.0),
    "paper": Grid(levels=16, log2_table=12),
}


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def grid_and_points(dims: int, grid: Grid, count: int = 200) -> tuple[HashGrid, torch.Tensor]:
    """A grid with entries of the order of one, and points, the first two of them corners of the box, where dense levels wrap."""
    module = HashGrid(dims, grid, 1.0, torch.Generator().manual_seed(1)).double()
    x = uniform(count, dims)
    x[:2] = torch.tensor([[0.0], [1.0]])[: len(x)]
    return module, x


@pytest.mark.parametrize("dtype, name", [*((torch.float64, name) for name in GRIDS), (torch.float32, "small"), (torch.float32, "paper")])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.long
def test_encoding_equals_torch_forward_and_backward(name: str, dims: int, dtype: torch.dtype):
    module, x = grid_and_points(dims, GRIDS[name])
    x, table = x.to(dtype), module.table.detach().to(dtype)
    grad = uniform(len(x), len(module.levels) * table.shape[1], seed=2).to(dtype) - 0.5
    # At the finest level a float32 position is known to 2^-12 of a cell.
    near = {"rtol": 1e-12, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-3}
    torch.testing.assert_close(NUMBA.encoding.lookup(x, table, module.levels), TORCH.encoding.lookup(x, table, module.levels), **near)
    for ours, theirs in zip(NUMBA.encoding[1:], TORCH.encoding[1:], strict=True):
        a, b = ours(x, table, module.levels, grad), theirs(x, table, module.levels, grad)
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), **near)


@pytest.mark.parametrize("dims", [3, 4])
def test_gradcheck(dims: int):
    module = HashGrid(dims, Grid(2, 2, 5, 2, 1.5), 0.5, torch.Generator().manual_seed(0), NUMBA.encoding).double()
    x, table = uniform(6, dims).requires_grad_(), module.table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, table: torch.func.functional_call(module, {"table": table}, (x,)), (x, table))


def test_strided_inputs_and_no_points():
    module, x = grid_and_points(3, SMALL)
    wide = torch.cat([x, x], 1)[:, ::2]  # not contiguous
    expected = TORCH.encoding.lookup(wide.contiguous(), module.table.detach(), module.levels)
    torch.testing.assert_close(NUMBA.encoding.lookup(wide, module.table, module.levels), expected)
    empty = x[:0]
    assert NUMBA.encoding.lookup(empty, module.table, module.levels).shape == (0, 6)
    assert not NUMBA.encoding.table_gradient(empty, module.table, module.levels, torch.zeros(0, 6).double()).any()


def test_one_thread_and_three_give_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    module, _ = grid_and_points(4, nano().field.dynamic)
    x, table = uniform(70_000, 4, dtype=torch.float32), module.table.detach().float()
    grad = uniform(70_000, 16, seed=3, dtype=torch.float32)

    def run() -> list[torch.Tensor]:
        e = NUMBA.encoding
        return [e.lookup(x, table, module.levels), *(f(x, table, module.levels, grad) for f in e[1:])]

    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 1)
    alone = run()
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, run(), strict=True))


def test_a_point_that_is_not_a_number_stays_one_and_within_the_table():
    module, x = grid_and_points(3, SMALL)
    x[5] = torch.tensor([float("nan"), 1e30, -1e30])
    features = NUMBA.encoding.lookup(x, module.table, module.levels)
    assert features[5].isnan().all() and not features[6:].isnan().any()
    NUMBA.encoding.table_gradient(x, module.table, module.levels, torch.ones_like(features))


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_march_equals_torch(jittered: bool, bounded: bool):
    origin, direction = some_rays(300)
    grid = Occupancy(6).double()
    grid.binary.copy_(uniform(6, 6, 6, seed=3) > 0.7)
    grid.binary[4:] = False
    jitter = uniform(300, seed=4) if jittered else None
    ours, theirs = (
        b.volume.march(origin, direction, grid.binary, 0.031, jitter, grid.bounds() if bounded else None) for b in (NUMBA, TORCH)
    )
    assert torch.equal(ours.ray, theirs.ray) and len(ours.ray) > 1000 and ours.delta == theirs.delta
    torch.testing.assert_close(ours.t, theirs.t, rtol=0, atol=1e-12)


def test_march_along_an_axis_from_inside_and_past_the_box():
    origin = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.1, 0.2], [2.0, 0.1, 0.2], [0.0, 0.0, 3.0]])
    direction = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    binary = torch.ones(2, 2, 2, dtype=torch.bool)
    ours, theirs = (b.volume.march(origin, direction, binary, 0.25) for b in (NUMBA, TORCH))
    assert torch.equal(ours.ray, theirs.ray) and ours.ray.unique().tolist() == [0, 1]
    torch.testing.assert_close(ours.t, theirs.t)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e30])
def test_compositing_equals_torch_forward_and_backward(scale: float):
    counts = [3, 0, 70, 1, 0, 9]
    density, rgb, samples = packed(counts)
    density *= scale
    for ours, theirs in ((NUMBA.volume.composite(density, rgb, samples, 6), TORCH.volume.composite(density, rgb, samples, 6)),):
        torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=1e-12, atol=1e-14)
    grad = Composite(uniform(6, 3, seed=5) - 0.5, uniform(6, seed=6) - 0.5, uniform(6, seed=7) - 0.5)
    ours, theirs = (b.volume.composite_gradient(density, rgb, samples, 6, grad) for b in (NUMBA, TORCH))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    keep = [b.volume.visible(density, samples, 6, torch.tensor(0.3), 1e-2) for b in (NUMBA, TORCH)]
    assert torch.equal(*keep) and keep[0].any() and not keep[0].all()


def test_no_samples():
    samples = Samples(torch.zeros(0, dtype=torch.long), torch.zeros(0), 0.1)
    seen = accumulate(torch.zeros(0), torch.zeros(0, 3), samples, 4, NUMBA.volume)
    assert seen.colour.shape == (4, 3) and not any(part.any() for part in seen)
    assert NUMBA.volume.visible(torch.zeros(0), samples, 4, 0.1, 0.1).shape == (0,)
    assert NUMBA.volume.march(torch.zeros(0, 3), torch.zeros(0, 3), torch.ones(2, 2, 2, dtype=torch.bool), 0.1).ray.shape == (0,)


@pytest.mark.parametrize("backend", [TORCH, NUMBA], ids=lambda b: b.name)
def test_no_operation_keeps_more_than_64_bytes_a_sample(backend: kernels.Backend):
    """What autograd holds on to, beyond the operations' own outputs."""
    count, kept = 5000, []
    module = HashGrid(4, nano().field.dynamic, 1.0, torch.Generator().manual_seed(0), backend.encoding)
    density, rgb = uniform(count, dtype=torch.float32).requires_grad_(), uniform(count, 3, dtype=torch.float32).requires_grad_()
    samples = Samples(torch.arange(count) // 50, uniform(count, dtype=torch.float32), 0.1)
    x = uniform(count, 4, dtype=torch.float32)
    nets = [mlp((16, 32, out), torch.Generator().manual_seed(out)) for out in (1, 3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        features = module(x)
        out = decode(features, *nets)
        seen = accumulate(density, rgb, samples, count // 50, backend.volume)
    own = {t.untyped_storage().data_ptr() for t in (module.table, features, out, *seen)}
    size = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert x.untyped_storage().data_ptr() in size
    assert sum(n for at, n in size.items() if at not in own) <= 64 * count


@pytest.mark.parametrize(
    "name, device, code",
    [("cuda", "cpu", USAGE), ("triton", "cpu", USAGE), ("tcnn", "cpu", USAGE), ("numba", "cuda:0", USAGE), ("tcnn", "cuda", ENVIRONMENT)],
)
def test_a_backend_that_cannot_be_had(name: str, device: str, code: int):
    with pytest.raises(FourdfyError) as caught:
        kernels.choose(name, device)
    assert caught.value.code == code and caught.value.hint


def test_auto_is_numba_on_a_cpu():
    assert kernels.choose("auto", "cpu").name == "numba" and kernels.choose("torch", "cuda").name == "torch"

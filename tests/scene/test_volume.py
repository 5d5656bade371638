"""Marching and compositing against plain loops, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import reference_scene as reference
import torch
from samples import packed, some_rays

from fourdfy_cli.scene import volume
from fourdfy_cli.scene.occupancy import Occupancy, lookup
from fourdfy_cli.scene.volume import Samples, accumulate, composite, march, visible

EVERYWHERE = torch.ones(2, 2, 2, dtype=torch.bool)


def by_ray(samples: Samples, values: torch.Tensor, ray: int) -> list:
    return list(values[samples.ray == ray])


@pytest.mark.parametrize("jittered", [False, True])
def test_march_equals_walking_along_each_ray(jittered):
    origin, direction = some_rays(8)
    grid = Occupancy(4)
    grid.binary.copy_(torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(3)) > 0.5)
    jitter = torch.rand(8, generator=torch.Generator().manual_seed(4), dtype=torch.float64) if jittered else None
    samples = march(origin, direction, grid.binary, 0.11, jitter)
    for ray in range(8):
        offset = 0.5 if jitter is None else float(jitter[ray])
        expected = reference.march_ray(origin[ray], direction[ray], partial(lookup, grid.binary), 0.11, offset)
        torch.testing.assert_close(samples.t[samples.ray == ray], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (samples.ray == 0).any() and not (samples.ray == 7).any()
    assert samples.delta == 0.11


def test_samples_are_sorted_and_inside():
    origin, direction = some_rays(50, seed=1)
    samples = march(origin, direction, EVERYWHERE, 0.05)
    assert (samples.ray.diff() >= 0).all()
    assert (samples.t.diff()[samples.ray.diff() == 0] > 0).all()
    assert samples.points(origin, direction).abs().max() <= 1 + 1e-9


def test_camera_inside_the_box_starts_at_itself():
    samples = march(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), EVERYWHERE, 0.25)
    torch.testing.assert_close(samples.t, torch.tensor([0.125, 0.375, 0.625, 0.875]))


def test_bounds_and_blocks_of_rays_change_nothing(monkeypatch):
    origin, direction = some_rays(40, seed=2)
    grid = Occupancy(6)
    grid.binary.fill_(False)[2:4, 1:5, 3] = True
    plain = march(origin, direction, grid.binary, 0.03)
    monkeypatch.setattr(volume, "RAYS", 7)
    for bounds in (None, grid.bounds()):
        other = march(origin, direction, grid.binary, 0.03, bounds=bounds)
        assert torch.equal(plain.ray, other.ray)
        torch.testing.assert_close(plain.t, other.t, rtol=0, atol=1e-12)


def test_bounds_spare_the_lookups(monkeypatch):
    origin, direction = some_rays(40, seed=2)
    grid, asked = Occupancy(6), []
    grid.binary.fill_(False)[3, 3, 3] = True
    monkeypatch.setattr(volume, "lookup", lambda binary, x: (asked.append(len(x)), lookup(binary, x))[1])
    march(origin, direction, grid.binary, 0.03, bounds=grid.bounds())
    assert sum(asked) < 100 < len(march(origin, direction, EVERYWHERE, 0.03).ray)


def test_composite_equals_the_loops_forward_and_backward():
    counts = [3, 0, 7, 1, 0]
    density, rgb, samples = packed(counts)
    density.requires_grad_(), rgb.requires_grad_()
    fast = accumulate(density, rgb, samples, len(counts))
    each = (density, rgb, samples.t, torch.full_like(samples.t, samples.delta))
    rows = [reference.composite_ray(*(by_ray(samples, v, ray) for v in each)) for ray in range(len(counts))]
    slow = [torch.stack(part) for part in zip(*rows, strict=True)]
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    cotangents = [torch.rand_like(part) for part in slow]
    ours = torch.autograd.grad(fast, (density, rgb), cotangents)
    theirs = torch.autograd.grad(slow, (density, rgb), cotangents)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    density, rgb, samples = packed([4, 0, 3])
    assert torch.autograd.gradcheck(lambda d, c: tuple(accumulate(d, c, samples, 3)), (density.requires_grad_(), rgb.requires_grad_()))


def test_opaque_rays_do_not_blur_later_ones():
    density, rgb, samples = packed([5] * 40)
    alone = composite(density[-5:], rgb[-5:], Samples(samples.ray[-5:] * 0, samples.t[-5:], samples.delta), 1)
    density[:-5] = 1e30
    for a, b in zip(composite(density, rgb, samples, 40), alone, strict=True):
        assert torch.allclose(a[-1], b[0], rtol=1e-9, atol=0)


def test_float32_keeps_its_precision_over_many_rays():
    density, rgb, samples = packed([10] * 20_000)
    exact = composite(density, rgb, samples, 20_000)
    short = composite(density.float(), rgb.float(), Samples(samples.ray, samples.t.float(), samples.delta), 20_000)
    for a, b in zip(short, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-6)


def test_a_solid_ray_is_opaque_at_its_first_sample():
    samples = Samples(torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 2.0, 3.0]), 1.0)
    seen = composite(torch.full((3,), 1e9), torch.eye(3), samples, 1)
    torch.testing.assert_close(seen.colour, torch.tensor([[1.0, 0.0, 0.0]]))
    assert seen.opacity.item() == 1 and seen.depth.item() == 1


def test_empty_space():
    samples = Samples(torch.zeros(0, dtype=torch.long), torch.zeros(0), 0.1)
    density = torch.zeros(0, requires_grad=True)
    seen = accumulate(density, torch.zeros(0, 3), samples, 4)
    seen.opacity.sum().backward()
    assert seen.colour.shape == (4, 3) and not seen.opacity.any() and density.grad.shape == (0,)


def test_visible_by_the_loops():
    counts = [6, 0, 9]
    density, _, samples = packed(counts)
    density *= 4
    expected = []
    for ray, count in enumerate(counts):
        transmittance = 1.0
        for tau in by_ray(samples, density * samples.delta, ray) if count else []:
            alpha = 1 - torch.exp(-tau)
            expected.append(bool(alpha >= 0.5 and transmittance >= 1e-2))
            transmittance = transmittance * (1 - alpha)
    keep = visible(density, samples, 3, 0.5, 1e-2)
    assert keep.tolist() == expected and keep.any() and not keep.all()

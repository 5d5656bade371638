"""Ray marching and compositing on a CPU, compiled by numba; the notation is that of scene/volume.py.

Each thread walks along rays of its own and meets their samples in order, so nothing depends on how many threads there are.
Distances and sums are float64 on the way.
"""

# Compiled functions are not what their Python says.
# pyright: reportCallIssue=false
from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fourdfy_cli.kernels.jit import cached_njit
from fourdfy_cli.kernels.threads import spread
from fourdfy_cli.scene.volume import OPAQUE, Composite, Samples, Volume

TINY = 1e-19  # a direction's component below this is taken for this


def march(
    origin: Tensor, direction: Tensor, binary: Tensor, step_length: float, jitter: Tensor | None = None, bounds: Tensor | None = None
) -> Samples:
    """See scene.volume.march."""
    offset = torch.full_like(origin[:, 0], 0.5) if jitter is None else jitter
    box = origin.new_tensor([[-1.0] * 3, [1.0] * 3]) if bounds is None else bounds.to(origin)
    about = (*_arrays(origin, direction, binary.flatten()), len(binary), *_arrays(offset, box), step_length)
    count = np.zeros(len(origin), np.int64)
    spread(lambda begin, end: _count(*about, count, begin, end), len(origin), len(origin))
    ends = count.cumsum()
    ray, t = torch.empty(int(ends[-1:].sum()), dtype=torch.int64), origin.new_empty(int(ends[-1:].sum()))
    spread(lambda begin, end: _fill(*about, ends, *_arrays(ray, t), begin, end), len(origin), len(origin))
    return Samples(ray, t, step_length)


def visible(density: Tensor, samples: Samples, rays: int, alpha: float | Tensor, transmittance: float) -> Tensor:
    """See scene.volume.visible."""
    keep = torch.empty(len(density), dtype=torch.bool)
    arrays, least = _arrays(density, keep), (samples.delta, float(alpha), transmittance)
    starts = _starts(samples, rays)
    spread(lambda begin, end: _visible(*arrays, starts, *least, begin, end), rays, rays)
    return keep


def composite(density: Tensor, rgb: Tensor, samples: Samples, rays: int) -> Composite:
    """See scene.volume.composite."""
    seen = Composite(density.new_empty(rays, 3), density.new_empty(rays), density.new_empty(rays))
    arrays, starts = _arrays(density, rgb, samples.t, *seen), _starts(samples, rays)
    spread(lambda begin, end: _composite(*arrays, starts, samples.delta, begin, end), rays, rays)
    return seen


def composite_gradient(density: Tensor, rgb: Tensor, samples: Samples, rays: int, grad: Composite) -> tuple[Tensor, Tensor]:
    """See scene.volume.composite_gradient."""
    out = torch.empty_like(density), torch.empty_like(rgb, memory_format=torch.contiguous_format)
    arrays, starts = _arrays(density, rgb, samples.t, *grad, *out), _starts(samples, rays)
    spread(lambda begin, end: _composite_gradient(*arrays, starts, samples.delta, begin, end), rays, rays)
    return out


VOLUME = Volume(march, visible, composite, composite_gradient)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _starts(samples: Samples, rays: int) -> np.ndarray:
    """Index of the first sample of each ray, and one past the last sample of all."""
    return np.searchsorted(samples.ray.numpy(), np.arange(rays + 1))


@njit(inline="always")
def _crossing(o, d, low, high):
    """Where a ray meets the two faces of a box along one axis, the nearer first."""
    slope = d if abs(d) > TINY else TINY
    a, b = (low - o) / slope, (high - o) / slope
    return min(a, b), max(a, b)


@njit(inline="always")
def _lattice(o, d, offset, bounds, length):
    """First t, and the number of the first and of the last sample, of a ray; see scene.volume._lattice."""
    enter, leave, begin, end = 0.0, np.inf, 0.0, np.inf
    for axis in range(3):
        a, b = _crossing(o[axis], d[axis], -1.0, 1.0)
        enter, leave = max(enter, a), min(leave, b)
        a, b = _crossing(o[axis], d[axis], bounds[0, axis], bounds[1, axis])
        begin, end = max(begin, a), min(end, b)
    start, spare = enter + offset * length, 0.01 * length
    first = math.ceil((max(enter, begin - spare) - start) / length)
    last = math.floor((min(leave, end + spare) - start) / length)
    return start, max(first, 0), last


@njit(inline="always")
def _occupied(o, d, t, binary, cells):
    """Whether the point at t along a ray lies in an occupied cell; `binary` is flat."""
    half = 0.5 * cells
    x, y, z = (o[0] + d[0] * t + 1) * half, (o[1] + d[1] * t + 1) * half, (o[2] + d[2] * t + 1) * half
    if min(x, y, z) < 0 or max(x, y, z) >= cells:
        return False
    return binary[np.uint64((int(x) * cells + int(y)) * cells + int(z))]


@cached_njit(nogil=True)
def _count(origin, direction, binary, cells, offset, bounds, length, count, begin, end):
    """How many samples each ray has in occupied cells."""
    for n in range(begin, end):
        o, d = origin[n], direction[n]
        start, first, last = _lattice(o, d, offset[n], bounds, length)
        total = 0
        for k in range(first, last + 1):
            total += _occupied(o, d, start + k * length, binary, cells)
        count[n] = total


@cached_njit(nogil=True)
def _fill(origin, direction, binary, cells, offset, bounds, length, ends, ray, t, begin, end):
    """The samples that `_count` counted, those of ray n up to `ends[n]`."""
    for n in range(begin, end):
        o, d = origin[n], direction[n]
        start, first, last = _lattice(o, d, offset[n], bounds, length)
        at = ends[n - 1] if n else 0
        for k in range(first, last + 1):
            middle = start + k * length
            if _occupied(o, d, middle, binary, cells):
                ray[at], t[at] = n, middle
                at += 1


@cached_njit(nogil=True)
def _visible(density, keep, starts, delta, alpha, transmittance, begin, end):
    for n in range(begin, end):
        depth = 0.0
        for s in range(starts[n], starts[n + 1]):
            tau = density[s] * delta
            keep[s] = -math.expm1(-tau) >= alpha and math.exp(-depth) >= transmittance
            depth += min(tau, OPAQUE)


@cached_njit(nogil=True)
def _composite(density, rgb, t, colour, opacity, depth, starts, delta, begin, end):
    for n in range(begin, end):
        r, g, b, total, far, T = 0.0, 0.0, 0.0, 0.0, 0.0, 1.0
        for s in range(starts[n], starts[n + 1]):
            clear = math.exp(-density[s] * delta)
            w = T * (1 - clear)
            r, g, b = r + w * rgb[s, 0], g + w * rgb[s, 1], b + w * rgb[s, 2]
            total, far, T = total + w, far + w * t[s], T * clear
        colour[n, 0], colour[n, 1], colour[n, 2], opacity[n], depth[n] = r, g, b, total, far


@cached_njit(nogil=True)
def _composite_gradient(density, rgb, t, to_colour, to_opacity, to_depth, to_density, to_rgb, starts, delta, begin, end):
    """Forwards along a ray for w, then backwards for the sum of g w over the samples behind, g being the gradient in w."""
    for n in range(begin, end):
        a, b, c = to_colour[n]
        T = 1.0
        for s in range(starts[n], starts[n + 1]):
            clear = math.exp(-density[s] * delta)
            w = T * (1 - clear)
            to_rgb[s, 0], to_rgb[s, 1], to_rgb[s, 2] = w * a, w * b, w * c
            to_density[s] = T * clear
            T *= clear
        behind = 0.0
        for s in range(starts[n + 1] - 1, starts[n] - 1, -1):
            g = a * rgb[s, 0] + b * rgb[s, 1] + c * rgb[s, 2] + to_opacity[n] + to_depth[n] * t[s]
            after, before = to_density[s], to_density[s - 1] if s > starts[n] else 1.0
            to_density[s] = (g * after - behind) * delta
            behind += g * (before - after)

"""Ray marching and compositing on a CPU, compiled by numba; the notation is that of scene/volume.py.

Each thread walks along rays of its own and meets their samples in order, so nothing depends on how many threads there are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from fourdfy_cli.scene.volume import OPAQUE, Composite, Samples, Volume


def march(
    origin: Tensor, direction: Tensor, binary: Tensor, step_length: float, jitter: Tensor | None = None, bounds: Tensor | None = None
) -> Samples:
    """See scene.volume.march."""
    offset = torch.full_like(origin[:, 0], 0.5) if jitter is None else jitter
    box = origin.new_tensor([[-1.0] * 3, [1.0] * 3]) if bounds is None else bounds.to(origin)
    length = torch.tensor(step_length, dtype=origin.dtype).numpy()[()]
    arrays = [part.detach().contiguous().numpy() for part in (origin, direction, binary, offset, box)]
    ends = _count(*arrays, length).cumsum()
    ray, t = torch.empty(ends[-1] if len(ends) else 0, dtype=torch.int64), origin.new_empty(ends[-1] if len(ends) else 0)
    _fill(*arrays, length, ends, ray.numpy(), t.numpy())
    return Samples(ray, t, step_length)


def visible(density: Tensor, samples: Samples, rays: int, alpha: float | Tensor, transmittance: float) -> Tensor:
    """See scene.volume.visible."""
    keep = torch.empty(len(density), dtype=torch.bool)
    _visible(*_arrays(density, samples.ray), rays, samples.delta, float(alpha), transmittance, keep.numpy())
    return keep


def composite(density: Tensor, rgb: Tensor, samples: Samples, rays: int) -> Composite:
    """See scene.volume.composite."""
    seen = Composite(density.new_empty(rays, 3), density.new_empty(rays), density.new_empty(rays))
    _composite(*_arrays(density, rgb, samples.ray, samples.t), samples.delta, *_arrays(*seen))
    return seen


def composite_gradient(density: Tensor, rgb: Tensor, samples: Samples, rays: int, grad: Composite) -> tuple[Tensor, Tensor]:
    """See scene.volume.composite_gradient."""
    out = torch.empty_like(density), torch.empty_like(rgb, memory_format=torch.contiguous_format)
    _composite_gradient(*_arrays(density, rgb, samples.ray, samples.t), samples.delta, *_arrays(*grad), *_arrays(*out))
    return out


VOLUME = Volume(march, visible, composite, composite_gradient)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@njit(inline="always")
def _span(o, d, box):
    """Where a ray enters and leaves a box, entry not before t = 0."""
    real = o.dtype.type
    enter, leave = real(0), real(np.inf)
    for axis in range(3):
        slope = d[axis] if abs(d[axis]) > real(1e-19) else real(1e-19)
        a, b = (box[0, axis] - o[axis]) / slope, (box[1, axis] - o[axis]) / slope
        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return enter, leave


@njit(inline="always")
def _lattice(o, d, offset, bounds, length):
    """First t, and the number of the first and of the last sample, of a ray; see scene.volume._lattice."""
    real = o.dtype.type
    box = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], dtype=o.dtype)
    enter, leave = _span(o, d, box)
    start, spare = enter + offset * length, real(0.01) * length
    begin, end = _span(o, d, bounds)
    first = math.ceil((max(enter, begin - spare) - start) / length)
    last = math.floor((min(leave, end + spare) - start) / length)
    return start, max(first, 0), last


@njit(inline="always")
def _occupied(o, d, t, binary):
    """Whether the point at t along a ray lies in an occupied cell."""
    real, cells = o.dtype.type, len(binary)
    half = real(cells) * real(0.5)
    i = math.floor((o[0] + d[0] * t + real(1)) * half)
    j = math.floor((o[1] + d[1] * t + real(1)) * half)
    k = math.floor((o[2] + d[2] * t + real(1)) * half)
    return 0 <= i < cells and 0 <= j < cells and 0 <= k < cells and binary[i, j, k]


@njit(parallel=True, cache=True)
def _count(origin, direction, binary, offset, bounds, length):
    """How many samples each ray has in occupied cells."""
    real = origin.dtype.type
    count = np.zeros(len(origin), np.int64)
    for n in prange(len(origin)):
        o, d = origin[n], direction[n]
        start, first, last = _lattice(o, d, offset[n], bounds, length)
        for k in range(first, last + 1):
            count[n] += _occupied(o, d, start + real(k) * length, binary)
    return count


@njit(parallel=True, cache=True)
def _fill(origin, direction, binary, offset, bounds, length, ends, ray, t):
    """The samples that `_count` counted, those of ray n up to `ends[n]`."""
    real = origin.dtype.type
    for n in prange(len(origin)):
        o, d = origin[n], direction[n]
        start, first, last = _lattice(o, d, offset[n], bounds, length)
        at = ends[n - 1] if n else 0
        for k in range(first, last + 1):
            middle = start + real(k) * length
            if _occupied(o, d, middle, binary):
                ray[at], t[at] = n, middle
                at += 1


@njit(parallel=True, cache=True)
def _visible(density, ray, rays, delta, alpha, transmittance, keep):
    starts = np.searchsorted(ray, np.arange(rays + 1))
    for n in prange(rays):
        depth = 0.0
        for s in range(starts[n], starts[n + 1]):
            tau = density[s] * delta
            keep[s] = -math.expm1(-tau) >= alpha and math.exp(-depth) >= transmittance
            depth += min(tau, OPAQUE)


@njit(parallel=True, cache=True)
def _composite(density, rgb, ray, t, delta, colour, opacity, depth):
    starts = np.searchsorted(ray, np.arange(len(opacity) + 1))
    for n in prange(len(opacity)):
        r, g, b, total, far, T = 0.0, 0.0, 0.0, 0.0, 0.0, 1.0
        for s in range(starts[n], starts[n + 1]):
            clear = math.exp(-density[s] * delta)
            w = T * (1 - clear)
            r, g, b = r + w * rgb[s, 0], g + w * rgb[s, 1], b + w * rgb[s, 2]
            total, far, T = total + w, far + w * t[s], T * clear
        colour[n, 0], colour[n, 1], colour[n, 2], opacity[n], depth[n] = r, g, b, total, far


@njit(parallel=True, cache=True)
def _composite_gradient(density, rgb, ray, t, delta, to_colour, to_opacity, to_depth, to_density, to_rgb):
    """Forwards along a ray for w, then backwards for the sum of g w over the samples behind, g being the gradient in w."""
    starts = np.searchsorted(ray, np.arange(len(to_opacity) + 1))
    for n in prange(len(to_opacity)):
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

"""Ray marching and packed compositing as Triton kernels, for CUDA devices; the functions of `scene.volume`.

Notation of `scene.volume`. One program walks one ray, CHUNK samples at a time: optical depths are summed within a chunk by a
parallel scan and carried on to the next, so that no ray disturbs another one and nothing per sample is stored on the way.
Rays are marched in float32. Sums run in a fixed order: results repeat bit by bit.
Source of the scheme, count, sum up and write: the packed marching of nerfacc (Li et al. 2023).
"""

# Compiled functions are not what their Python says.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fourdfy_cli.scene.volume import Composite, Samples, Volume

CHUNK = tl.constexpr(64)
TINY = tl.constexpr(1e-19)  # directions below this count as this, so that nothing is divided by zero
WARP = {"num_warps": 1, "enable_fp_fusion": False}  # one warp a ray; products are rounded before they are added to, as in torch


@triton.jit
def _span(origin, direction, box):
    """Where a ray enters and leaves a box [2 3] (all pointers), entry not before t = 0; a miss has entry > exit."""
    for axis in tl.static_range(3):
        place, slope = tl.load(origin + axis), tl.load(direction + axis)
        slope = tl.where(tl.abs(slope) < TINY, TINY, slope)
        one, other = tl.div_rn(tl.load(box + axis) - place, slope), tl.div_rn(tl.load(box + 3 + axis) - place, slope)
        if axis == 0:
            enter, leave = tl.maximum(tl.minimum(one, other), 0.0), tl.maximum(one, other)
        else:
            enter, leave = tl.maximum(enter, tl.minimum(one, other)), tl.minimum(leave, tl.maximum(one, other))
    return enter, leave


@triton.jit
def _march(origin, direction, offset, box, bounds, binary, cells, step, begin, rays, t, WRITE: tl.constexpr):
    """Without WRITE: adds the number of samples of each ray to `begin` [N]. With it: stores their rays and t from there on."""
    ray = tl.program_id(0).to(tl.int64)
    origin, direction = origin + 3 * ray, direction + 3 * ray
    enter, leave = _span(origin, direction, box)
    start = enter + tl.load(offset + ray) * step
    within, beyond = _span(origin, direction, bounds)
    enter, leave = tl.maximum(enter, within - 0.01 * step), tl.minimum(leave, beyond + 0.01 * step)
    first = tl.maximum(tl.ceil(tl.div_rn(enter - start, step)), 0.0)
    count = tl.maximum(tl.floor(tl.div_rn(leave - start, step)) - first + 1, 0.0).to(tl.int32)
    kept = tl.load(begin + ray)
    for done in range(0, count, CHUNK):
        number = done + tl.arange(0, CHUNK)
        middle = start + (first + number) * step
        inside, cell = number < count, tl.zeros([CHUNK], tl.int32)
        for axis in tl.static_range(3):
            place = tl.floor((tl.load(origin + axis) + tl.load(direction + axis) * middle + 1.0) * (cells * 0.5))
            inside = inside & (place >= 0) & (place < cells)
            cell = cell * cells + place.to(tl.int32)
        occupied = (tl.load(binary + cell, mask=inside, other=0) != 0).to(tl.int32)
        if WRITE:
            place = kept + tl.cumsum(occupied, 0) - occupied
            tl.store(rays + place, tl.zeros([CHUNK], tl.int64) + ray, mask=occupied == 1)
            tl.store(t + place, middle, mask=occupied == 1)
        kept += tl.sum(occupied, 0)
    if not WRITE:
        tl.store(begin + ray, kept)


@triton.jit
def _opacity(tau):
    """1 - exp(-tau), by its series where the difference would lose digits."""
    low = tl.minimum(tau, 0.1)
    series = low * (1 - low / 2 * (1 - low / 3 * (1 - low / 4 * (1 - low / 5))))
    return tl.where(tau < 0.1, series, 1 - tl.exp(-tau))


@triton.jit
def _depths(tau, sample, begin, end, depth):
    """For samples [CHUNK] of a ray that owns [begin, end): tau, T before them, and the ray's depth up to the next chunk, `depth`
    being that up to this one. Sums the tau of the samples before, as less than all would not be exact behind an opaque one."""
    earlier = tl.load(tau + sample - 1, mask=(sample > begin) & (sample < end), other=0.0)
    here = tl.load(tau + sample, mask=sample < end, other=0.0)
    return here, tl.exp(-(depth + tl.cumsum(earlier, 0))), depth + tl.sum(earlier, 0)


@triton.jit
def _visible(tau, ends, out, transmittance):
    """Opacity of every sample, or -1 behind a transmittance that is too low."""
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ends + ray), tl.load(ends + ray + 1)
    depth = tl.zeros([1], tau.dtype.element_ty)
    for first in range(begin, end, CHUNK):
        sample = first + tl.arange(0, CHUNK)
        here, T, depth = _depths(tau, sample, begin, end, depth)
        tl.store(out + sample, tl.where(T >= transmittance, _opacity(here), -1.0), mask=sample < end)


@triton.jit
def _composite(tau, rgb, t, ends, colour, opacity, depth):
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ends + ray), tl.load(ends + ray + 1)
    channel, reached = tl.arange(0, 4)[None, :], tl.zeros([1], tau.dtype.element_ty)
    seen, far = tl.zeros([CHUNK], tau.dtype.element_ty), tl.zeros([CHUNK], tau.dtype.element_ty)
    mix = tl.zeros([CHUNK, 4], tau.dtype.element_ty)
    for first in range(begin, end, CHUNK):
        sample = first + tl.arange(0, CHUNK)
        here, T, reached = _depths(tau, sample, begin, end, reached)
        w = _opacity(here) * T
        known = (sample[:, None] < end) & (channel < 3)
        seen += w
        far += w * tl.load(t + sample, mask=sample < end, other=0.0)
        mix += w[:, None] * tl.load(rgb + sample[:, None] * 3 + channel, mask=known, other=0.0)
    tl.store(opacity + ray, tl.sum(seen, 0))
    tl.store(depth + ray, tl.sum(far, 0))
    tl.store(colour + ray * 3 + tl.arange(0, 4), tl.sum(mix, 0), mask=tl.arange(0, 4) < 3)


@triton.jit
def _composite_gradient(tau, rgb, t, ends, colour, opacity, depth, to_tau, to_rgb):
    """Twice along the ray: first the sum of gradient times weight, then what of it lies behind each sample."""
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ends + ray), tl.load(ends + ray + 1)
    channel = tl.arange(0, 4)[None, :]
    mix = tl.load(colour + ray * 3 + channel, mask=channel < 3, other=0.0)
    seen, far = tl.load(opacity + ray), tl.load(depth + ray)
    behind = tl.zeros([1], tau.dtype.element_ty)
    for write in tl.static_range(2):
        reached = tl.zeros([1], tau.dtype.element_ty)
        for first in range(begin, end, CHUNK):
            sample = first + tl.arange(0, CHUNK)
            here, T, reached = _depths(tau, sample, begin, end, reached)
            w = _opacity(here) * T
            known = (sample[:, None] < end) & (channel < 3)
            worth = tl.sum(tl.load(rgb + sample[:, None] * 3 + channel, mask=known, other=0.0) * mix, 1)
            worth += seen + far * tl.load(t + sample, mask=sample < end, other=0.0)
            part = tl.where(sample < end, worth * w, 0.0)
            if write == 1:
                tl.store(to_tau + sample, worth * T * tl.exp(-here) - (behind - tl.cumsum(part, 0)), mask=sample < end)
                tl.store(to_rgb + sample[:, None] * 3 + channel, w[:, None] * mix, mask=known)
                behind -= tl.sum(part, 0)
            else:
                behind += tl.sum(part, 0)


def march(
    origin: Tensor, direction: Tensor, binary: Tensor, step_length: float, jitter: Tensor | None = None, bounds: Tensor | None = None
) -> Samples:
    """Samples in occupied cells of `binary` [R R R] of rays [N 3]; see `scene.volume.march`."""
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], device=origin.device)
    offset = torch.full_like(origin[:, 0], 0.5) if jitter is None else jitter
    rays = [part.float().contiguous() for part in (origin, direction, offset, box, box if bounds is None else bounds)]
    given = *rays, binary.contiguous().view(torch.uint8), len(binary), step_length
    with torch.cuda.device_of(origin):
        count = torch.zeros(len(origin), dtype=torch.int64, device=origin.device)
        _march[(len(origin),)](*given, count, count, rays[0], WRITE=False, **WARP)
        total = count.cumsum(0)
        size = int(total[-1]) if len(total) else 0
        ray, t = count.new_empty(size), box.new_empty(size)
        _march[(len(origin),)](*given, total - count, ray, t, WRITE=True, **WARP)
    return Samples(ray, t.to(origin.dtype), step_length)


def _ends(samples: Samples, rays: int) -> Tensor:
    """Index [N + 1] at which each ray's samples begin, and the number of all."""
    return torch.searchsorted(samples.ray, torch.arange(rays + 1, device=samples.ray.device))


@torch.no_grad()
def visible(density: Tensor, samples: Samples, rays: int, alpha: float | Tensor, transmittance: float) -> Tensor:
    """Samples [S] worth keeping; see `scene.volume.visible`."""
    tau = (density * samples.delta).contiguous()
    with torch.cuda.device_of(tau):
        out = torch.empty_like(tau)
        _visible[(rays,)](tau, _ends(samples, rays), out, transmittance, **WARP)
    return out >= alpha


def composite(density: Tensor, rgb: Tensor, samples: Samples, rays: int) -> Composite:
    """Colour, opacity and depth of rays, without a graph; see `scene.volume.composite`."""
    tau = (density * samples.delta).contiguous()
    out = Composite(rgb.new_empty(rays, 3), tau.new_empty(rays), tau.new_empty(rays))
    with torch.cuda.device_of(tau):
        _composite[(rays,)](tau, rgb.contiguous(), samples.t.contiguous(), _ends(samples, rays), *out, **WARP)
    return out


def composite_gradient(density: Tensor, rgb: Tensor, samples: Samples, rays: int, grad: Composite) -> tuple[Tensor, Tensor]:
    """Gradients [S], [S 3] in density and rgb; see `scene.volume.composite_gradient`."""
    tau = (density * samples.delta).contiguous()
    to_tau, to_rgb = torch.empty_like(tau), torch.empty_like(rgb, memory_format=torch.contiguous_format)
    given = tau, rgb.contiguous(), samples.t.contiguous(), _ends(samples, rays), *(part.contiguous() for part in grad)
    with torch.cuda.device_of(tau):
        _composite_gradient[(rays,)](*given, to_tau, to_rgb, **WARP)
    return to_tau.mul_(samples.delta), to_rgb


VOLUME = Volume(march, visible, composite, composite_gradient)

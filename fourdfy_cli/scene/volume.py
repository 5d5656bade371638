"""Ray marching and compositing on packed samples; nothing here knows what field it looks at.

Notation: N rays `origin + t direction` (unit directions), S samples of all rays one after another, sorted by ray and
then by t. `t` is the middle of a sample's interval, `delta` the interval's length (constant along a march, world
units), `tau = density delta`; opacity of a sample alpha = 1 - exp(-tau), transmittance before it T = exp(-sum of the
ray's earlier tau), weight w = T alpha. Source: Max 1995 and NeRF (Mildenhall et al. 2020) Eq. 3; the packed layout and
the pruning rule are nerfacc's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fourdfy_cli.scene.occupancy import lookup

RAYS = 2**14  # rays marched at once: bounds the memory of the samples before those in empty space are dropped
OPAQUE = 80.0  # tau beyond this is as good as infinite; the cap keeps one ray's sums from blurring the next ray's


class Samples(NamedTuple):
    """S samples sorted by ray: ray [S] int64, t [S] middles, delta the length of every interval."""

    ray: Tensor
    t: Tensor
    delta: float

    def points(self, origin: Float[Tensor, "N 3"], direction: Float[Tensor, "N 3"]) -> Float[Tensor, "S 3"]:
        """Where the samples lie in the world."""
        return torch.addcmul(origin.index_select(0, self.ray), direction.index_select(0, self.ray), self.t[:, None])

    def take(self, keep: Int[Tensor, " K"]) -> Samples:
        """The samples at indices [K], which ascend."""
        return Samples(self.ray.index_select(0, keep), self.t.index_select(0, keep), self.delta)


class Composite(NamedTuple):
    """What rays see: colour [N 3] without background, opacity [N] in [0,1], depth [N] = sum of w t."""

    colour: Tensor
    opacity: Tensor
    depth: Tensor


def span(
    origin: Float[Tensor, "N 3"], direction: Float[Tensor, "N 3"], box: Float[Tensor, "2 3"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Where rays enter and leave a box (lower, upper corner), entry not before t = 0; a miss has entry > exit."""
    tiny = torch.finfo(direction.dtype).tiny ** 0.5
    slope = torch.where(direction.abs() < tiny, tiny, direction)
    crossing = (box[:, None] - origin) / slope
    return crossing.amin(0).amax(-1).clamp(min=0), crossing.amax(0).amin(-1)


@torch.no_grad()
def march(
    origin: Float[Tensor, "N 3"],
    direction: Float[Tensor, "N 3"],
    binary: Bool[Tensor, "R R R"],
    step_length: float,
    jitter: Float[Tensor, " N"] | None = None,
    bounds: Float[Tensor, "2 3"] | None = None,
) -> Samples:
    """Samples of rays through the box [-1,1]^3 at entry + (k + jitter) step_length, k = 0, 1, ..., that lie in
    occupied cells. `jitter` in [0,1) shifts a whole ray, None is 1/2. `bounds` is a box outside which nothing is
    occupied: it saves time and changes nothing else."""
    box = origin.new_tensor([[-1.0] * 3, [1.0] * 3])
    offset = torch.full_like(origin[:, 0], 0.5) if jitter is None else jitter
    ray, t = [], []
    for begin in range(0, len(origin), RAYS):
        o, d = origin[begin : begin + RAYS], direction[begin : begin + RAYS]
        local, middle = _lattice(span(o, d, box), span(o, d, box if bounds is None else bounds), offset[begin : begin + RAYS], step_length)
        keep = lookup(binary, Samples(local, middle, step_length).points(o, d)).nonzero()[:, 0]
        ray.append(local[keep] + begin)
        t.append(middle[keep])
    return Samples(torch.cat(ray), torch.cat(t), step_length)


def _lattice(box: tuple[Tensor, Tensor], bounds: tuple[Tensor, Tensor], offset: Tensor, step_length: float) -> tuple[Tensor, Tensor]:
    """Ray and t of every sample: entry of the box + (k + offset) step_length, from where both spans have begun to where
    one ends. The bounds get a hundredth of a step to spare, so that rounding cannot lose a sample on their faces."""
    start = box[0] + offset * step_length
    enter = box[0].maximum(bounds[0] - 0.01 * step_length)
    leave = box[1].minimum(bounds[1] + 0.01 * step_length)
    first = ((enter - start) / step_length).ceil().clamp(min=0)
    count = (((leave - start) / step_length).floor() - first + 1).clamp(min=0).long()
    ray = torch.repeat_interleave(torch.arange(len(start), device=start.device), count)
    k = torch.arange(len(ray), device=start.device) + (first.long() + count - count.cumsum(0))[ray]
    return ray, torch.add(start[ray], k, alpha=step_length)


@torch.no_grad()
def visible(density: Float[Tensor, " S"], samples: Samples, rays: int, alpha: float | Tensor, transmittance: float) -> Bool[Tensor, " S"]:
    """Samples worth keeping: opacity of at least `alpha`, and not behind a transmittance below `transmittance`."""
    tau = density * samples.delta
    return (-torch.expm1(-tau) >= alpha) & (_transmittance(tau, samples.ray, rays) >= transmittance)


def composite(density: Float[Tensor, " S"], rgb: Float[Tensor, "S 3"], samples: Samples, rays: int) -> Composite:
    """Colour, opacity and depth of `rays` rays, without a graph."""
    w, _ = _weights(density, samples, rays)
    seen = torch.cat([rgb, torch.stack([torch.ones_like(w), samples.t], 1)], 1) * w[:, None]
    total = torch.zeros(rays, 5, dtype=seen.dtype, device=seen.device).index_add(0, samples.ray, seen)
    return Composite(total[:, :3], total[:, 3], total[:, 4])


def composite_gradient(
    density: Float[Tensor, " S"], rgb: Float[Tensor, "S 3"], samples: Samples, rays: int, grad: Composite
) -> tuple[Float[Tensor, " S"], Float[Tensor, "S 3"]]:
    """Gradients in density and rgb for the gradients `grad` in what rays see. d w_j / d tau_i is T_i exp(-tau_i) for j = i,
    -w_j for later samples j of the same ray, else zero."""
    w, T = _weights(density, samples, rays)
    colour = grad.colour[samples.ray]
    to_w = (colour * rgb).sum(1) + grad.opacity[samples.ray] + grad.depth[samples.ray] * samples.t
    upto = torch.cat([torch.zeros(1, dtype=torch.float64, device=w.device), (to_w * w).double().cumsum(0)])
    behind = upto[_ends(samples.ray, rays)][samples.ray] - upto[1:]
    return (to_w * (T - w) - behind.to(w.dtype)) * samples.delta, w[:, None] * colour


def _weights(density: Tensor, samples: Samples, rays: int) -> tuple[Tensor, Tensor]:
    """Weight w = T alpha of each sample, and T."""
    tau = density * samples.delta
    T = _transmittance(tau, samples.ray, rays).to(tau.dtype)
    return -torch.expm1(-tau) * T, T


def _ends(ray: Int[Tensor, " S"], rays: int) -> Int[Tensor, " N"]:
    """Index one past the last sample of each ray."""
    return torch.bincount(ray, minlength=rays).cumsum(0)


def _transmittance(tau: Float[Tensor, " S"], ray: Int[Tensor, " S"], rays: int) -> Float[Tensor, " S"]:
    """T before each sample. One running sum over all rays, in float64, less its value where the sample's ray begins."""
    tau = tau.double().clamp(max=OPAQUE)
    before = torch.cat([tau.new_zeros(1), tau.cumsum(0)])
    begin = torch.cat([ray.new_zeros(1), _ends(ray, rays)[:-1]])
    return torch.exp(before[begin][ray] - before[:-1])


class Volume(NamedTuple):
    """One implementation of marching and compositing. `TORCH` below is the plain one; other backends are in kernels/."""

    march: Callable[..., Samples]
    visible: Callable[[Tensor, Samples, int, float | Tensor, float], Tensor]
    composite: Callable[[Tensor, Tensor, Samples, int], Composite]
    composite_gradient: Callable[[Tensor, Tensor, Samples, int, Composite], tuple[Tensor, Tensor]]


TORCH = Volume(march, visible, composite, composite_gradient)


def accumulate(density: Float[Tensor, " S"], rgb: Float[Tensor, "S 3"], samples: Samples, rays: int, volume: Volume = TORCH) -> Composite:
    """`composite`, differentiable in density and rgb."""
    return Composite(*_Composite.apply(density, rgb, samples, rays, volume))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, density: Tensor, rgb: Tensor, samples: Samples, rays: int, volume: Volume):
        ctx.save_for_backward(density, rgb, samples.ray, samples.t)
        ctx.delta, ctx.rays, ctx.volume = samples.delta, rays, volume
        return tuple(volume.composite(density, rgb, samples, rays))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        density, rgb, ray, t = ctx.saved_tensors
        gradients = ctx.volume.composite_gradient(density, rgb, Samples(ray, t, ctx.delta), ctx.rays, Composite(*grads))
        return *gradients, None, None, None

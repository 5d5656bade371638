"""The scene as one module, and pictures of it.

Notation: V views of H x W pixels; `blob_std` is the size of the density bias (see field.py); `backdrop` a plain rgb
[3] in [0,1] instead of the background network. Randomness comes from the generators that are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fourdfy_cli import config
from fourdfy_cli.scene.backend import TORCH, Backend
from fourdfy_cli.scene.background import Background
from fourdfy_cli.scene.cameras import Shot, rays
from fourdfy_cli.scene.field import make
from fourdfy_cli.scene.occupancy import Occupancy, bounds, dilated
from fourdfy_cli.scene.volume import Samples, accumulate

Visible = Callable[[Tensor], Tensor]
CHUNK = 160_000  # points queried at once when no gradient is wanted
ROUND = 16  # samples of a ray queried before asking whether anything behind them can be seen


class Frames(NamedTuple):
    """What rays [...] see: rgb [... 3] in [0,1], opacity [...] in [0,1], depth [...] in world units (not divided by
    opacity). Of a shot, [...] is [V H W]."""

    rgb: Tensor
    opacity: Tensor
    depth: Tensor


class Rays(NamedTuple):
    """N rays at their moments: origin [N 3], unit direction [N 3], time [N] in [0,1], jitter [N] in [0,1) or None."""

    origin: Tensor
    direction: Tensor
    time: Tensor
    jitter: Tensor | None

    def split(self, size: int) -> list[Rays]:
        """The rays in runs of `size`."""
        origin, direction, time = (part.split(size) for part in self[:3])
        jitter = [None] * len(time) if self.jitter is None else self.jitter.split(size)
        return [Rays(*part) for part in zip(origin, direction, time, jitter, strict=True)]

    def take(self, rows: slice) -> Rays:
        """Some of the rays."""
        origin, direction, time = (part[rows].contiguous() for part in self[:3])
        return Rays(origin, direction, time, None if self.jitter is None else self.jitter[rows].contiguous())


class RenderOptions(NamedTuple):
    """The density blob's size, a plain backdrop rgb [3] instead of the background network, the opacity below which samples are dropped
    (None: march.alpha_thre), and the cells [R R R] that are looked into (None: the occupied ones; see `occupied_at`)."""

    blob_std: float
    backdrop: Tensor | None = None
    alpha_thre: float | None = None
    cells: Tensor | None = None


class Scene(nn.Module):
    """Field, background and occupancy. `blob_std` holds the value of the last training step, for whoever renders a
    finished scene; nothing in here reads it."""

    blob_std: Tensor

    def __init__(
        self,
        field: config.Field,
        background: config.Background,
        march: config.March,
        seed: int,
        backend: Backend = TORCH,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.march, self.backend = march, backend
        self.field = make(field, generator, backend.encoding)
        self.background_net = Background(background.hidden, generator)
        self.occupancy = Occupancy(march.resolution)
        self.register_buffer("blob_std", torch.tensor(0.5))

    @property
    def step_length(self) -> float:
        """Length of a marching step, world units: `samples` of them span the box's diagonal."""
        return 2 * math.sqrt(3) / self.march.samples


def update_occupancy(scene: Scene, step: int, blob_std: float, time: Tensor | float, generator: torch.Generator, dilation: int = 0) -> None:
    """One occupancy update at one time in [0,1], at `step` of the stage (the first steps visit every cell)."""

    def density(x: Tensor) -> Tensor:
        return density_at(scene, x, time, blob_std)

    scene.occupancy.update(density, scene.step_length, step, scene.march.warmup_steps, generator, dilation)


def density_at(scene: Scene, x: Tensor, time: Tensor | float, blob_std: float) -> Tensor:
    """Density [N] per world unit at points [N 3] and a moment in [0,1], or one for each point; CHUNK points at once."""
    moment = torch.as_tensor(time, dtype=x.dtype, device=x.device).expand(len(x))
    return torch.cat([scene.field.density(a, t, blob_std) for a, t in zip(x.split(CHUNK), moment.split(CHUNK), strict=True)])


def least_opacity(scene: Scene, alpha_thre: float | None = None) -> Tensor:
    """The opacity of a sample below which it is left out of a picture."""
    return scene.occupancy.mean().clamp(max=scene.march.alpha_thre if alpha_thre is None else alpha_thre)


@torch.no_grad()
def occupied_at(scene: Scene, time: float) -> Tensor:
    """The cells, half as wide as those of the occupancy grid, that show at one moment in [0,1]: in which, or beside which, a sample in the
    middle of the cell, about as wide as a marching step, would not be left out. Fewer than are occupied at any time."""
    size = 2 * scene.occupancy.cells
    inside = scene.occupancy.binary.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    middle = (inside.nonzero() + 0.5) * (2 / size) - 1
    tau = density_at(scene, middle, time, float(scene.blob_std)) * scene.step_length
    shows = torch.zeros_like(inside)
    shows[inside] = -torch.expm1(-tau) >= least_opacity(scene)
    return dilated(shows, 1)


def render(
    scene: Scene,
    shot: Shot,
    blob_std: float,
    backdrop: Tensor | None = None,
    generator: torch.Generator | None = None,
    train: bool = False,
    alpha_thre: float | None = None,
) -> Frames:
    """Pictures of a shot, with a graph if `train`. A generator jitters the samples along each ray.

    Colour = composite + (1 - opacity) background. Samples that hardly show are left out: opacity below
    min(alpha_thre, the mean occupancy value) or transmittance before them below march.early_stop_eps; alpha_thre is march.alpha_thre
    unless given.
    """
    frames = render_rays(scene, camera_rays(scene, shot, generator), RenderOptions(blob_std, backdrop, alpha_thre), train)
    return Frames(*(part.unflatten(0, (len(shot), *shot.size)) for part in frames))


def camera_rays(scene: Scene, shot: Shot, generator: torch.Generator | None = None) -> Rays:
    """The rays of a shot, on the scene's device, view by view and row by row."""
    like = scene.blob_std
    origin, direction = (part.reshape(-1, 3).to(like) for part in rays(shot))
    time = shot.time.to(like).repeat_interleave(shot.size[0] * shot.size[1])
    if generator is None:
        return Rays(origin, direction, time, None)
    return Rays(origin, direction, time, torch.rand(len(time), generator=generator, device=generator.device, dtype=like.dtype).to(like))


def render_rays(scene: Scene, rays: Rays, options: RenderOptions, train: bool = False) -> Frames:
    """Colour, opacity and depth of rays, with a graph if `train`; see `render`. A ray's result does not depend on the others."""
    origin, direction = rays.origin, rays.direction
    grid, volume = scene.occupancy, scene.backend.volume
    cells = grid.binary if options.cells is None else options.cells
    samples = volume.march(origin, direction, cells, scene.step_length, rays.jitter, bounds(cells).to(origin))
    x, time = samples.points(origin, direction), rays.time.index_select(0, samples.ray)

    def visible(density: Tensor) -> Tensor:
        """Indices of the samples that show."""
        least = least_opacity(scene, options.alpha_thre)
        return volume.visible(density, samples, len(origin), least, scene.march.early_stop_eps).nonzero()[:, 0]

    with torch.set_grad_enabled(train):
        if train:
            keep, density, rgb = _query_train(scene, x, time, options.blob_std, visible)
        else:
            keep, density, rgb = _query(scene, samples, x, time, options.blob_std, visible)
        total = accumulate(density, rgb, samples.take(keep), len(origin), volume)
        behind = scene.background_net(direction) if options.backdrop is None else options.backdrop.to(total.colour)
        return Frames(total.colour + (1 - total.opacity)[:, None] * behind, total.opacity, total.depth)


def _query(scene: Scene, samples: Samples, x: Tensor, time: Tensor, blob_std: float, visible: Visible) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the samples to keep, their density and rgb. ROUND samples of every ray are queried at once, front to back, and
    no more of a ray once nothing can be seen behind them."""
    ray, count = samples.ray, samples.ray.bincount()
    rounds = (torch.arange(len(ray), device=x.device) - (count.cumsum(0) - count)[ray]) // ROUND
    density, rgb, depth = x.new_zeros(len(x)), torch.zeros_like(x), x.new_zeros(len(count))
    for number in range(-(-int(count.max()) // ROUND) if len(ray) else 0):
        part = (rounds == number).nonzero()[:, 0]
        part = part if number == 0 else part[(-depth[ray[part]]).exp() >= scene.march.early_stop_eps]
        for block in part.split(CHUNK):
            density[block], rgb[block] = scene.field(x[block], time[block], blob_std)
        depth.index_add_(0, ray[part], density[part] * samples.delta)
    keep = visible(density)
    return keep, density[keep], rgb[keep]


def _query_train(scene: Scene, x: Tensor, time: Tensor, blob_std: float, visible: Visible) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the samples to keep, their density and rgb: a first query without a graph decides which samples get one."""
    with torch.no_grad():
        known = scene.field.features(x, time)
        keep = visible(scene.field.density_of(known, x, blob_std))
    x, time, known = (part.index_select(0, keep) for part in (x, time, known))
    features = scene.field.attach(known, x, time)
    return keep, *scene.field.decode(features, x, blob_std)

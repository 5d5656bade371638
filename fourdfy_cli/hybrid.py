"""Algorithm 1 of 4D-fy: hybrid score distillation sampling, one step at a time.

A step is a pure function of the scene and (seed, stage, step): every random number comes from a generator seeded with
these and the name of its stream, so a run can be cut and resumed anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch, Recipe, Stage
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.losses import opaqueness, smoothness, sparsity
from fourdfy_cli.memory import DIRECT, Chunks
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.deformation import Deformation
from fourdfy_cli.scene.scene import Frames, RenderOptions, Scene, camera_rays, render_rays, update_occupancy

BRANCHES = ("multiview", "image", "video")
ALIKE = ("branch", "refresh", "cells")  # streams that processes which draw their own views have in common
EPSILON = 2.0**-24  # from 1 to the float below it
POINTS, APART = 4096, 1 / 64  # at how many points a deformation's slope is measured, and over what part of the box and of the period


@dataclass(frozen=True)
class StepContext:
    """Recipe, seed, stage and step: all that decides a step's schedules and random numbers. `retry` counts how often a run has gone
    back after numbers went bad: another stream of noise each time. `rank`: of a process that draws views of its own."""

    recipe: Recipe
    seed: int
    stage: int
    step: int
    retry: int = 0
    rank: int = 0

    @property
    def settings(self) -> Stage:
        return self.recipe.stage(self.stage)

    def branch(self, name: str) -> Branch:
        """The settings of a branch in this stage."""
        return getattr(self.settings, name)

    @property
    def progress(self) -> float:
        return self.step / max(self.settings.steps, 1)

    def generator(self, stream: str) -> torch.Generator:
        """A generator for one named stream of this step."""
        return torch.Generator().manual_seed(self._key(self.step, stream))

    def sobol(self, points: int) -> Float[Tensor, "6 P"]:
        """This step's P of a scrambled Sobol sequence's points in [0,1)^6: each alone is uniform, and those of a stage lie evenly."""
        engine = torch.quasirandom.SobolEngine(6, scramble=True, seed=self._key("all", "camera"))
        return engine.fast_forward(self.step * points).draw(points).T.clamp(max=1 - EPSILON)

    def _key(self, step: int | str, stream: str) -> int:
        retry = f"/{self.retry}" if self.retry else ""
        rank = f"/rank {self.rank}" if self.rank and stream not in ALIKE else ""
        key = hashlib.blake2b(f"{self.seed}/{self.stage}/{step}/{stream}{retry}{rank}".encode(), digest_size=8)
        return int.from_bytes(key.digest(), "big") >> 1


@dataclass
class Outcome:
    """What a step did: its branch and the values it minimised (the guidance's own, and the regularisers)."""

    branch: str
    losses: dict[str, float] = field(default_factory=dict)


def draw_branch(stage: Stage, generator: torch.Generator, progress: float) -> str:
    """Algorithm 1's two coins: 3D with p_3d (its odds times `odds_3d`), else image with p_image, else video."""
    coins = torch.rand(2, generator=generator)
    if coins[0] < stage.chance_3d(progress):
        return "multiview"
    return "image" if coins[1] < stage.p_image else "video"


def frame_times(frames: int, first: Tensor) -> Float[Tensor, " F"]:
    """F consecutive times (first + k) / F for `first` uniform in [0,1) (released code, `sample_rand_frames: t0`)."""
    return (first + torch.arange(frames)) / frames


def draw_cameras(context: StepContext, u: Float[Tensor, "5 G"], turns: int) -> tuple[Tensor, Tensor]:
    """Cameras [G*turns 4 4] and fovy [G*turns] from numbers uniform in [0,1): a group shares elevation, distance and fovy and looks from
    `turns` azimuths 360/turns degrees apart. A fair coin picks elevations uniform in angle or in area on the sphere."""
    cameras, groups = context.recipe.cameras, u.shape[1]
    low, high = (math.radians(a) for a in cameras.elevation)
    by_angle = low + (high - low) * u[0]
    first, last = (a / 90 for a in cameras.elevation) if cameras.flat_area else (math.sin(low), math.sin(high))
    by_area = torch.asin(first + (last - first) * u[0])
    elevation = by_angle if u[1, 0] < 0.5 else by_area
    distance = cameras.distance[0] + (cameras.distance[1] - cameras.distance[0]) * u[2]
    fovy = torch.deg2rad(cameras.fovy[0] + (cameras.fovy[1] - cameras.fovy[0]) * u[3])
    azimuth = (u[4][:, None] + torch.arange(turns)) * (2 * math.pi / turns) - math.pi
    each = [x[:, None].expand(groups, turns).reshape(-1) for x in (elevation, distance, fovy)]
    return orbit_camera(azimuth.reshape(-1), each[0], each[1]), each[2]


def draw_shot(branch: str, context: StepContext) -> Shot:
    """V views, each a camera at a context: 4 cameras 90 degrees apart at one time (3D), single cameras at one time
    (image), or one camera at F consecutive times (video). With `sobol`, cameras and times are a Sobol sequence's."""
    settings = context.branch(branch)
    coarse = settings.coarse if context.progress < settings.fine_from else None
    size, groups = (settings.size, settings.groups) if coarse is None else (coarse, settings.coarse_groups)
    generator, frames = context.generator("camera"), context.recipe.frames
    if context.settings.sobol:
        azimuth, moment, *rest = context.sobol(groups)  # the first are spread best
        u, first, pick = torch.stack([*rest, azimuth]), moment[0] * frames % 1, int(moment[0] * frames)
    else:
        u, first = torch.rand(5, groups, generator=generator), torch.rand((), generator=generator)
        pick = int(torch.randint(frames, (), generator=generator))
    c2w, fovy = draw_cameras(context, u, 4 if branch == "multiview" else 1)
    times = frame_times(frames, first)
    if branch == "video":
        times = times - times[0] if settings.clean_first else times
        return Shot(c2w.expand(frames, 4, 4), fovy.expand(frames), times, size)
    still = torch.rand((), generator=generator) < settings.still.at(context.progress)
    time = times[pick] if context.settings.moving and not still else torch.tensor(0.0)
    return Shot(c2w, fovy, time.expand(len(c2w)), size)


def draw_backdrop(context: StepContext) -> Float[Tensor, 3] | None:
    """One plain colour for the whole shot with chance `random`, else None: the background network."""
    background = context.recipe.background
    u = torch.rand(4, generator=context.generator("background"))
    if u[0] >= background.random:
        return None
    colour = u[1:2].expand(3) if background.grey else u[1:]
    return background.low + (background.high - background.low) * colour


def maybe_update_occupancy(scene: Scene, context: StepContext) -> None:
    """The occupancy update, if one is due at this step: before `step`, and only once however often that is tried."""
    if context.step % context.recipe.march.update_every == 0:
        stage = context.settings
        time = torch.rand((), generator=context.generator("refresh")) if stage.moving else torch.tensor(0.0)
        update_occupancy(scene, context.step, stage.blob.at(context.progress), time, context.generator("cells"), stage.dilation)


def step(scene: Scene, guidances: Mapping[str, Guidance], context: StepContext, chunks: Chunks = DIRECT) -> Outcome:
    """One step of Algorithm 1: leaves gradients in the scene (and in the LoRA on image steps); does not update.

    The gradient at the pictures does not depend on the graph behind them. So if the shot is more than one tile of rays, it is rendered
    without a graph, handed to the guidance, and rendered again tile by tile; each tile's share of the objective is back-propagated at
    once. It is the same gradient in the memory of one tile.

    Of several processes each renders its share of the rays, and all hand the whole shot to the guidance; what one leaves is the
    gradient of its share, `size` times over: the mean over the processes is the step's.
    """
    stage, share = context.settings, chunks.share
    branch = draw_branch(stage, context.generator("branch"), context.progress)
    shot = draw_shot(branch, context)
    if chunks.park:
        make_room(guidances, branch, scene.blob_std.device)
    scene.field.dynamic.requires_grad_(stage.moving and (branch == "video" or stage.dynamic_always))
    options = RenderOptions(stage.blob.at(context.progress), draw_backdrop(context), stage.alpha_thre)
    rays = camera_rays(scene, shot, context.generator("jitter"))
    pixels, own = len(rays.time), rays.take(share.rows)
    tile = chunks.rays or pixels
    tiles = own.split(tile)
    rendered = [render_rays(scene, part, options, train=len(tiles) == 1) for part in tiles]
    rgb = share.gather(torch.cat([part.rgb.detach() for part in rendered]), pixels).view(len(shot), *shot.size, 3)
    encoded = chunks.frames and chunks.frames * share.size
    output = guidances[branch](rgb, shot, context.branch(branch), context.progress, context.generator("noise"), encoded)
    outcome = Outcome(branch, {branch: output.loss, **output.logs})
    grads = (share.size * output.grad.view(-1, 3)[share.rows]).split(tile)
    for k, (part, grad) in enumerate(zip(tiles, grads, strict=True)):
        frames = rendered[k] if len(tiles) == 1 else render_rays(scene, part, options, train=True)
        total = objective(frames, grad, context, pixels / share.size, outcome)
        if total.requires_grad:  # nothing to learn from where no ray met matter
            total.backward()
    smooth(scene, context, outcome)
    for parameter in scene.background_net.parameters():
        if parameter.requires_grad and parameter.grad is None:  # a plain backdrop: AdamW goes on with its momentum, as in the released code
            parameter.grad = torch.zeros_like(parameter)
    return outcome


def objective(frames: Frames, grad: Float[Tensor, "N 3"], context: StepContext, pixels: float, outcome: Outcome) -> Float[Tensor, ""]:
    """The share of N rays, of all `pixels` of a shot, in what is minimised: <rgb, d loss / d rgb> and the means of the
    regularisers, whose values are added to the outcome's."""
    total = (frames.rgb * grad).sum()
    stage = context.settings
    for name, term, weight in (("sparsity", sparsity, stage.sparsity), ("opaque", opaqueness, stage.opaque)):
        if (factor := weight.at(context.progress)) > 0:
            value = term(frames.opacity).sum() / pixels
            total = total + factor * value
            outcome.losses[name] = outcome.losses.get(name, 0.0) + value.item()
    return total


def smooth(scene: Scene, context: StepContext, outcome: Outcome) -> None:
    """Back-propagate the smoothness of a deformation, and add its value to the outcome's; it needs no picture."""
    motion, factor = scene.field.dynamic, context.settings.smooth.at(context.progress)
    if factor > 0 and isinstance(motion, Deformation) and motion.grid.table.requires_grad:
        x = torch.rand(POINTS, 4, generator=context.generator("smooth")).to(scene.blob_std)
        value = smoothness(motion.displacement, x * (1 - APART), APART)
        (factor * value).backward()
        outcome.losses["smooth"] = value.item()


def make_room(guidances: Mapping[str, Guidance], branch: str, device: torch.device) -> None:
    """Move every branch's networks to the CPU, and then this branch's to the device."""
    for name, guidance in guidances.items():
        if name != branch:
            guidance.to("cpu")
    guidances[branch].to(device)

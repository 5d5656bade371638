"""Judges that know the toy world, to measure what the learned ones lose.

"exact": the clean estimate is the world's own picture at that camera and moment, whatever the noise. Of a clip also "posterior": the mean
over all clips that fit the caption, weighted by how well each explains the noised one, E[z | z_t, caption]: what a model trained perfectly
on clips would say. And "damped": the same for a model that was shown clips as far along as MOVED, with the clip that moves as its target:
each explains what lies between it and the thing before it moves. Colour and plain background count as known there: any noise leaves them
in sight. Everything else (noise levels, form, pull through the autoencoder, random draws) is the learned guidance's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.models import Diffusion, Vae, encode
from fourdfy_cli.diffusion.prior import UnetPrior
from fourdfy_cli.diffusion.text import sector, view_word
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.guidance.multiview import MultiviewGuidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.guidance.video import VideoGuidance
from fourdfy_cli.nano.data import DISTANCE, ELEVATION
from fourdfy_cli.nano.prompts import Subject
from fourdfy_cli.nano.show import truth
from fourdfy_cli.scene.cameras import Shot, orbit_camera

Rule = tuple[float, float] | str | None  # of view words, as in diffusion/text.py
Estimate = Callable[[Tensor, int], Tensor]  # z_t [B ...] and its noise level to clean latents
MOVED = (0.0, 0.25, 0.5, 0.75, 1.0)
CANDIDATES = 64  # clips that the posterior mean is taken over; half of them near the camera that is asked about
NEAR = (3.0, 3.0, 0.05, 0.02)  # how near, standard deviations: azimuth, elevation (degrees), distance, time of the first frame


@dataclass(frozen=True, kw_only=True)
class Told(UnetPrior):
    """A diffusion model that gives under any text the output that stands for `estimate`."""

    estimate: Estimate

    def predict(self, z_t: Tensor, t: int, cond: Tensor, uncond: Tensor, camera: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = self.estimate(z_t, t)
        signal, noise = self.schedule.scales(t, z_t)
        output = self.schedule.target(z, (z_t - signal * z) / noise, t)
        return output, output


def told(diffusion: Diffusion, estimate: Estimate) -> Told:
    """A model's schedule and autoencoder with a given estimate."""
    return Told(**{f.name: getattr(diffusion, f.name) for f in fields(Diffusion)}, estimate=estimate)


@dataclass(frozen=True)
class ExactGuidance:
    """A guidance that is told the truth about `subject`; of a variational one, the LoRA network still learns."""

    guidance: MultiviewGuidance | VariationalGuidance | VideoGuidance
    subject: Subject

    def __call__(
        self, rgb: Tensor, shot: Shot, branch: Branch, progress: float, generator: torch.Generator, chunk: int | None = None
    ) -> GuidanceOutput:
        diffusion = self.guidance.diffusion
        z = latents(diffusion.vae, self.subject, replace(shot, size=branch.model_size), backdrop(rgb))
        clean = z.transpose(0, 1)[None] if isinstance(self.guidance, VideoGuidance) else z
        return replace(self.guidance, diffusion=told(diffusion, lambda z_t, t: clean))(rgb, shot, branch, progress, generator, chunk)

    def to(self, device: torch.device | str) -> None:
        self.guidance.to(device)


@dataclass(frozen=True)
class PosteriorGuidance:
    """A video guidance that is told the posterior mean, over clips as far along as `moved`."""

    guidance: VideoGuidance
    subject: Subject
    moved: tuple[float, ...] = (1.0,)

    def __call__(
        self, rgb: Tensor, shot: Shot, branch: Branch, progress: float, generator: torch.Generator, chunk: int | None = None
    ) -> GuidanceOutput:
        diffusion, rng = self.guidance.diffusion, np.random.default_rng(int(1e6 * progress))
        clips = candidates(diffusion, self.subject, replace(shot, size=branch.model_size), branch.view_words, rng, backdrop(rgb))
        mean = told(diffusion, lambda z_t, t: clips.mean(diffusion, z_t, t, self.moved))
        return replace(self.guidance, diffusion=mean)(rgb, shot, branch, progress, generator, chunk)

    def to(self, device: torch.device | str) -> None:
        self.guidance.to(device)


def backdrop(rgb: Tensor) -> np.ndarray:
    """The plain colour [3] behind pictures [V H W 3]: the median of their edges."""
    edges = torch.cat([rgb[:, 0], rgb[:, -1], rgb[:, :, 0], rgb[:, :, -1]], 1)
    return edges.flatten(0, 1).median(0).values.detach().cpu().numpy()


@torch.no_grad()
def latents(vae: Vae, subject: Subject, shot: Shot, ground: np.ndarray | float) -> Tensor:
    """Latents [V C h w] of the world's own pictures of a square shot over a plain background."""
    rgb = torch.from_numpy(truth(subject, shot).over(ground)).permute(0, 3, 1, 2)
    return torch.cat([encode(vae, part)[0] for part in rgb.split(64)])


@dataclass(frozen=True)
class Candidates:
    """N clips [N C F h w], what each shows before it moves [N C 1 h w], and the logarithms [N] of how much likelier each is in the world
    than it was to be drawn."""

    clips: Tensor
    frozen: Tensor
    weight: Tensor

    def mean(self, diffusion: Diffusion, z_t: Tensor, t: int, moved: tuple[float, ...] = (1.0,)) -> Tensor:
        """The posterior mean [1 C F h w] for a noised clip of that shape, if clips are shown as far along as `moved`, equally often."""
        signal, noise = diffusion.schedule.scales(t, z_t)
        shown = [self.frozen + share * (self.clips - self.frozen) for share in moved]
        fit = torch.stack([-(z_t - signal * z).square().flatten(1).sum(1) / (2 * noise.square()).item() for z in shown]).logsumexp(0)
        share = (self.weight + fit).softmax(0)
        return torch.tensordot(share, self.clips, 1)[None]


def candidates(
    diffusion: Diffusion, subject: Subject, shot: Shot, rule: Rule, rng: np.random.Generator, ground: np.ndarray | float
) -> Candidates:
    """Clips from cameras that have the same view words as a clip's shot: half of them anywhere, half of them near it."""
    frames = len(shot)
    here = np.array([math.degrees(shot.azimuth()[0]), math.degrees(shot.elevation()[0]), float(shot.c2w[0, :3, 3].norm()), shot.time[0]])
    low, high = np.array([-180.0, ELEVATION[0], DISTANCE[0], 0.0]), np.array([180.0, ELEVATION[1], DISTANCE[1], 1 / frames])
    circle = np.array([same_words(a, here[0], rule) for a in range(360)])
    wide = [x for x in rng.uniform(low, high, (32 * CANDIDATES, 4)) if same_words(x[0], here[0], rule)][: CANDIDATES // 2]
    drawn = np.concatenate([np.array(wide), here + rng.normal(0, NEAR, (CANDIDATES - len(wide), 4))])
    inside = ((drawn[:, 1:] >= low[1:]) & (drawn[:, 1:] <= high[1:])).all(1) & np.array([same_words(a, here[0], rule) for a in drawn[:, 0]])
    drawn, volume = drawn[inside], circle.mean() * np.prod(high - low)
    gap = (drawn - here) / NEAR
    bell = np.exp(-0.5 * (gap**2).sum(1)) / np.prod(np.array(NEAR) * math.sqrt(2 * math.pi))
    weight = -np.log(1 + volume * bell)
    camera = torch.from_numpy(drawn).float().repeat_interleave(frames, 0)
    c2w = orbit_camera(torch.deg2rad(camera[:, 0]), torch.deg2rad(camera[:, 1]), camera[:, 2])
    time = camera[:, 3] + (torch.arange(frames) / frames).repeat(len(drawn))
    every = Shot(c2w, shot.fovy[:1].expand(len(time)), time, shot.size)
    rest = Shot(c2w[::frames], every.fovy[::frames], 0 * time[::frames], shot.size)
    clips, frozen = (latents(diffusion.vae, subject, s, ground).unflatten(0, (len(drawn), -1)).transpose(1, 2) for s in (every, rest))
    return Candidates(clips, frozen, torch.from_numpy(weight).float())


def same_words(a: float, b: float, rule: Rule) -> bool:
    """Whether cameras at two azimuths in degrees have the same view words."""
    if rule is None:
        return True
    return sector(a) == sector(b) if isinstance(rule, str) else view_word(a, *rule) == view_word(b, *rule)

"""What a video model makes of clips that stand still, move half as far as they should, or are smudged: the figures to drive its training
by. The multi-view model, which is told the moment, is asked the same frame by frame, with three more sides of each.

A clean estimate's deviation from its mean over frames is its motion. Its cosine to the true clip's says whether the model means the right
motion, its length over the true one's how much of it. Its part that is even in time (the same backwards) and its odd part are also measured
apart, each by the share of the true clip's that it holds: who cannot tell the frames' order has none of the odd one. Beside these the
share of eyes and noses that the estimate's pictures have (spots.py; what the autoencoder leaves is the most there can be). Inputs are
latents of the thing before it moves, halfway to the true clip's, and of the clip's `smudged` pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdfy_cli.diffusion import text
from fourdfy_cli.diffusion.models import Diffusion, decode, encode
from fourdfy_cli.diffusion.multiview import VIEWS
from fourdfy_cli.diffusion.noise import guided
from fourdfy_cli.nano import exact
from fourdfy_cli.nano.data import DISTANCE, ELEVATION, FOVY, GREY
from fourdfy_cli.nano.latents import smudged
from fourdfy_cli.nano.networks import FRAMES, IMAGE_SIZE
from fourdfy_cli.nano.objects import COLOURS, WITH_FRONT
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.nano.show import truth
from fourdfy_cli.nano.spots import mean, spots
from fourdfy_cli.nano.world import Picture
from fourdfy_cli.scene.cameras import Shot, orbit_camera, timed_camera

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)  # of the T noise levels
SHOWN = (0.2, 0.6, 0.95)  # of these, what the table has columns for
INPUTS = ("still", "half", "smudged")


@dataclass(frozen=True)
class Case:
    """A clip [1 C F h w], the same before it moves and smudged, the clip's pictures, what they show, from where, over which grey, and its
    caption."""

    clip: Tensor
    frozen: Tensor
    smudged: Tensor
    picture: Picture
    subject: Subject
    shot: Shot
    grey: float
    caption: str


def cases(model: Diffusion, motion: str, count: int, rule: exact.Rule, seed: int, sides: int = 1) -> list[Case]:
    """`count` clips of things with a front, in turn, from random nano cameras, at times (k + 1/2) / F, so that frame F - 1 - k is frame k
    backwards in time; captions with view words by `rule`. Of each thing `sides` clips, 360 / sides degrees apart."""
    rng, made = np.random.default_rng((seed, MOTIONS.index(motion))), []
    for k in range(count):
        subject = Subject(WITH_FRONT[k % len(WITH_FRONT)], list(COLOURS)[rng.integers(len(COLOURS))], motion)
        azimuth, elevation, distance, grey = (rng.uniform(*r) for r in ((0, 360), ELEVATION, DISTANCE, GREY))
        full = torch.ones(FRAMES)
        for side in range(sides):
            around = azimuth + 360 / sides * side
            c2w = orbit_camera(math.radians(around) * full, math.radians(elevation) * full, distance * full)
            shot = Shot(c2w, math.radians(FOVY) * full, (torch.arange(FRAMES) + 0.5) / FRAMES, (IMAGE_SIZE, IMAGE_SIZE))
            rest = Shot(c2w[:1], shot.fovy[:1], torch.zeros(1), shot.size)
            frozen = exact.latents(model.vae, subject, rest, grey).transpose(0, 1)[None]
            picture = truth(subject, shot)
            rgb = torch.from_numpy(picture.over(grey)).permute(0, 3, 1, 2)
            clip, dull = (encode(model.vae, x)[0].transpose(0, 1)[None] for x in (rgb, smudged(rgb)))
            words = text.view_word(around, *rule) if isinstance(rule, tuple) else text.sector(around)
            caption = subject.text() if rule is None else text.worded(subject.text(), words)
            made.append(Case(clip, frozen.expand_as(clip), dull, picture, subject, shot, grey, caption))
    return made


def motion_of(z: Tensor) -> Tensor:
    """The deviation of clips [N C F h w] from their means over frames, as vectors [N ...]."""
    return (z - z.mean(2, keepdim=True)).flatten(1)


def alike(estimate: Tensor, clip: Tensor) -> tuple[float, float]:
    """Cosine and length ratio of the motion of estimates [N C F h w] against the true clips', means over N; a still estimate has 0, 0."""
    ours, theirs = motion_of(estimate), motion_of(clip)
    length, true = ours.norm(dim=1), theirs.norm(dim=1)
    cosine = (ours * theirs).sum(1) / (length * true).clamp_min(1e-12)
    return cosine.mean().item(), (length / true).mean().item()


def held(estimate: Tensor, clip: Tensor, sign: int) -> float:
    """How much of the even (sign 1) or odd (-1) part of true clips' motion [N C F h w] is in the estimates', mean over N: the coefficient
    of its projection."""
    ours, theirs = (motion_of(z + sign * z.flip(2)) for z in (estimate, clip))
    return ((ours * theirs).sum(1) / theirs.square().sum(1).clamp_min(1e-12)).mean().item()


@torch.no_grad()
def learned(model: Diffusion, among: list[Case], states: dict[str, Tensor], scale: float) -> exact.Estimate:
    """What the network says of all cases at once, guided by `scale`."""
    cond, uncond = torch.stack([states[c.caption] for c in among]), states[""][None]

    def estimate(z_t: Tensor, t: int) -> Tensor:
        if scale == 1:
            return model.schedule.x0(model.output(z_t, t, cond), z_t, t)
        return model.schedule.x0(guided(*model.predict(z_t, t, cond, uncond), scale), z_t, t)

    return estimate


def learned_views(model: Diffusion, among: list[Case], states: dict[str, Tensor], scale: float) -> exact.Estimate:
    """The same of a multi-view model, for cases of which each VIEWS neighbours are a thing's sides."""
    cond, uncond = torch.stack([states[c.caption] for c in among]), states[""][None]
    texts = _by_moment(cond[:, None].expand(-1, FRAMES, -1, -1))
    camera = _by_moment(torch.stack([timed_camera(c.shot.c2w, c.shot.time) for c in among]))

    def estimate(z_t: Tensor, t: int) -> Tensor:
        frames = z_t.transpose(1, 2)
        z = _by_moment(frames)
        x0 = model.schedule.x0(guided(*model.predict(z, t, texts, uncond, camera), scale), z, t)
        return x0.unflatten(0, (-1, FRAMES, VIEWS)).transpose(1, 2).reshape(frames.shape).transpose(1, 2)

    return estimate


def _by_moment(x: Tensor) -> Tensor:
    """[N F ...] of N / VIEWS things as [N / VIEWS F VIEWS ...], flat."""
    return x.unflatten(0, (-1, VIEWS)).transpose(1, 2).flatten(0, 2)


def posteriors(model: Diffusion, among: list[Case], rule: exact.Rule, seed: int) -> dict[str, exact.Estimate]:
    """The posterior means of each case over what fits its caption (exact.py)."""
    rng = np.random.default_rng(seed)
    known = [exact.candidates(model, c.subject, c.shot, rule, rng, c.grey) for c in among]

    def over(moved: tuple[float, ...]) -> exact.Estimate:
        return lambda z_t, t: torch.cat([k.mean(model, z_t[i : i + 1], t, moved) for i, k in enumerate(known)])

    return {"posterior": over((1.0,)), "damped": over(exact.MOVED)}


def seen(model: Diffusion, z: Tensor, among: list[Case]) -> float | None:
    """The share of eyes and noses in the pictures of estimates [N C F h w], the mean over all that show any; None if none does."""
    shares = []
    for clip, case in zip(z.transpose(1, 2), among, strict=True):
        rgb = decode(model.vae, clip).permute(0, 2, 3, 1).clamp(0, 1).numpy()
        shares.append(spots(rgb, case.picture.over(case.grey), case.picture.rgba[..., 3] > 0.5))
    return mean(np.concatenate(shares))


@torch.no_grad()
def rows(model: Diffusion, among: list[Case], estimate: exact.Estimate, seed: int) -> list[dict[str, Any]]:
    """A row for each of INPUTS: "cosine length" at each of SHOWN, the even and odd parts held and the spots seen (means over LEVELS), and
    under "levels" all of it at each of LEVELS."""
    clip, frozen, dull = (torch.cat([getattr(c, name) for c in among]) for name in ("clip", "frozen", "smudged"))
    made = []
    for name, shown in zip(INPUTS, (frozen, frozen + 0.5 * (clip - frozen), dull), strict=True):
        row: dict[str, Any] = {"input": name, "levels": []}
        for level in LEVELS:
            t = int(level * len(model.schedule))
            eps = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
            z = estimate(model.schedule.add(shown, eps, t), t)
            cosine, length = alike(z, clip)
            parts = {"even": held(z, clip, 1), "odd": held(z, clip, -1), "spots": seen(model, z, among)}
            row["levels"].append({"level": level, "cosine": cosine, "length": length} | parts)
            if level in SHOWN:
                row[f"t {level:g}"] = f"{cosine:.2f} {length:.2f}".replace("0.", ".")
        for part in ("even", "odd", "spots"):
            over = mean(np.array([e[part] for e in row["levels"]], float))
            row[part] = None if over is None else round(over, 2)
        made.append(row)
    return made


def probe(
    model: Diffusion, rule: exact.Rule, count: int = 12, scale: float = 1.0, seed: int = 0, ceiling: bool = False, report: Callable = print
) -> list[dict[str, Any]]:
    """Rows of cosines and lengths per motion and input, of the model and, with `ceiling`, of the posterior means in its place (of a video
    model alone)."""
    table, views = [], model.spec.role == "multiview"
    for motion in MOTIONS:
        among = cases(model, motion, count, rule, seed, VIEWS if views else 1)
        captions = sorted({c.caption for c in among} | {""})
        states = dict(zip(captions, text.encode(model.spec, captions, "cpu"), strict=True))
        judges = {"learned": (learned_views if views else learned)(model, among, states, scale)}
        if ceiling:
            judges |= posteriors(model, among, rule, seed)
        for judge, estimate in judges.items():
            table += [{"judge": judge, "motion": motion} | row for row in rows(model, among, estimate, seed)]
        report(f"probed {motion}")
    return table

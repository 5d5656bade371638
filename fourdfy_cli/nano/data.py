"""Training pictures and captions drawn from the toy world; held-out (object, colour) pairs never appear.

Views and clips use the same cameras and the same plain grey backgrounds that distillation uses (presets.py, `nano`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fourdfy_cli.diffusion.text import sector, view_word, worded
from fourdfy_cli.nano import world
from fourdfy_cli.nano.networks import FRAMES, IMAGE_SIZE
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import HELD_OUT, MOTIONS, Subject
from fourdfy_cli.scene.cameras import orbit_camera

FOVY, DISTANCE, ELEVATION, GREY = 40.0, (2.6, 2.8), (0.0, 30.0), (0.45, 0.75)
Kind = Literal["still", "posed", "clip", "frozen", "other"]
PAIRS = [(o, c) for o in OBJECTS for c in COLOURS if (o, c) not in HELD_OUT]


@dataclass
class Batch:
    """Groups of V pictures of one thing: rgb [N V 3 H W] in [-1,1], c2w [N V 4 4], azimuth [N V] in degrees, time [N V] in [0,1)."""

    rgb: Tensor
    c2w: Tensor
    azimuth: Tensor
    time: Tensor
    subjects: list[Subject]


def uniform(low: float, high: float, rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float32)


def draw(
    rng: np.random.Generator,
    count: int,
    views: int,
    kind: Kind,
    pairs: list[tuple[str, str]] = PAIRS,
    size: int = IMAGE_SIZE,
) -> Batch:
    """Draw `count` things in `views` pictures each.

    "posed": cameras 360/views degrees apart at one random time of a random motion; "still": the same draw before it moves, at t = 0.
    "clip": one camera, consecutive times t0 + k/views with t0 in [0, 1/views), and a random motion; "frozen": the same
    draw before it moves, at t = 0, one picture each; "other": the same draw in another motion.
    """
    turning = kind in ("still", "posed")
    chosen = [pairs[i] for i in rng.integers(0, len(pairs), count)]
    motion = rng.integers(0, len(MOTIONS), count)
    colour = np.array([COLOURS[c] for _, c in chosen]) + rng.normal(0, 0.02, (count, 3))
    start, elevation, distance = uniform(0, 360, rng, count, 1), uniform(*ELEVATION, rng, count), uniform(*DISTANCE, rng, count)
    steps = np.arange(views, dtype=np.float32)[None]
    azimuth = start + (360 / views if turning else 0) * steps
    first = uniform(0, 1, rng, count, 1)
    time = first + 0 * steps if turning else (first + steps) / views
    if kind == "still":
        time, motion = 0 * time, np.full(count, -1)
    c2w = orbit_camera(
        *(
            torch.from_numpy(np.broadcast_to(x, (count, views)).flatten())
            for x in (np.radians(azimuth), np.radians(elevation)[:, None], distance[:, None])
        )
    )
    things = world.Things(
        np.repeat([list(OBJECTS).index(o) for o, _ in chosen], views),
        np.repeat(motion, views),
        np.repeat(np.clip(colour, 0.02, 0.98), views, 0).astype(np.float32),
    )
    if kind == "frozen":
        time, motion, c2w, azimuth, views = 0 * time[:, :1], np.full(count, -1), c2w[::views], azimuth[:, :1], 1
        things = world.Things(things.object[:: len(things.object) // count], motion, things.colour[:: len(things.colour) // count])
    if kind == "other":  # which other one is decided by the azimuth, so that all kinds draw the same
        motion = (motion + 1 + start[:, 0].astype(int) % (len(MOTIONS) - 1)) % len(MOTIONS)
        things = world.Things(things.object, np.repeat(motion, views), things.colour)
    picture = world.render(things, c2w.numpy(), np.full(count * views, math.radians(FOVY)), time.flatten(), size)
    grey = np.repeat(uniform(*GREY, rng, count), views)[:, None, None, None]
    rgb = torch.from_numpy(picture.over(grey)).permute(0, 3, 1, 2) * 2 - 1
    subjects = [Subject(o, c, MOTIONS[m] if m >= 0 else None) for (o, c), m in zip(chosen, motion, strict=True)]
    angles = torch.from_numpy(azimuth + 0 * steps[:, :views])
    return Batch(rgb.unflatten(0, (count, views)), c2w.unflatten(0, (count, views)), angles, torch.from_numpy(time), subjects)


def clips(rng: np.random.Generator, count: int, frames: int = FRAMES) -> Batch:
    """`count` clips of one period each, from one fixed camera a clip."""
    return draw(rng, count, frames, "clip")


def view_words(azimuth: float) -> str:
    """View words as the judge knows them (train_clip.py), by azimuth in degrees: a quarter turn wide in front and behind."""
    return view_word(azimuth, 45.0, 45.0)


def caption(
    subject: Subject, rng: np.random.Generator, azimuth: float | None = None, motion: float = 1.0, empty: float = 0.1, view: float = 1.0
) -> str:
    """A training caption: empty with chance `empty`, colour named 9 times in 10, the motion (a random one for a thing
    that stands still: a motion word alone does not change the canonical pose) with chance `motion`, the camera's sector
    with chance `view` where an azimuth in degrees is given."""
    if rng.random() < empty:
        return ""
    word = subject.motion or MOTIONS[rng.integers(len(MOTIONS))]
    text = Subject(subject.object, subject.colour if rng.random() < 0.9 else None, word if rng.random() < motion else None).text()
    return worded(text, sector(azimuth)) if azimuth is not None and rng.random() < view else text

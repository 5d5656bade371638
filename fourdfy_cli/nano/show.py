"""The toy world's own pictures of a prompt: the ground truth that runs are measured against."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fourdfy_cli.nano import world
from fourdfy_cli.nano.data import DISTANCE, ELEVATION, FOVY, GREY
from fourdfy_cli.nano.prompts import DEFAULT_COLOUR, Subject, parse
from fourdfy_cli.output.render import write_png, write_video
from fourdfy_cli.scene.cameras import Shot, turntable


def truth(subject: Subject, shot: Shot, samples: int = 2) -> world.Picture:
    """The exact picture of every view of a (square) shot."""
    things = world.Things.one(subject.object, subject.colour or DEFAULT_COLOUR, subject.motion, len(shot))
    return world.render(things, shot.c2w.numpy(), shot.fovy.numpy(), shot.time.numpy(), shot.size[0], samples)


def middle_turntable(frames: int, size: int, turns: float = 1.0) -> Shot:
    """An orbit at the middle of the nano cameras, `turns` times around in one period."""
    elevation, distance = (sum(pair) / 2 for pair in (ELEVATION, DISTANCE))
    return turntable(frames, math.radians(elevation), distance, math.radians(FOVY), size, turns)


def _pictures(subject: Subject, shot: Shot) -> np.ndarray:
    return (truth(subject, shot, samples=3).over(sum(GREY) / 2) * 255).round().astype(np.uint8)


def sheet(prompt: str, out: Path, size: int = 96) -> Path:
    """Write eight sides (columns, from the front, counter-clockwise) at four times (rows, from 0)."""
    subject, rows = parse(prompt), []
    for row in range(4):
        shot = middle_turntable(8, size)
        rows.append(np.concatenate(list(_pictures(subject, Shot(shot.c2w, shot.fovy, 0 * shot.time + row / 4, shot.size))), 1))
    return write_png(out, np.concatenate(rows, 0))


def video(prompt: str, out: Path, size: int = 256, periods: int = 4, fps: int = 16) -> Path:
    """Write one turn around the thing during `periods` periods of its motion."""
    shot = middle_turntable(16 * periods, size)
    moving = Shot(shot.c2w, shot.fovy, (shot.time * periods) % 1, shot.size)
    return write_video(out, iter(_pictures(parse(prompt), moving)), fps)

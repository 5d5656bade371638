"""The toy world as solids: what is inside a thing, and points on its surface; see `world.py` for the notation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fourdfy_cli.nano.objects import BALL, BOX, CONE, CYLINDER, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.nano.world import pose, rotation

Rng = np.random.Generator
AREA = {BALL: 4 * math.pi, BOX: 24.0, CYLINDER: 6 * math.pi, CONE: (1 + math.sqrt(5)) * math.pi}  # of the unit primitives
TRIES = 4  # candidates for each point wanted
NUDGE = 1e-6  # world units: parts may touch


class Placed(NamedTuple):
    """A primitive in the world: x = A u + c."""

    kind: int
    A: np.ndarray
    c: np.ndarray


def parts(subject: Subject, time: float) -> list[Placed]:
    """The parts of a thing at a time in [0,1]; a subject without a motion stands still."""
    motion = MOTIONS.index(subject.motion) if subject.motion else -1
    G, T, limb = (value[0].astype(np.float64) for value in pose(np.array([motion]), np.array([time], np.float32)))
    placed = []
    for part in OBJECTS[subject.object]:
        turn = np.linalg.multi_dot([rotation(axis, np.float64(angle)) for axis, angle in zip("zyx", part.turn[::-1], strict=True)])
        swing = rotation("y", part.leg * limb) @ rotation("x", part.wing * limb)
        centre = swing @ (np.array(part.centre) - part.pivot) + part.pivot
        placed.append(Placed(part.kind, G @ swing @ turn @ np.diag(part.size), G @ centre + T))
    return placed


def holds(part: Placed, x: np.ndarray) -> np.ndarray:
    """Whether points [N 3] of the world lie inside a part."""
    u = (x - part.c) @ np.linalg.inv(part.A).T
    z, radius = u[:, 2], np.hypot(u[:, 0], u[:, 1])
    if part.kind == BALL:
        return np.asarray((u**2).sum(1) < 1)
    if part.kind == BOX:
        return np.asarray((np.abs(u) < 1).all(1))
    return np.asarray((np.abs(z) < 1) & (radius < ((1 - z) / 2 if part.kind == CONE else 1)))


def inside(subject: Subject, time: float, x: np.ndarray) -> np.ndarray:
    """Whether points [N 3] of the world lie inside a thing at a time in [0,1]."""
    return np.asarray(np.stack([holds(part, x) for part in parts(subject, time)]).any(0))


def surface(subject: Subject, time: float, count: int, rng: Rng) -> np.ndarray:
    """About `count` points [N 3] of a thing's surface, evenly by area: those of its parts just outside which no other part is."""
    points, weights = [], []
    placed = parts(subject, time)
    for own in placed:
        x, normal, area = _on_part(own, TRIES * count // len(placed) + 1, rng)
        hidden = [holds(other, x + NUDGE * normal) for other in placed if other is not own]
        points.append(x)
        weights.append(area * ~np.any(hidden, 0) if hidden else area)
    every, weight = np.concatenate(points), np.concatenate(weights)
    return every[rng.choice(len(every), count, p=weight / weight.sum())]


def _on_part(part: Placed, count: int, rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [N 3] of a part's surface, their unit normals [N 3], and the area [N] that each stands for."""
    u, normal = _on_primitive(part.kind, count, rng)
    turned = normal @ np.linalg.inv(part.A)
    length = np.linalg.norm(turned, axis=1)
    return u @ part.A.T + part.c, turned / length[:, None], np.abs(np.linalg.det(part.A)) * length * AREA[part.kind] / count


def _on_primitive(kind: int, count: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Points [N 3] of a unit primitive's surface, evenly by area, and their unit normals."""
    if kind == BALL:
        u = rng.normal(size=(count, 3))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        return u, u
    if kind == BOX:
        u, axis, side = rng.uniform(-1, 1, (count, 3)), rng.integers(0, 3, count), rng.choice([-1.0, 1.0], count)
        normal = np.eye(3)[axis] * side[:, None]
        return np.where(normal != 0, side[:, None], u), normal
    return _round(kind, count, rng)


def _round(kind: int, count: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """The same of a cylinder or a cone along z: mantle and caps."""
    angle, share = rng.uniform(0, 2 * math.pi, count), rng.uniform(0, 1, count)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], 1)
    on_cap = rng.uniform(0, 1, count) < (1 / (1 + math.sqrt(5)) if kind == CONE else 1 / 3)
    side = -np.ones(count) if kind == CONE else rng.choice([-1.0, 1.0], count)
    up = np.array([0.0, 0.0, 1.0])
    cap = ring * np.sqrt(share)[:, None] + side[:, None] * up
    if kind == CYLINDER:
        mantle, out = ring + (2 * share - 1)[:, None] * up, ring
    else:  # a ring's length goes with its radius
        radius = np.sqrt(share)[:, None]
        mantle, out = ring * radius + (1 - 2 * radius) * up, (2 * ring + up) / math.sqrt(5)
    return np.where(on_cap[:, None], cap, mantle), np.where(on_cap[:, None], side[:, None] * up, out)

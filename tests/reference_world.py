"""Slow, obvious twin of the toy world's ray caster: walk along each ray and ask every part whether the point is inside."""

import numpy as np

from fourdfy_cli.nano import world
from fourdfy_cli.nano.objects import BALL, BOX, CONE, OBJECTS


def euler(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array(
        {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis]
    )


def inside(name: str, motion: int, time: float, x: np.ndarray) -> np.ndarray:
    """Whether world points [N 3] lie in the thing."""
    G, T, limb = world.pose(np.array([motion]), np.array([time]))
    x = (x - T[0]) @ np.linalg.inv(G[0].astype(np.float64)).T
    found = np.zeros(len(x), bool)
    for part in OBJECTS[name]:
        swing = euler("y", part.leg * limb[0]) @ euler("x", part.wing * limb[0])
        pivot = np.array(part.pivot)
        place = swing @ euler("z", part.turn[2]) @ euler("y", part.turn[1]) @ euler("x", part.turn[0])
        u = (x - (swing @ (np.array(part.centre) - pivot) + pivot)) @ place / np.array(part.size)
        radius = np.hypot(u[:, 0], u[:, 1])
        if part.kind == BALL:
            found |= (u**2).sum(1) <= 1
        elif part.kind == BOX:
            found |= (np.abs(u) <= 1).all(1)
        elif part.kind == CONE:
            found |= (np.abs(u[:, 2]) <= 1) & (radius <= (1 - u[:, 2]) / 2)
        else:
            found |= (np.abs(u[:, 2]) <= 1) & (radius <= 1)
    return found


def first_hit(name: str, motion: int, time: float, origin: np.ndarray, direction: np.ndarray, step: float) -> np.ndarray:
    """Distance [N] to the first point inside along each ray, inf if there is none."""
    t = np.arange(1.2, 4.4, step)
    points = origin[:, None] + t[None, :, None] * direction[:, None]
    hit = inside(name, motion, time, points.reshape(-1, 3)).reshape(len(origin), -1)
    return np.where(hit.any(1), t[hit.argmax(1)], np.inf)

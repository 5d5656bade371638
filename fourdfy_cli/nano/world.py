"""The toy world: ten things, eight colours, five motions, and an exact picture of each from any camera at any time.

Notation: a part is a unit primitive (ball, box [-1,1]^3, cone or cylinder along z) placed by an affine map
`x = A u + c`; a whole object is moved by `x' = G x + T`. Fronts look along +x, z is up, time is in [0,1] and every
motion is periodic with its canonical pose at t = 0. Light is fixed in the world and does not depend on the view, so a
radiance field without shading can represent it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from fourdfy_cli.kernels.jit import cached_njit
from fourdfy_cli.kernels.threads import spread
from fourdfy_cli.nano.objects import BALL, BOX, COLOURS, CONE, CYLINDER, DARK, LIGHT, MAIN, OBJECTS, Part
from fourdfy_cli.nano.prompts import MOTIONS

LIGHT_DIRECTION = np.array([0.45, 0.35, 0.82], np.float32) / np.linalg.norm([0.45, 0.35, 0.82]).astype(np.float32)


@dataclass(frozen=True)
class Things:
    """A batch of B things: indices into OBJECTS and MOTIONS (-1: still), and the main colour, rgb in [0,1], [B 3]."""

    object: np.ndarray
    motion: np.ndarray
    colour: np.ndarray

    @staticmethod
    def one(object_: str, colour: str, motion: str | None, count: int) -> Things:
        """The same thing `count` times, by name."""
        return Things(
            np.full(count, list(OBJECTS).index(object_)),
            np.full(count, MOTIONS.index(motion) if motion else -1),
            np.tile(np.array(COLOURS[colour], np.float32), (count, 1)),
        )


@dataclass(frozen=True)
class Picture:
    """What the ray caster sees: premultiplied rgba [B H W 4] in [0,1] and depth [B H W], the alpha-weighted mean
    distance along the ray in world units (0 where nothing is hit)."""

    rgba: np.ndarray
    depth: np.ndarray

    def over(self, background: np.ndarray | float) -> np.ndarray:
        """rgb [B H W 3] over a plain background, a number or rgb [3] or [B 1 1 3]."""
        return self.rgba[..., :3] + (1 - self.rgba[..., 3:]) * np.asarray(background, np.float32)


def rotation(axis: str, angle: np.ndarray | np.floating) -> np.ndarray:
    """Right-handed rotations [... 3 3] about a coordinate axis by angles [...] in radians."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.broadcast_to(np.eye(3, dtype=np.float32), (*np.shape(angle), 3, 3)).copy()
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[..., i, i], matrix[..., j, j], matrix[..., i, j], matrix[..., j, i] = cos, cos, -sin, sin
    return matrix


def pose(motion: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose of motions [B] (-1: still) at times [B] in [0,1]: G [B 3 3], T [B 3], limb angle [B] in radians."""
    phase, arch = 2 * np.pi * time, np.sin(np.pi * time)
    G = np.broadcast_to(np.eye(3, dtype=np.float32), (len(time), 3, 3)).copy()
    T = np.zeros((len(time), 3), np.float32)
    limb = np.zeros(len(time), np.float32)
    for index, name in enumerate(MOTIONS):
        on = motion == index
        p, a = phase[on], arch[on]
        if name == "spinning":
            G[on] = rotation("z", p)
        elif name == "bouncing":
            stretch = 1 + 0.18 * np.sin(p)
            G[on] *= np.stack([stretch**-0.5, stretch**-0.5, stretch], -1)[:, None]
            T[on, 2] = 0.26 * a
        elif name == "jumping":
            G[on] = rotation("y", -0.3 * np.sin(p))
            T[on, 2], limb[on] = 0.28 * a**2, 0.5 * np.sin(p)
        elif name == "swaying":
            G[on] = rotation("x", 0.45 * np.sin(p))
        elif name == "walking":
            T[on, 0], T[on, 2], limb[on] = 0.18 * np.sin(p), 0.05 * np.sin(p) ** 2, 0.6 * np.sin(p)
    return G, T, limb


@lru_cache(maxsize=1)
def _tables() -> dict[str, np.ndarray]:
    """Every object's parts as arrays [objects parts ...], padded to the longest; kind -1 marks padding."""
    longest = max(len(parts) for parts in OBJECTS.values())
    shape = (len(OBJECTS), longest)
    tables = {
        "kind": np.full(shape, -1, np.int32),
        "A": np.tile(np.eye(3, dtype=np.float32), (*shape, 1, 1)),
        "c": np.zeros((*shape, 3), np.float32),
        "pivot": np.zeros((*shape, 3), np.float32),
        "leg": np.zeros(shape, np.float32),
        "wing": np.zeros(shape, np.float32),
        "reach": np.zeros(shape, np.float32),
        "mix": np.zeros(shape, np.float32),
        "tint": np.zeros((*shape, 3), np.float32),
    }
    for o, parts in enumerate(OBJECTS.values()):
        for k, part in enumerate(parts):
            _fill(tables, (o, k), part)
    return tables


def _fill(tables: dict[str, np.ndarray], at: tuple[int, int], part: Part) -> None:
    rx, ry, rz = (rotation(axis, np.float32(a)) for axis, a in zip("xyz", part.turn, strict=True))
    tables["kind"][at] = part.kind
    tables["A"][at] = rz @ ry @ rx @ np.diag(part.size).astype(np.float32)
    tables["c"][at], tables["pivot"][at] = part.centre, part.pivot
    tables["leg"][at], tables["wing"][at] = part.leg, part.wing
    tables["reach"][at] = {BALL: max(part.size), BOX: np.linalg.norm(part.size)}.get(part.kind, np.hypot(max(part.size[:2]), part.size[2]))
    plain: dict[Any, Any] = {MAIN: (1, 0), DARK: (0.6, 0), LIGHT: (0.45, 0.55)}
    tables["mix"][at], tables["tint"][at] = plain.get(part.colour, (0, part.colour))


def render(things: Things, c2w: np.ndarray, fovy: np.ndarray, time: np.ndarray, size: int, samples: int = 2) -> Picture:
    """Ray-cast B views. c2w [B 4 4] (OpenGL camera, z up), fovy [B] in radians, time [B] in [0,1], `size` pixels
    square, `samples` x `samples` rays a pixel."""
    table = {name: array[things.object] for name, array in _tables().items()}
    G, T, limb = pose(things.motion, np.asarray(time, np.float32))
    swing = rotation("y", table["leg"] * limb[:, None]) @ rotation("x", table["wing"] * limb[:, None])
    inverse = np.linalg.inv(swing @ table["A"])
    centre = np.einsum("bpij,bpj->bpi", swing, table["c"] - table["pivot"]) + table["pivot"]
    colour = table["mix"][..., None] * things.colour[:, None] + table["tint"]
    c2w, still = np.asarray(c2w, np.float32), np.linalg.inv(G)
    axes, origin = still @ c2w[:, :3, :3], np.einsum("bij,bj->bi", still, c2w[:, :3, 3] - T)  # the camera in the thing's own frame
    focal = 0.5 * size * samples / np.tan(np.asarray(fovy) / 2)
    rays = inverse @ axes[:, None]  # from the camera's frame to each part's
    local = np.einsum("bpij,bpj->bpi", inverse, origin[:, None] - centre)
    normals = still.transpose(0, 2, 1)[:, None] @ inverse.transpose(0, 1, 3, 2)
    rectangles = _rectangles(np.linalg.inv(axes), centre - origin[:, None], table["reach"], focal, size * samples)
    rgba, depth = np.zeros((len(time), size, size, 4), np.float32), np.zeros((len(time), size, size), np.float32)
    rays, local, normals, colour, focal = (np.ascontiguousarray(x, np.float32) for x in (rays, local, normals, colour, focal))
    about = table["kind"], rectangles, rays, local, normals, colour, focal, samples, LIGHT_DIRECTION, rgba, depth
    spread(lambda begin, end: _cast(*about, begin, end), len(time), len(time))
    alpha = rgba[..., 3]
    return Picture(rgba, np.divide(depth, alpha, out=depth, where=alpha > 0))


def _rectangles(to_camera: np.ndarray, away: np.ndarray, reach: np.ndarray, focal: np.ndarray, pixels: int) -> np.ndarray:
    """Columns and rows [B P 4] (first, last + 1, first, last + 1) of a square picture that a part within `reach` [B P] of
    its centre can touch; `away` [B P 3] is the centre seen from the camera, in the thing's frame."""
    x, y, z = np.moveaxis(np.einsum("bij,bpj->bpi", to_camera, away), -1, 0)
    radius = reach * np.linalg.norm(to_camera, 2, (1, 2))[:, None]
    near, far = np.maximum(-z - radius, 0.05), np.maximum(-z + radius, 0.05)
    edges = [
        extreme((v + sign * radius) / near, (v + sign * radius) / far)
        for v in (x, -y)
        for sign, extreme in ((-1, np.minimum), (1, np.maximum))
    ]
    found = np.stack(edges, -1) * focal[:, None, None] + pixels / 2
    return np.clip(found + np.array([0, 1, 0, 1]), 0, pixels).astype(np.int32)


@njit(inline="always")
def _hit(kind, ox, oy, oz, dx, dy, dz):
    """Smallest positive t at which the ray o + t d enters a unit primitive, or 1e9."""
    far = np.float32(1e9)
    if kind == BALL:
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        disc = b * b - a * (ox * ox + oy * oy + oz * oz - np.float32(1))
        return (-b - math.sqrt(disc)) / a if disc > 0 else far
    if kind == BOX:
        near, out = -far, far
        for o, d in ((ox, dx), (oy, dy), (oz, dz)):
            d = np.float32(1e-6) if abs(d) < 1e-6 else d
            t1, t2 = (-1 - o) / d, (1 - o) / d
            near, out = max(near, min(t1, t2)), min(out, max(t1, t2))
        return near if near < out else far
    a, b, q = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - np.float32(1)
    if kind == CONE:  # radius (1 - z) / 2
        kz, kd = (1 - oz) / 2, -dz / 2
        a, b, q = a - kd * kd, b - kz * kd, ox * ox + oy * oy - kz * kz
    best = far
    disc = b * b - a * q
    if disc > 0:
        root = math.sqrt(disc)
        a = np.float32(1e-6) if abs(a) < 1e-6 else a
        for t in ((-b - root) / a, (-b + root) / a):
            if t > 0 and abs(oz + t * dz) <= 1 and t < best:
                best = t
    dz = np.float32(1e-6) if abs(dz) < 1e-6 else dz
    for cap in (-1, 1):
        t = (cap - oz) / dz
        px, py = ox + t * dx, oy + t * dy
        if t > 0 and t < best and px * px + py * py <= 1 and (kind == CYLINDER or cap < 0):
            best = t
    return best


@njit(inline="always")
def _normal(kind, x, y, z):
    """Outward normal (not normalised) of a unit primitive at a point of its surface."""
    zero, one = np.float32(0), np.float32(1)
    if kind == BALL:
        return x, y, z
    if kind == BOX:
        ax, ay, az = abs(x), abs(y), abs(z)
        if ax >= ay and ax >= az:
            return (one if x > 0 else -one), zero, zero
        if ay >= az:
            return zero, (one if y > 0 else -one), zero
        return zero, zero, (one if z > 0 else -one)
    if z < -0.999 or (kind == CYLINDER and z > 0.999):
        return zero, zero, (one if z > 0 else -one)
    return x, y, ((one - z) / 4 if kind == CONE else zero)


@njit(inline="always")
def _through(matrix, x, y):
    """matrix @ (x, y, -1)."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y - matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y - matrix[1, 2],
        matrix[2, 0] * x + matrix[2, 1] * y - matrix[2, 2],
    )


@cached_njit(nogil=True, fastmath=True, boundscheck=False)
def _cast(kind, rectangles, rays, local, normals, colour, focal, samples, light, rgba, depth, begin, end):
    """Part after part into a buffer of nearest hits, then shade what was hit; views `begin` to `end`."""
    parts = kind.shape[1]
    pixels = rgba.shape[1] * samples
    half, weight = np.float32(pixels * 0.5 - 0.5), np.float32(1 / (samples * samples))
    for b in range(begin, end):
        nearest, part = np.full((pixels, pixels), np.float32(1e9), np.float32), np.full((pixels, pixels), -1, np.int8)
        unit = np.float32(1) / focal[b]
        for k in range(parts):
            if kind[b, k] < 0:
                break
            o, M = local[b, k], rays[b, k]
            first, last, top, bottom = rectangles[b, k]
            for row in range(top, bottom):
                for column in range(first, last):
                    d = _through(M, (column - half) * unit, (half - row) * unit)
                    t = _hit(kind[b, k], o[0], o[1], o[2], d[0], d[1], d[2])
                    if 0 < t < nearest[row, column]:
                        nearest[row, column], part[row, column] = t, k
        for row in range(pixels):
            for column in range(pixels):
                k, t = part[row, column], nearest[row, column]
                if k < 0:
                    continue
                cx, cy = (column - half) * unit, (half - row) * unit
                o, d, N = local[b, k], _through(rays[b, k], cx, cy), normals[b, k]
                n = _normal(kind[b, k], o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
                w0 = N[0, 0] * n[0] + N[0, 1] * n[1] + N[0, 2] * n[2]
                w1 = N[1, 0] * n[0] + N[1, 1] * n[1] + N[1, 2] * n[2]
                w2 = N[2, 0] * n[0] + N[2, 1] * n[1] + N[2, 2] * n[2]
                cosine = (w0 * light[0] + w1 * light[1] + w2 * light[2]) / (math.sqrt(w0 * w0 + w1 * w1 + w2 * w2) + np.float32(1e-9))
                shade = np.float32(0.55) + np.float32(0.25) * (cosine + np.float32(1))
                y, x = row // samples, column // samples
                for i in range(3):
                    rgba[b, y, x, i] += weight * min(np.float32(1), colour[b, k, i] * shade)
                rgba[b, y, x, 3] += weight
                depth[b, y, x] += weight * t * math.sqrt(cx * cx + cy * cy + np.float32(1))

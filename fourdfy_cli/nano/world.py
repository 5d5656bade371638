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

import numpy as np
from numba import njit, prange

from fourdfy_cli.nano.objects import BALL, BOX, COLOURS, CONE, CYLINDER, DARK, LIGHT, MAIN, OBJECTS, Part
from fourdfy_cli.nano.prompts import MOTIONS

BOUND = 0.95  # every part stays within this distance of its thing's origin; rays beyond are skipped
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
    mix, tint = {MAIN: (1, 0), DARK: (0.6, 0), LIGHT: (0.45, 0.55)}.get(part.colour, (0, part.colour))
    tables["mix"][at], tables["tint"][at] = mix, tint


def view_rays_frame(c2w: np.ndarray, G: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera origin [B 3] and axes [B 3 3] in the object's own frame, and the normal map G^-T [B 3 3]."""
    inverse = np.linalg.inv(G)
    origin = np.einsum("bij,bj->bi", inverse, c2w[:, :3, 3] - T)
    return origin, inverse @ c2w[:, :3, :3], inverse.transpose(0, 2, 1)


def render(things: Things, c2w: np.ndarray, fovy: np.ndarray, time: np.ndarray, size: int, samples: int = 2) -> Picture:
    """Ray-cast B views. c2w [B 4 4] (OpenGL camera, z up), fovy [B] in radians, time [B] in [0,1], `size` pixels
    square, `samples` x `samples` rays a pixel."""
    table = {name: array[things.object] for name, array in _tables().items()}
    G, T, limb = pose(things.motion, np.asarray(time, np.float32))
    swing = rotation("y", table["leg"] * limb[:, None]) @ rotation("x", table["wing"] * limb[:, None])
    A = swing @ table["A"]
    c = np.einsum("bpij,bpj->bpi", swing, table["c"] - table["pivot"]) + table["pivot"]
    colour = (table["mix"][..., None] * things.colour[:, None] + table["tint"]).astype(np.float32)
    origin, axes, normals = view_rays_frame(np.asarray(c2w, np.float32), G, T)
    focal = (0.5 * size * samples / np.tan(np.asarray(fovy) / 2)).astype(np.float32)
    f32 = [np.ascontiguousarray(x, np.float32) for x in (np.linalg.inv(A), c, colour, origin, axes, normals)]
    outside = (origin**2).sum(-1).astype(np.float32) - np.float32(BOUND**2)
    rgba = np.zeros((len(time), size, size, 4), np.float32)
    depth = np.zeros((len(time), size, size), np.float32)
    _cast(table["kind"], table["reach"] ** 2, *f32, focal, outside, samples, LIGHT_DIRECTION, rgba, depth)
    alpha = rgba[..., 3]
    return Picture(rgba, np.divide(depth, alpha, out=depth, where=alpha > 0))


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


@njit(parallel=True, fastmath=True, cache=True, boundscheck=False)
def _cast(kind, reach, inverse, centre, colour, origin, axes, normals, focal, outside, samples, light, rgba, depth):
    views, parts = kind.shape
    size = rgba.shape[1]
    weight = np.float32(1 / (samples * samples))
    for b in prange(views):
        local = np.empty((parts, 3), np.float32)  # ray origin in each part's frame
        away = np.empty((parts, 4), np.float32)  # from ray origin to each part's centre, and its squared length less reach
        for k in range(parts):
            for i in range(3):
                away[k, i], local[k, i] = centre[b, k, i] - origin[b, i], 0
                for j in range(3):
                    local[k, i] += inverse[b, k, i, j] * (origin[b, j] - centre[b, k, j])
            away[k, 3] = away[k, 0] ** 2 + away[k, 1] ** 2 + away[k, 2] ** 2 - reach[b, k]
        half = np.float32(size * samples * 0.5)
        for row in range(size * samples):
            for column in range(size * samples):
                cx, cy = (column + np.float32(0.5) - half) / focal[b], -(row + np.float32(0.5) - half) / focal[b]
                scale = 1 / math.sqrt(cx * cx + cy * cy + 1)
                d0 = (axes[b, 0, 0] * cx + axes[b, 0, 1] * cy - axes[b, 0, 2]) * scale
                d1 = (axes[b, 1, 0] * cx + axes[b, 1, 1] * cy - axes[b, 1, 2]) * scale
                d2 = (axes[b, 2, 0] * cx + axes[b, 2, 1] * cy - axes[b, 2, 2]) * scale
                best, hit = np.float32(1e9), -1
                along = d0 * origin[b, 0] + d1 * origin[b, 1] + d2 * origin[b, 2]
                square = d0 * d0 + d1 * d1 + d2 * d2
                if along * along < square * outside[b]:
                    continue
                for k in range(parts):
                    if kind[b, k] < 0:
                        break
                    along = away[k, 0] * d0 + away[k, 1] * d1 + away[k, 2] * d2
                    if along * along < square * away[k, 3]:  # the ray passes outside the part's bounding sphere
                        continue
                    dx = inverse[b, k, 0, 0] * d0 + inverse[b, k, 0, 1] * d1 + inverse[b, k, 0, 2] * d2
                    dy = inverse[b, k, 1, 0] * d0 + inverse[b, k, 1, 1] * d1 + inverse[b, k, 1, 2] * d2
                    dz = inverse[b, k, 2, 0] * d0 + inverse[b, k, 2, 1] * d1 + inverse[b, k, 2, 2] * d2
                    t = _hit(kind[b, k], local[k, 0], local[k, 1], local[k, 2], dx, dy, dz)
                    if t > 0 and t < best:
                        best, hit = t, k
                if hit < 0:
                    continue
                A = inverse[b, hit]
                u0 = local[hit, 0] + best * (A[0, 0] * d0 + A[0, 1] * d1 + A[0, 2] * d2)
                u1 = local[hit, 1] + best * (A[1, 0] * d0 + A[1, 1] * d1 + A[1, 2] * d2)
                u2 = local[hit, 2] + best * (A[2, 0] * d0 + A[2, 1] * d1 + A[2, 2] * d2)
                n0, n1, n2 = _normal(kind[b, hit], u0, u1, u2)
                g0 = A[0, 0] * n0 + A[1, 0] * n1 + A[2, 0] * n2
                g1 = A[0, 1] * n0 + A[1, 1] * n1 + A[2, 1] * n2
                g2 = A[0, 2] * n0 + A[1, 2] * n1 + A[2, 2] * n2
                N = normals[b]
                w0 = N[0, 0] * g0 + N[0, 1] * g1 + N[0, 2] * g2
                w1 = N[1, 0] * g0 + N[1, 1] * g1 + N[1, 2] * g2
                w2 = N[2, 0] * g0 + N[2, 1] * g1 + N[2, 2] * g2
                cosine = (w0 * light[0] + w1 * light[1] + w2 * light[2]) / (math.sqrt(w0 * w0 + w1 * w1 + w2 * w2) + 1e-9)
                shade = np.float32(0.55) + np.float32(0.25) * (cosine + 1)
                y, x = row // samples, column // samples
                for i in range(3):
                    rgba[b, y, x, i] += weight * min(np.float32(1), colour[b, hit, i] * shade)
                rgba[b, y, x, 3] += weight
                depth[b, y, x] += weight * best

"""The ten things of the toy world, as unions of unit primitives; see `world.py` for the notation."""

from __future__ import annotations

import math
from dataclasses import dataclass

BALL, BOX, CONE, CYLINDER = range(4)
MAIN, DARK, LIGHT = "main", "dark", "light"  # shades of the thing's own colour

Vector = tuple[float, float, float]

COLOURS: dict[str, Vector] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.92, 0.82, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "purple": (0.55, 0.20, 0.70),
    "pink": (0.95, 0.50, 0.70),
    "white": (0.93, 0.93, 0.93),
}
BLACK, GLASS, BEAK, LAMP, GREY, SNOW = (
    (0.05, 0.05, 0.05),
    (0.55, 0.80, 0.95),
    (0.95, 0.60, 0.10),
    (0.98, 0.90, 0.40),
    (0.45, 0.45, 0.45),
    (0.95, 0.95, 0.95),
)


@dataclass(frozen=True)
class Part:
    """A unit primitive scaled by `size` (half extents), turned by Euler angles x-y-z in radians, moved to `centre`.
    `leg` and `wing` (-1, 0 or 1) let it swing about its `pivot`, around y and x."""

    kind: int
    centre: Vector
    size: Vector
    colour: str | Vector = MAIN
    turn: Vector = (0, 0, 0)
    pivot: Vector = (0, 0, 0)
    leg: int = 0
    wing: int = 0


def legs(x: float, y: float, top: float, length: float, width: float, colour: str) -> tuple[Part, ...]:
    """Four legs below `top`; diagonal pairs swing together."""
    return tuple(
        Part(BOX, (sx * x, sy * y, top - length / 2), (width, width, length / 2), colour, pivot=(sx * x, sy * y, top), leg=sx * sy)
        for sx in (1, -1)
        for sy in (1, -1)
    )


def pair(kind: int, centre: Vector, size: Vector, colour: str | Vector, **swing) -> tuple[Part, Part]:
    """A part and its mirror image in the plane y = 0."""
    x, y, z = centre
    return (
        Part(kind, (x, y, z), size, colour, **swing),
        Part(kind, (x, -y, z), size, colour, **swing),
    )


def wings(x: float, y: float, z: float, size: Vector, root: float) -> tuple[Part, Part]:
    """Two dark ellipsoids that flap about their roots at y = +-root."""
    return (
        Part(BALL, (x, y, z), size, DARK, pivot=(x, root, z), wing=1),
        Part(BALL, (x, -y, z), size, DARK, pivot=(x, -root, z), wing=-1),
    )


OBJECTS: dict[str, tuple[Part, ...]] = {
    "dog": (
        Part(BOX, (-0.08, 0, 0.0), (0.40, 0.19, 0.18)),
        Part(BOX, (0.38, 0, 0.29), (0.19, 0.19, 0.18)),
        Part(BOX, (0.62, 0, 0.22), (0.10, 0.10, 0.09), LIGHT),
        Part(BOX, (0.72, 0, 0.27), (0.03, 0.05, 0.04), BLACK),
        *pair(BOX, (0.34, 0.20, 0.33), (0.07, 0.04, 0.16), DARK),
        *pair(BALL, (0.56, 0.10, 0.37), (0.04, 0.045, 0.045), BLACK),
        Part(BOX, (-0.53, 0, 0.22), (0.06, 0.06, 0.18), DARK, turn=(0, -0.5, 0)),
        *legs(0.24, 0.12, -0.14, 0.40, 0.085, DARK),
    ),
    "cat": (
        Part(BALL, (-0.10, 0, -0.04), (0.44, 0.24, 0.24)),
        Part(BALL, (0.32, 0, 0.22), (0.25, 0.26, 0.23)),
        *pair(CONE, (0.30, 0.15, 0.48), (0.10, 0.10, 0.14), DARK),
        *pair(BALL, (0.52, 0.10, 0.28), (0.045, 0.05, 0.06), BLACK),
        Part(BALL, (0.57, 0, 0.18), (0.04, 0.06, 0.04), (0.95, 0.5, 0.6)),
        Part(CYLINDER, (-0.52, 0, 0.22), (0.06, 0.06, 0.28), DARK, turn=(0, -0.35, 0)),
        *legs(0.20, 0.12, -0.14, 0.36, 0.075, LIGHT),
    ),
    "bird": (
        Part(BALL, (-0.05, 0, -0.05), (0.38, 0.26, 0.27), turn=(0, -0.3, 0)),
        Part(BALL, (0.27, 0, 0.26), (0.21, 0.20, 0.20)),
        Part(CONE, (0.56, 0, 0.24), (0.09, 0.09, 0.15), BEAK, turn=(0, math.pi / 2, 0)),
        *pair(BALL, (0.40, 0.13, 0.33), (0.04, 0.045, 0.05), BLACK),
        *wings(-0.10, 0.38, 0.05, (0.22, 0.30, 0.06), 0.14),
        Part(BOX, (-0.48, 0, -0.15), (0.20, 0.14, 0.045), DARK, turn=(0, -0.3, 0)),
        Part(CYLINDER, (0.0, 0.10, -0.38), (0.045, 0.045, 0.14), BEAK, pivot=(0, 0.10, -0.26), leg=1),
        Part(CYLINDER, (0.0, -0.10, -0.38), (0.045, 0.045, 0.14), BEAK, pivot=(0, -0.10, -0.26), leg=-1),
    ),
    "fish": (
        Part(BALL, (0.10, 0, 0), (0.48, 0.21, 0.31)),
        Part(CONE, (-0.48, 0, 0), (0.32, 0.08, 0.22), DARK, turn=(0, math.pi / 2, 0)),
        Part(CONE, (0.02, 0, 0.35), (0.24, 0.06, 0.16), DARK),
        *pair(BALL, (0.38, 0.14, 0.09), (0.06, 0.05, 0.06), BLACK),
        Part(BALL, (0.10, 0.26, -0.08), (0.12, 0.13, 0.04), LIGHT, pivot=(0.10, 0.15, -0.08), wing=1),
        Part(BALL, (0.10, -0.26, -0.08), (0.12, 0.13, 0.04), LIGHT, pivot=(0.10, -0.15, -0.08), wing=-1),
        Part(BALL, (0.56, 0, -0.06), (0.05, 0.10, 0.05), (0.95, 0.5, 0.5)),
    ),
    "car": (
        Part(BOX, (0, 0, -0.10), (0.66, 0.31, 0.15)),
        Part(BOX, (-0.10, 0, 0.16), (0.33, 0.27, 0.13), GLASS),
        Part(BOX, (-0.10, 0, 0.30), (0.34, 0.28, 0.04)),
        *pair(BALL, (0.66, 0.19, -0.07), (0.05, 0.08, 0.07), LAMP),
        Part(BOX, (-0.66, 0, -0.06), (0.02, 0.24, 0.06), (0.60, 0.05, 0.05)),
        *(
            Part(CYLINDER, (sx * 0.38, sy * 0.29, -0.26), (0.17, 0.17, 0.06), BLACK, turn=(math.pi / 2, 0, 0))
            for sx in (1, -1)
            for sy in (1, -1)
        ),
    ),
    "rocket": (
        Part(CYLINDER, (0, 0, -0.07), (0.24, 0.24, 0.38), SNOW),
        Part(CONE, (0, 0, 0.53), (0.24, 0.24, 0.22)),
        Part(BALL, (0.20, 0, 0.10), (0.09, 0.16, 0.16), GLASS),
        Part(BOX, (-0.23, 0, 0.02), (0.03, 0.13, 0.20), GREY),
        Part(CYLINDER, (0, 0, -0.50), (0.16, 0.16, 0.07), GREY),
        Part(CYLINDER, (0, 0, -0.14), (0.247, 0.247, 0.06), MAIN),
        *(
            Part(BOX, (0.32 * math.cos(a), 0.32 * math.sin(a), -0.38), (0.15, 0.04, 0.18), MAIN, turn=(0, 0, a))
            for a in (math.pi, math.pi / 3, -math.pi / 3)
        ),
    ),
    "cube": (Part(BOX, (0, 0, 0), (0.42, 0.42, 0.42)),),
    "ball": (Part(BALL, (0, 0, 0), (0.52, 0.52, 0.52)),),
    "cone": (Part(CONE, (0, 0, 0), (0.50, 0.50, 0.55)),),
    "donut": tuple(
        Part(BALL, (0.40 * math.cos(a), 0.40 * math.sin(a), 0), (0.20, 0.27, 0.20), MAIN, turn=(0, 0, a))
        for a in (2 * math.pi * k / 12 for k in range(12))
    ),
}
WITH_FRONT = ("dog", "cat", "bird", "fish", "car", "rocket")  # seen from ahead, aside and behind they look different

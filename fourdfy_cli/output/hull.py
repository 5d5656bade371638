"""The visual hull of fog: the largest solid whose silhouettes are the fog's (Laurentini, PAMI 1994).

A ray is dark if it loses more than half of its light, that is if its optical depth, the integral of density along it, is above ln 2. Only
where every ray through a point is dark can a solid be that looks as the fog does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DIRECTIONS = 32
FAINT = 0.02  # a density per world unit that takes at most 4 % of a ray's light
STEEP = 20  # power of the fall outside the hull: a density leaps there, as it does at a surface


def optical_depth(volume: np.ndarray) -> np.ndarray:
    """The least optical depth of all lines through each cell, over DIRECTIONS from all sides, of densities [R R R] per world unit in a
    box 2 units wide; 0 where nothing is. Each cell is spread over the four nearest pixels of a projection, and read back from them."""
    size, wide = len(volume), math.ceil(len(volume) * math.sqrt(3)) + 2
    at = np.nonzero(volume > FAINT)
    middle, matter = np.stack(at, 1) - (size - 1) / 2, volume[at].astype(np.float64) * (2 / size)
    least = np.full(len(matter), np.inf)
    for direction in hemisphere(DIRECTIONS):
        right = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
        right /= np.linalg.norm(right)
        pixel = middle @ np.stack([right, np.cross(direction, right)], 1) + wide / 2
        first = pixel.astype(np.int64)
        apart = pixel - first
        corners = [  # the four nearest pixels, and the cell's share in each
            (first[:, 0] * wide + first[:, 1] + wide * i + j, np.abs(1 - i - apart[:, 0]) * np.abs(1 - j - apart[:, 1]))
            for i in (0, 1)
            for j in (0, 1)
        ]
        projection = np.zeros(wide * wide)
        for where, part in corners:
            projection += np.bincount(where, part * matter, wide * wide)
        least = np.minimum(least, sum(projection[where] * part for where, part in corners))
    depth = np.zeros(volume.shape, np.float32)
    depth[at] = least
    return depth


def hemisphere(count: int) -> np.ndarray:
    """Unit vectors [count 3] spread evenly over half of the sphere, a Fibonacci lattice: a line has no front."""
    k = np.arange(count) + 0.5
    z, turn = k / count, k * math.pi * (3 - math.sqrt(5))
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)


def carved(volume: np.ndarray) -> np.ndarray:
    """Densities [R R R] as they are inside the hull, falling steeply to nothing outside."""
    return volume * share(optical_depth(volume))


def share(depth: Any) -> Any:
    """What is left of the density where the least optical depth is this, an array or tensor: 1 inside the hull."""
    return (depth / math.log(2)).clip(max=1) ** STEEP


def between(depth: Float[Tensor, "R R R"], x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """The optical depth of cells at points of the world, linear from middle to middle."""
    return F.grid_sample(depth[None, None], x.flip(1)[None, None, None], padding_mode="border", align_corners=False)[0, 0, 0, 0]

"""Slow, obvious oracles of the scene: plain loops, one idea a line, differentiable by torch alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fourdfy_cli import config

PRIMES = (1, 2654435761, 805459861, 3674653429)


def grid_levels(dims: int, grid: config.Grid) -> list[tuple[float, int, int, int]]:
    """(scale, vertices per axis, first row, rows) of each level."""
    out, first = [], 0
    for number in range(grid.levels):
        scale = grid.base * math.pow(grid.growth, number) - 1
        vertices = math.ceil(scale - 1e-6) + 1
        rows = min((vertices**dims + 7) // 8 * 8, 2**grid.log2_table)
        out.append((scale, vertices, first, rows))
        first += rows
    return out


def row_of(corner: list[int], vertices: int, rows: int) -> int:
    """Row of one corner within its level."""
    if vertices ** len(corner) <= rows:
        return sum(c * vertices**axis for axis, c in enumerate(corner)) % rows
    key = 0
    for c, prime in zip(corner, PRIMES, strict=False):
        key ^= c * prime
    return key % rows


def hash_features(x: Tensor, table: Tensor, grid: config.Grid) -> Tensor:
    """Features [N levels*features] of points [N D]."""
    out = []
    for point in x:
        features = []
        for scale, vertices, first, rows in grid_levels(len(point), grid):
            position = point * scale + 0.5
            low = [math.floor(p) for p in position.tolist()]
            total = torch.zeros_like(table[0])
            for k in range(2 ** len(low)):
                upper = [k >> axis & 1 for axis in range(len(low))]
                weight = torch.ones_like(point[0])
                for axis, bit in enumerate(upper):
                    fraction = position[axis] - low[axis]
                    weight = weight * (fraction if bit else 1 - fraction)
                corner = [c + bit for c, bit in zip(low, upper, strict=True)]
                total = total + weight * table[first + row_of(corner, vertices, rows)]
            features.append(total)
        out.append(torch.cat(features))
    return torch.stack(out)


def march_ray(origin: Tensor, direction: Tensor, occupied, step: float, offset: float) -> list[float]:
    """Middles t of the samples of one ray, found by walking far along it."""
    walk = torch.arange(0, 8, step / 500, dtype=torch.float64)
    inside = walk[(origin + walk[:, None] * direction).abs().amax(1) <= 1].tolist()
    if not inside:
        return []
    low, high = max(0.0, inside[0] - step / 500), inside[0]
    for _ in range(60):  # bisect to the exact point of entry
        middle = (low + high) / 2
        low, high = (low, middle) if (origin + middle * direction).abs().max() <= 1 else (middle, high)
    out, k = [], 0
    while high + (k + offset) * step <= inside[-1] + step / 500:
        point = origin + (high + (k + offset) * step) * direction
        if point.abs().max() <= 1 and bool(occupied(point[None])[0]):
            out.append(high + (k + offset) * step)
        k += 1
    return out


def composite_ray(density: list[Tensor], rgb: list[Tensor], t: list[float], delta: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [3], opacity and depth of one ray."""
    colour, opacity, depth, transmittance = torch.zeros(3).double(), torch.zeros(()).double(), torch.zeros(()).double(), 1.0
    for sigma, c, middle, length in zip(density, rgb, t, delta, strict=True):
        alpha = 1 - torch.exp(-sigma * length)
        colour = colour + transmittance * alpha * c
        opacity = opacity + transmittance * alpha
        depth = depth + transmittance * alpha * middle
        transmittance = transmittance * (1 - alpha)
    return colour, opacity, depth


def occupied_cells(value: Tensor) -> Tensor:
    """Which cells [R R R] count as occupied."""
    flat = value.flatten().tolist()
    threshold = min(sum(flat) / len(flat), 0.01)
    return torch.tensor([v > threshold for v in flat]).view(value.shape)

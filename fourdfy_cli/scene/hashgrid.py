"""Multiresolution hash grids in one to four dimensions.

Notation: N points `x` [N D] in [0,1]^D; level l has scale `s_l = base growth^l - 1` and `ceil(s_l) + 1` vertices per
axis. A point lies at position `p = s_l x + 1/2`; `floor(p)` is its lower corner, the fraction its linear weight; 2^D
corners in all, the first axis in the lowest bit. A level whose vertices fit its table is dense, row-major with the
first axis fastest; otherwise corners are hashed: the exclusive or of coordinate times prime, modulo the table's size.
One table [entries features] holds all levels one after another. Source: "Instant Neural Graphics Primitives", Mueller
et al. 2022, Sec. 3, with tiny-cuda-nn's conventions (also its wrap of dense corners just beyond the upper face).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fourdfy_cli import config

PRIMES = (1, 2654435761, 805459861, 3674653429)
BLOCK = 16384  # points looked up at once on a CPU, so that indices and weights stay in its cache


@dataclass(frozen=True)
class Level:
    """One resolution: rows [offset, offset + entries) of the table, `resolution` vertices per axis."""

    scale: float
    resolution: int
    offset: int
    entries: int
    dense: bool


def levels(dims: int, grid: config.Grid) -> list[Level]:
    """The levels of a grid in `dims` dimensions; a level has min(resolution^dims rounded up to 8, 2^log2_table) rows."""
    out: list[Level] = []
    for number in range(grid.levels):
        scale = grid.base * grid.growth**number - 1
        resolution = math.ceil(scale - 1e-6) + 1
        entries = min(math.ceil(resolution**dims / 8) * 8, 2**grid.log2_table)
        offset = out[-1].offset + out[-1].entries if out else 0
        out.append(Level(scale, resolution, offset, entries, resolution**dims <= entries))
    return out


class Encoding(NamedTuple):
    """One implementation of the lookup and its two gradients. `TORCH` below is the plain one; other backends are in kernels/."""

    lookup: Callable[[Tensor, Tensor, list[Level]], Tensor]
    table_gradient: Callable[[Tensor, Tensor, list[Level], Tensor], Tensor]
    points_gradient: Callable[[Tensor, Tensor, list[Level], Tensor], Tensor]


def locate(x: Float[Tensor, "D N"], level: Level) -> tuple[Int[Tensor, "D N"], Float[Tensor, "D N"]]:
    """Lower corner (int32) and fraction of points at a level."""
    position = x * level.scale + 0.5
    floor = position.floor()
    return floor.int(), position.sub_(floor)


def corner_bits(dims: int, device: torch.device) -> Int[Tensor, "D K"]:
    """Offset, 0 or 1 (int32), along each axis of each of the K = 2^D corners of a cell."""
    axis = torch.arange(dims, dtype=torch.int32, device=device)[:, None]
    return torch.arange(2**dims, dtype=torch.int32, device=device) >> axis & 1


def corner_rows(corner: Int[Tensor, "D N"], bits: Int[Tensor, "D K"], level: Level) -> Int[Tensor, "N K"]:
    """Rows, within the level's own part of the table, of the corners of the cells at lower corners [D N]; int32."""
    if level.dense:
        low, upper = corner[0], bits[0]
        for axis in range(1, len(corner)):
            stride = level.resolution**axis
            low, upper = torch.add(low, corner[axis], alpha=stride), torch.add(upper, bits[axis], alpha=stride)
        row = low[:, None] + upper
        beyond = len(low) > 0 and int(corner.max()) >= level.resolution - 1
        return torch.where(row < level.entries, row, row - level.entries) if beyond else row
    # An int32 product may wrap around: the low bits, all that the hash keeps, stay right.
    primes = [prime & (level.entries - 1) for prime in PRIMES[: len(corner)]]
    row = corner[0, :, None] + bits[0]
    for low, bit, prime in zip(corner[1:], bits[1:], primes[1:], strict=True):
        row ^= (low * prime)[:, None] + bit * prime
    return row.bitwise_and_(level.entries - 1)


def corner_weights(fraction: Float[Tensor, "D N"], bits: Int[Tensor, "D K"], along: int | None = None) -> Float[Tensor, "N K"]:
    """Linear weights of the corners, or their derivatives in the fraction along one axis."""
    factors = [(1 - bits).to(fraction.dtype), (2 * bits - 1).to(fraction.dtype)]
    weight = fraction.new_ones(fraction.shape[1], bits.shape[1]) if along == 0 else None
    for axis, (part, at_zero, slope) in enumerate(zip(fraction, *factors, strict=True)):
        factor = slope if axis == along else torch.addcmul(at_zero, part[:, None], slope)
        weight = factor if weight is None else weight.mul_(factor)
    return weight  # pyright: ignore[reportReturnType]


@torch.no_grad()
def lookup(x: Float[Tensor, "N D"], table: Float[Tensor, "E F"], levels: list[Level]) -> Float[Tensor, "N C"]:
    """Features [N levels*features] of points in [0,1]^D, without a graph."""
    out = table.new_empty(len(x), len(levels) * table.shape[1])
    bits = corner_bits(x.shape[1], x.device)
    for points, rows in _blocks(x, out.unflatten(1, (len(levels), -1))):
        for number, level in enumerate(levels):
            corner, fraction = locate(points, level)
            rows[:, number] = _gather(table, corner_rows(corner, bits, level), corner_weights(fraction, bits), level)
    return out


@torch.no_grad()
def points_gradient(
    x: Float[Tensor, "N D"], table: Float[Tensor, "E F"], levels: list[Level], grad: Float[Tensor, "N C"]
) -> Float[Tensor, "N D"]:
    """Gradient in the points [N D] for a gradient [N C] in the features."""
    out = torch.zeros_like(x)
    bits = corner_bits(x.shape[1], x.device)
    for points, g, total in _blocks(x, grad.unflatten(1, (len(levels), -1)), out):
        for number, level in enumerate(levels):
            corner, fraction = locate(points, level)
            row = corner_rows(corner, bits, level)
            for axis in range(x.shape[1]):
                slope = _gather(table, row, corner_weights(fraction, bits, along=axis), level)
                total[:, axis] += level.scale * (slope * g[:, number]).sum(1)
    return out


@torch.no_grad()
def table_gradient(
    x: Float[Tensor, "N D"], table: Float[Tensor, "E F"], levels: list[Level], grad: Float[Tensor, "N C"]
) -> Float[Tensor, "E F"]:
    """Gradient in the table [entries features] for a gradient [N C] in the features. Feature by feature, as sums into
    one-dimensional tensors are several times faster than sums of short vectors."""
    out = table.new_zeros(table.shape[1], len(table))
    bits = corner_bits(x.shape[1], x.device)
    for points, g in _blocks(x, grad.unflatten(1, (len(levels), -1))):
        for number, level in enumerate(levels):
            corner, fraction = locate(points, level)
            row = corner_rows(corner, bits, level).flatten().long()
            weight = corner_weights(fraction, bits)
            part = out[:, level.offset : level.offset + level.entries]
            for feature, slope in zip(part, g[:, number].unbind(1), strict=True):
                feature.scatter_add_(0, row, (weight * slope[:, None]).flatten())
    return out.t().contiguous()


def _blocks(x: Tensor, *rows: Tensor):
    """The points [D n] and the `rows` [n ...] of one block after another."""
    size = BLOCK if x.device.type == "cpu" else max(len(x), 1)
    for points, *rest in zip(x.split(size), *(row.split(size) for row in rows), strict=True):
        if len(points):
            yield points.t().contiguous(), *rest


def _gather(table: Tensor, row: Tensor, weight: Tensor, level: Level) -> Tensor:
    """Weighted sums [n features] of the level's rows [n K]."""
    part = table[level.offset : level.offset + level.entries]
    return F.embedding_bag(row, part, per_sample_weights=weight, mode="sum")


TORCH = Encoding(lookup, table_gradient, points_gradient)


class HashGrid(nn.Module):
    """Features of points, linearly interpolated at every level. Entries start in U(-init, init)."""

    def __init__(self, dims: int, grid: config.Grid, init: float, generator: torch.Generator, encoding: Encoding = TORCH):
        super().__init__()
        self.levels = levels(dims, grid)
        self.encoding = encoding
        rows = self.levels[-1].offset + self.levels[-1].entries
        self.table = nn.Parameter(_table(rows, grid.features).uniform_(-init, init, generator=generator))

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Features [N levels*features], level by level, of points in [0,1]^D; differentiable in the table and in x."""
        return _Lookup.apply(x, self.table, self.levels, self.encoding)

    def attach(self, known: Float[Tensor, "N C"], x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """`known` as it is, with the gradient of `known + self(x)` less that in x: for features that were looked up
        before without a graph, whose second lookup this saves."""
        return _Attach.apply(known, x, self.table, self.levels, self.encoding)


def _table(rows: int, features: int) -> Float[Tensor, "E F"]:
    """An empty table. numpy asks for large arrays in huge pages, torch does not: with them a CPU gathers twice as fast."""
    if torch.get_default_device().type == "meta":
        return torch.empty(rows, features, device="meta")
    return torch.from_numpy(np.empty((rows, features), np.float32))


class _Lookup(torch.autograd.Function):
    """Saves the points alone; the backward pass works rows and weights out again, which costs less than keeping them."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, levels: list[Level], encoding: Encoding) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels, ctx.encoding = levels, encoding
        return encoding.lookup(x, table, levels)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, table = ctx.saved_tensors
        grad_x = ctx.encoding.points_gradient(x, table, ctx.levels, grad) if ctx.needs_input_grad[0] else None
        grad_table = ctx.encoding.table_gradient(x, table, ctx.levels, grad) if ctx.needs_input_grad[1] else None
        return grad_x, grad_table, None, None


class _Attach(torch.autograd.Function):
    """See `HashGrid.attach`."""

    @staticmethod
    def forward(ctx, known: Tensor, x: Tensor, table: Tensor, levels: list[Level], encoding: Encoding) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels, ctx.encoding = levels, encoding
        return known.view_as(known)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, table = ctx.saved_tensors
        return grad, None, ctx.encoding.table_gradient(x, table, ctx.levels, grad) if ctx.needs_input_grad[2] else None, None, None

"""The hash grid's lookup and its two gradients as Triton kernels, for CUDA devices; the functions of `scene.hashgrid`.

Notation of `scene.hashgrid`. A program holds a block of B points and their K = 2^D corners. Both kinds of level share one
formula: the row of a corner joins (coordinate times multiplier) over the axes, by sum in a dense level, where multipliers are
strides, and by exclusive or in a hashed one, where they are primes. Everything runs in the type of the points and the table.
Sums into the table are atomic, so their last bits depend on the order in which a device happens to run the programs.
Layout of the work: one launch over (blocks, levels) as in tiny-cuda-nn's grid.h, so that a level at a time fills the cache.
"""

# Compiled functions are not what their Python says.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fourdfy_cli.scene.hashgrid import PRIMES, Encoding, Level

WORK = 2048  # numbers of one program: points times corners times features


@triton.jit
def _corners(x, scale, rule, D: tl.constexpr, ALONG: tl.constexpr, inside):
    """Rows of the table [B K] of the corners around points x [B] (pointers), and their linear weights [B K] or, with ALONG >= 0,
    the derivatives of these in the fraction along that axis. `rule`: a row of `_rules`. Points that are not `inside` are 0."""
    corner = tl.arange(0, 2**D)[None, :]
    entries = tl.load(rule + 1).to(tl.uint32)
    for axis in tl.static_range(D):
        position = tl.load(x + axis, mask=inside, other=0.0) * scale + 0.5
        low = tl.floor(position)
        fraction = (position - low)[:, None]
        bit = (corner >> axis) & 1
        step = (low.to(tl.int32)[:, None] + bit).to(tl.uint32) * tl.load(rule + 3 + axis).to(tl.uint32)
        if axis == ALONG:
            factor = (2 * bit - 1).to(fraction.dtype)
        else:
            factor = tl.where(bit == 1, fraction, 1 - fraction)
        if axis == 0:
            added, hashed, weight = step, step, factor
        else:
            added, hashed, weight = added + step, hashed ^ step, weight * factor
    wrapped = tl.where(added < entries, added, added - entries)
    row = tl.where(tl.load(rule + 2) == 1, tl.minimum(wrapped, entries - 1), hashed & (entries - 1))  # bad points stay in the table
    return tl.load(rule) + row.to(tl.int32), weight


@triton.jit
def _lookup(x, table, scales, rules, out, count, levels, D: tl.constexpr, F: tl.constexpr, B: tl.constexpr):
    point = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    level, feature, inside = tl.program_id(1), tl.arange(0, F), point < count
    row, weight = _corners(x + point * D, tl.load(scales + level), rules + level * (3 + D), D, -1, inside)
    value = tl.load(table + row[:, :, None] * F + feature[None, None, :])
    place = (point[:, None] * levels + level) * F + feature[None, :]
    tl.store(out + place, tl.sum(value * weight[:, :, None], 1), mask=inside[:, None])


@triton.jit
def _table_gradient(x, grad, scales, rules, out, count, levels, D: tl.constexpr, F: tl.constexpr, B: tl.constexpr):
    point = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    level, feature, inside = tl.program_id(1), tl.arange(0, F), point < count
    row, weight = _corners(x + point * D, tl.load(scales + level), rules + level * (3 + D), D, -1, inside)
    place = (point[:, None] * levels + level) * F + feature[None, :]
    slope = tl.load(grad + place, mask=inside[:, None], other=0.0)
    part = weight[:, :, None] * slope[:, None, :]
    tl.atomic_add(out + row[:, :, None] * F + feature[None, None, :], part, mask=inside[:, None, None], sem="relaxed")


@triton.jit
def _points_gradient(x, table, grad, scales, rules, out, count, levels, D: tl.constexpr, F: tl.constexpr, B: tl.constexpr):
    point = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    feature, column, inside = tl.arange(0, F), tl.arange(0, 4)[None, :], point < count
    total = tl.zeros([B, 4], out.dtype.element_ty)
    for level in range(levels):
        scale, rule = tl.load(scales + level), rules + level * (3 + D)
        place = (point[:, None] * levels + level) * F + feature[None, :]
        slope = tl.load(grad + place, mask=inside[:, None], other=0.0)
        for axis in tl.static_range(D):
            row, weight = _corners(x + point * D, scale, rule, D, axis, inside)
            value = tl.sum(tl.load(table + row[:, :, None] * F + feature[None, None, :]) * slope[:, None, :], 2)
            total += tl.where(column == axis, scale * tl.sum(value * weight, 1)[:, None], 0.0)
    tl.store(out + point[:, None] * D + column, total, mask=inside[:, None] & (column < D))


@lru_cache(maxsize=16)
def _rules(levels: tuple[Level, ...], dims: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernels know of the levels: scale [L]; offset, entries, dense, and the multipliers of the axes [L 3+D] int32."""
    rows = []
    for level in levels:
        strides = [level.resolution**axis for axis in range(dims)]
        primes = [prime & (level.entries - 1) for prime in PRIMES[:dims]]
        rows.append([level.offset, level.entries, level.dense, *(strides if level.dense else primes)])
    scales = torch.tensor([level.scale for level in levels], dtype=dtype, device=device)
    return scales, torch.tensor(rows, dtype=torch.int32, device=device)


def _sizes(x: Tensor, table: Tensor) -> dict[str, int]:
    """Sizes known when a kernel is compiled: dimensions, features and points of a block. Products are rounded before they are
    added to, as in torch, so that both put a point into the same cell."""
    return {"D": x.shape[1], "F": table.shape[1], "B": max(16, WORK // (2 ** x.shape[1] * table.shape[1])), "enable_fp_fusion": False}


def _launch(kernel, levels: list[Level], x: Tensor, table: Tensor, read: list[Tensor], out: Tensor, by_level: bool) -> Tensor:
    """Run a kernel that reads the points and `read` and writes `out`: a program for each block of points (and each level)."""
    sizes = _sizes(x, table)
    blocks = triton.cdiv(len(x), sizes["B"])
    with torch.cuda.device_of(x):
        rules = _rules(tuple(levels), x.shape[1], x.dtype, x.device)
        arrays = [part.contiguous() for part in (x, *read)]
        kernel[(blocks, len(levels)) if by_level else (blocks,)](*arrays, *rules, out, len(x), len(levels), **sizes)
    return out


def lookup(x: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """Features [N L*F] of points x [N D] in [0,1]^D, D = 1 to 4, in a table [entries F]; F is a power of two."""
    out = table.new_empty(len(x), len(levels) * table.shape[1])
    return _launch(_lookup, levels, x, table, [table], out, by_level=True)


def table_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """Gradient in the table [entries F] for a gradient [N L*F] in the features."""
    out = torch.zeros_like(table, memory_format=torch.contiguous_format)
    return _launch(_table_gradient, levels, x, table, [grad], out, by_level=True)


def points_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """Gradient in the points [N D] for a gradient [N L*F] in the features."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _launch(_points_gradient, levels, x, table, [table, grad], out, by_level=False)


ENCODING = Encoding(lookup, table_gradient, points_gradient)

"""The hash grid on a CPU, compiled by numba, for points of three and four axes; the notation is that of scene/hashgrid.py.

Each thread looks up points of its own. The table's gradient is shared out by levels, each of which one thread sums over the
points in order: no two threads write to the same row, and the result does not depend on how many there are.

Arrays are flat, and what a loop must know when it is compiled (axes, features, dense or not) comes as the length of a
tuple: numba compiles one version per length and keeps it on disk. Indices are unsigned, which spares the test for
negative ones.
"""

# Compiled functions are not what their Python says.
# pyright: reportCallIssue=false
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fourdfy_cli.kernels.jit import cached_njit
from fourdfy_cli.kernels.threads import share, spread
from fourdfy_cli.scene import hashgrid
from fourdfy_cli.scene.hashgrid import PRIMES, Encoding, Level

BLOCK = 2**16  # points at most that a thread takes through all levels, one after another, so that a level's rows stay in its cache
FAST = {"contract"}  # a product and a sum may become one instruction; nothing else is reordered
ONE, TWO, THREE = np.uint64(1), np.uint64(2), np.uint64(3)


def lookup(x: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """See scene.hashgrid.lookup; points of fewer than three axes are looked up there."""
    if x.shape[1] < 3:
        return hashgrid.lookup(x, table, levels)
    out = torch.empty(len(x), len(levels) * table.shape[1], dtype=table.dtype)
    arrays, about = _arrays(x, table, out), _about(levels, x, table)
    spread(lambda begin, end: _lookup(*arrays, *about, begin, end), len(x), BLOCK)
    return out


def table_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """See scene.hashgrid.table_gradient."""
    if x.shape[1] < 3:
        return hashgrid.table_gradient(x, table, levels, grad)
    out = torch.from_numpy(np.zeros(table.shape, table.detach().numpy().dtype))  # in huge pages, as the table: see HashGrid
    arrays, about = _arrays(x, out, grad), _about(levels, x, table)
    share(lambda level: _table_gradient(*arrays, *about, level), len(levels))
    return out


def points_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """See scene.hashgrid.points_gradient."""
    if x.shape[1] < 3:
        return hashgrid.points_gradient(x, table, levels, grad)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    arrays, about = _arrays(x, table, grad, out), _about(levels, x, table)
    spread(lambda begin, end: _points_gradient(*arrays, *about, begin, end), len(x), BLOCK)
    return out


ENCODING = Encoding(lookup, table_gradient, points_gradient)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().view(-1).numpy() for tensor in tensors]


def _about(levels: list[Level], x: Tensor, table: Tensor) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Scale of each level [L]; its first row, its rows, whether it is dense, and each axis' factor in its rows [L 3+D]; and two
    tuples as long as there are axes and features."""
    dims = x.shape[1]
    scale = torch.tensor([level.scale for level in levels], dtype=x.dtype).numpy()
    rows = [[v.offset, v.entries, v.dense, *(v.resolution**k if v.dense else PRIMES[k] for k in range(dims))] for v in levels]
    return scale, np.array(rows, dtype=np.uint64), (0,) * dims, (0,) * table.shape[1]


@cached_njit(nogil=True)
def _lookup(x, table, out, scale, about, axes, features, begin, end):
    for k in range(len(scale)):
        if about[k, 2]:
            _gather(x, table, out, begin, end, k, scale, about[k], axes, features, (0,))
        else:
            _gather(x, table, out, begin, end, k, scale, about[k], axes, features, ())


@cached_njit(nogil=True)
def _table_gradient(x, out, grad, scale, about, axes, features, k):
    if about[k, 2]:
        _scatter(x, out, grad, k, scale, about[k], axes, features, (0,))
    else:
        _scatter(x, out, grad, k, scale, about[k], axes, features, ())


@cached_njit(nogil=True)
def _points_gradient(x, table, grad, out, scale, about, axes, features, begin, end):
    for k in range(len(scale)):
        if about[k, 2]:
            _slope(x, table, grad, out, begin, end, k, scale, about[k], axes, features, (0,))
        else:
            _slope(x, table, grad, out, begin, end, k, scale, about[k], axes, features, ())


@njit(inline="always")
def _axis(x, at, scale, factor):
    """What the lower and the upper corner along one axis contribute to the row (by +, or by ^) and to the weight (by *)."""
    real = x.dtype.type
    p = x[at] * scale + real(0.5)
    whole = np.int64(p)  # a signed conversion is one instruction, an unsigned one several and a branch
    low, f = np.uint64(whole), p - real(whole)
    return low * factor, (low + ONE) * factor, real(1) - f, f


@njit(inline="always")
def _cell(x, n, scale, about, axes):
    """`_axis` of point n along x, y, z and time; a point of three axes has one corner along the fourth."""
    real, at = x.dtype.type, np.uint64(n) * np.uint64(len(axes))
    t = (np.uint64(0), np.uint64(0), real(1), real(0))
    if len(axes) == 4:
        t = _axis(x, at + THREE, scale, about[6])
    return _axis(x, at, scale, about[3]), _axis(x, at + ONE, scale, about[4]), _axis(x, at + TWO, scale, about[5]), t


@njit(inline="always")
def _side(cell, late):
    """The eight corners of a cell at its lower or its upper end along time: a loop so short is unrolled, one over sixteen is not."""
    x, y, z, t = cell
    return x, y, z, t[1] if late else t[0], t[3] if late else t[2]


@njit(inline="always")
def _corner(k, side, about, dense):
    """Row in the whole table, and weight, of corner k of a side: bit 0 is its place along x, bit 1 along y, bit 2 along z."""
    x, y, z, d, w = side
    a, b, c = x[1] if k & 1 else x[0], y[1] if k & 2 else y[0], z[1] if k & 4 else z[0]
    w = (x[3] if k & 1 else x[2]) * ((y[3] if k & 2 else y[2]) * ((z[3] if k & 4 else z[2]) * w))
    if len(dense) == 0:
        return about[0] + ((a ^ (b ^ (c ^ d))) & (about[1] - ONE)), w
    row = a + (b + (c + d))
    row = row - about[1] if row >= about[1] else row
    return about[0] + min(row, about[1] - ONE), w  # a point that is not a number stays within the table too


@cached_njit(fastmath=FAST)
def _gather(x, table, out, begin, end, k, scale, about, axes, features, dense):
    """Weighted sums of the corners' features at level k, of points begin to end."""
    F, real = np.uint64(len(features)), table.dtype.type
    group = 4 if len(features) % 4 == 0 else 2 if len(features) % 2 == 0 else 1
    for n in range(begin, end):
        cell = _cell(x, n, scale[k], about, axes)
        at = (np.uint64(n) * np.uint64(len(scale)) + np.uint64(k)) * F
        for g in range(0, len(features), group):
            a0, a1, a2, a3 = real(0), real(0), real(0), real(0)
            for late in range(len(axes) - 2):
                side = _side(cell, late)
                for corner in range(8):
                    row, w = _corner(corner, side, about, dense)
                    row = row * F + np.uint64(g)
                    a0 += w * table[row]
                    if group > 1:
                        a1 += w * table[row + ONE]
                    if group > 2:
                        a2 += w * table[row + TWO]
                        a3 += w * table[row + THREE]
            to = at + np.uint64(g)
            out[to] = a0
            if group > 1:
                out[to + ONE] = a1
            if group > 2:
                out[to + TWO], out[to + THREE] = a2, a3


@cached_njit(fastmath=FAST)
def _scatter(x, out, grad, k, scale, about, axes, features, dense):
    """Add the gradient at level k to the corners' features, point by point."""
    F = np.uint64(len(features))
    group = 4 if len(features) % 4 == 0 else 2 if len(features) % 2 == 0 else 1
    for n in range(len(x) // len(axes)):
        cell = _cell(x, n, scale[k], about, axes)
        at = (np.uint64(n) * np.uint64(len(scale)) + np.uint64(k)) * F
        for g in range(0, len(features), group):
            of = at + np.uint64(g)
            g0, g1 = grad[of], grad[of + ONE] if group > 1 else grad[of]
            g2, g3 = (grad[of + TWO], grad[of + THREE]) if group > 2 else (g0, g0)
            for late in range(len(axes) - 2):
                side = _side(cell, late)
                for corner in range(8):
                    row, w = _corner(corner, side, about, dense)
                    row = row * F + np.uint64(g)
                    out[row] += w * g0
                    if group > 1:
                        out[row + ONE] += w * g1
                    if group > 2:
                        out[row + TWO] += w * g2
                        out[row + THREE] += w * g3


@cached_njit(fastmath=FAST)
def _slope(x, table, grad, out, begin, end, k, scale, about, axes, features, dense):
    """Add the gradient in the points at level k: along an axis, the corners' weights are replaced by their slopes."""
    F, real = np.uint64(len(features)), x.dtype.type
    for n in range(begin, end):
        cell = _cell(x, n, scale[k], about, axes)
        at = (np.uint64(n) * np.uint64(len(scale)) + np.uint64(k)) * F
        for axis in range(len(axes)):
            total = real(0)
            for late in range(len(axes) - 2):
                side = _side(_sloped(cell, axis), late)
                for corner in range(8):
                    row, w = _corner(corner, side, about, dense)
                    for f in range(len(features)):
                        total += w * table[row * F + np.uint64(f)] * grad[at + np.uint64(f)]
            out[np.uint64(n) * np.uint64(len(axes)) + np.uint64(axis)] += scale[k] * total


@njit(inline="always")
def _sloped(cell, axis):
    """A cell whose weights along one axis are replaced by their derivatives in the fraction, -1 and 1."""
    x, y, z, t = cell
    one = x[2] + x[3]
    return (
        (x[0], x[1], -one, one) if axis == 0 else x,
        (y[0], y[1], -one, one) if axis == 1 else y,
        (z[0], z[1], -one, one) if axis == 2 else z,
        (t[0], t[1], -one, one) if axis == 3 else t,
    )

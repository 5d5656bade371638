"""The visual hull: line integrals against a slow oracle, and silhouettes that no threshold alone fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from fourdfy_cli.output import hull, mesh


def grid(size: int) -> np.ndarray:
    """The middles of the cells of the box, [3 R R R]."""
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))


def line_integral(volume: np.ndarray, at: np.ndarray, direction: np.ndarray) -> float:
    """Of the density along a whole line through a point, by many samples."""
    t = np.linspace(-2, 2, 2001)
    cell = ((at + t[:, None] * direction + 1) / 2 * len(volume) - 0.5).T
    return float(map_coordinates(volume, cell, order=1, mode="constant").sum() * (t[1] - t[0]))


def test_optical_depth_is_the_least_line_integral():
    x = grid(32)
    volume = 6 * np.exp(-(x[0] ** 2 / 0.3 + x[1] ** 2 / 0.05 + (x[2] - 0.2) ** 2 / 0.1)) + 3 * np.exp(-((x - 0.3) ** 2).sum(0) / 0.05)
    depth = hull.optical_depth(volume.astype(np.float32))
    for cell in ((16, 16, 19), (12, 15, 18), (21, 20, 20), (16, 13, 16), (9, 16, 19)):
        least = min(line_integral(volume, x[(slice(None), *cell)], direction) for direction in hull.hemisphere(hull.DIRECTIONS))
        assert depth[cell] == pytest.approx(least, rel=0.06)
    assert (depth[volume < hull.FAINT] == 0).all()


def test_directions_are_spread_evenly():
    lines = hull.hemisphere(hull.DIRECTIONS)
    assert np.allclose(np.linalg.norm(lines, axis=1), 1)
    near = np.sort(np.abs(lines @ lines.T), axis=1)[:, -2]
    assert np.degrees(np.arccos(near)).min() > 12 and np.degrees(np.arccos(near)).max() < 30


def test_silhouettes_fit_where_no_threshold_does():
    """A faint ball that is dark, for it is thick, and a dense sheet that is not, for it is thin."""
    size, x = 64, grid(64)
    ball, sheet = (x**2).sum(0) < 0.36, (np.abs(x[2]) < 0.04) & (np.abs(x[0]) < 0.85) & (np.abs(x[1]) < 0.5)
    fog = np.where(sheet, 6.0, np.where(ball, 2.0, 0.0)).astype(np.float32)

    def fit(solid: np.ndarray) -> float:
        dark, seen = fog.sum(2) * (2 / size) > math.log(2), solid.any(2)
        return float((dark & seen).sum() / (dark | seen).sum())

    assert max(fit(fog > level) for level in mesh.LEVELS) < 0.8
    inside = hull.carved(fog)
    assert fit(inside > mesh.automatic([(fog, inside)])) > 0.95


def test_a_dense_solid_stays_as_it_is():
    ball = np.where((grid(48) ** 2).sum(0) < 0.5, 200.0, 0.0).astype(np.float32)
    assert np.array_equal(hull.carved(ball) > 50, ball > 50)
    assert not hull.carved(np.zeros((8, 8, 8), np.float32)).any()


def test_what_is_left_at_points_is_what_is_left_in_cells():
    volume = (20 * np.exp(-((grid(24) / 0.5) ** 2).sum(0))).astype(np.float32)
    depth = hull.optical_depth(volume)
    x = torch.from_numpy(grid(24).reshape(3, -1).T.copy()).float()
    left = volume * hull.share(hull.between(torch.from_numpy(depth), x)).numpy().reshape(volume.shape)
    assert np.allclose(left, hull.carved(volume), rtol=1e-3, atol=1e-5) and (left[volume > 0] < 0.5 * volume[volume > 0]).any()

"""Eyes and noses, the first thing that a picture loses: how much of them is there."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

DARK, LEAST, AROUND = 0.25, 4, 2  # a spot: below what in red, green and blue, its least pixels, and the width of the ring around it


def spots(rgb: np.ndarray, true: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """How much of the eyes is there: of the contrast between what is dark in true pictures [V H W 3] of a thing, where it is `solid`
    [V H W], and what surrounds it, the share that pictures of ours have [V]; nan where nothing is dark or hardly anything."""
    shares = np.full(len(rgb), np.nan)
    dark = (true.max(-1) < DARK) & solid
    for k in np.flatnonzero(dark.sum((1, 2)) >= LEAST):
        ring = binary_dilation(dark[k], iterations=AROUND) & solid[k] & ~dark[k]
        if ring.any():
            ours, theirs = (picture[k][ring].mean() - picture[k][dark[k]].mean() for picture in (rgb, true))
            shares[k] = ours / theirs
    return shares


def mean(values: np.ndarray) -> float | None:
    """The mean of those that are numbers; None if none is."""
    return None if np.isnan(values).all() else float(np.nanmean(values))

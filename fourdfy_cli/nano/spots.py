"""Eyes and noses, the first thing that a picture loses: how much of them is there."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

DARK, GREY = 0.25, 0.1  # a spot: below what in red, green and blue, and no farther apart (a green thing's shady side is dark too)
LEAST, AROUND = 4, 2  # a view's least dark pixels, and the width of the ring around them


def spots(rgb: np.ndarray, true: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """How much of the eyes is there. The contrast between what is dark grey in true pictures [V H W 3] of a thing, where it is `solid`
    [V H W], and what surrounds it, times its pixels, in pictures of ours, over the mean of the same in the true ones [V]; nan where nothing
    is dark, or hardly anything. So the mean over views is the share of all contrast; a view by itself may be above 1."""
    ours, theirs = np.full((2, len(rgb)), np.nan)
    dark = (true.max(-1) < DARK) & (np.ptp(true, -1) < GREY) & solid
    for k in np.flatnonzero(dark.sum((1, 2)) >= LEAST):
        ring = binary_dilation(dark[k], iterations=AROUND) & solid[k] & ~dark[k]
        if ring.any():
            ours[k], theirs[k] = (dark[k].sum() * (picture[k][ring].mean() - picture[k][dark[k]].mean()) for picture in (rgb, true))
    return ours / (mean(theirs) or np.nan)


def mean(values: np.ndarray) -> float | None:
    """The mean of those that are numbers; None if none is."""
    return None if np.isnan(values).all() else float(np.nanmean(values))

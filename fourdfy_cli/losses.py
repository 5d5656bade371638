"""Regularisers of the rendered opacity; METHOD: released code of 4D-fy (systems/fourdfy.py), not in the paper.

Both are per pixel here; what is added, on every step whatever the branch, is their mean over a shot.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def sparsity(opacity: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """sqrt(opacity^2 + 0.01): pulls empty space to nothing. Opacity in [0,1]."""
    return (opacity.square() + 0.01).sqrt()


def opaqueness(opacity: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Binary entropy of the opacity (clamped to [1e-3, 1 - 1e-3]): pushes every pixel to all or nothing."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log())

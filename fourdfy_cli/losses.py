"""Regularisers of the released code of 4D-fy (systems/fourdfy.py), not in the paper; and `toward_rest`, of K-Planes.

Those of the rendered opacity are per pixel here; what is added, on every step whatever the branch, is their mean over a shot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sparsity(opacity: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """sqrt(opacity^2 + 0.01): pulls empty space to nothing. Opacity in [0,1]."""
    return (opacity.square() + 0.01).sqrt()


def opaqueness(opacity: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Binary entropy of the opacity (clamped to [1e-3, 1 - 1e-3]): pushes every pixel to all or nothing."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def smoothness(
    displacement: Callable[[Float[Tensor, "M 4"]], Float[Tensor, "M 3"]], x: Float[Tensor, "N 4"], apart: float
) -> Float[Tensor, ""]:
    """Mean squared slope of a displacement at points of place and time [0,1]^4: forward differences over `apart` along each of the
    four axes, summed over axes and components. The released code takes differences between the pixels and frames of a displacement
    rendered along rays (and, on multi-view steps, between views); of the points themselves it is the same from wherever one looks.
    """
    there = x + apart * torch.eye(4, dtype=x.dtype, device=x.device)[:, None]
    d = displacement(torch.cat([x[None], there]).flatten(0, 1)).unflatten(0, (5, -1))
    return ((d[1:] - d[0]) / apart).square().sum((0, 2)).mean()


@torch.no_grad()
def toward_rest(features: Float[Tensor, ...], threshold: float) -> None:
    """Draw the features of a dynamic grid towards 0, where nothing moves, by `threshold`, none of them past it: what noise adds at one step
    and takes back at another does not become motion. The L1 of K-Planes (Fridovich-Keil et al. 2023, "sparse transients") as a proximal
    step after the optimizer's, since AdamW makes all gradients alike long."""
    features.copy_(F.softshrink(features, threshold))

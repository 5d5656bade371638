"""What is measured on the frames of a video, once CLIP has seen them: pure functions of embeddings and frame differences.

Notation: a video has N frames; `embedding` [N C] are their unit CLIP embeddings. change[k] is the mean absolute difference of frames
k - 1 and k, bend[k] half that of their difference and the one before; rgb in [0,1]. Whatever is reported is 100 times these.
On the MAV3D path (124 frames, scene.cameras.mav3d) the camera is still in frames 31 b to 31 b + 15 for b = 0 to 3: what changes there is
the thing itself.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.scene.cameras import mav3d

LENGTH = 124
STILL = [range(31 * block, 31 * block + 16) for block in range(4)]
Curve = list[tuple[float, float]]


def clip_f(embedding: Float[Tensor, "N C"]) -> float | None:
    """CLIP-F: 100 times the mean cosine of consecutive frames; None for a single one."""
    return 100 * float((embedding[1:] * embedding[:-1]).sum(-1).mean()) if len(embedding) > 1 else None


def r_precision(embedding: Float[Tensor, "N C"], texts: Float[Tensor, "P C"], true: int) -> float | None:
    """Per cent of the frames that are nearer to their own prompt, number `true`, than to every other; None if there is no other."""
    return 100 * float(((embedding @ texts.T).argmax(1) == true).float().mean()) if len(texts) > 1 else None


def motion(change: Float[Tensor, " N"]) -> float | None:
    """How much consecutive frames differ while the camera is still, in per cent of full scale; None off the MAV3D path."""
    return _while_still(change, 1)


def flicker(bend: Float[Tensor, " N"]) -> float | None:
    """The part of `motion` that turns back with the next frame: the high half of a Haar split of the frame differences. 0 for steady
    change, all of `motion` for two frames in turn; None off the MAV3D path."""
    return _while_still(bend, 2)


def _while_still(values: Tensor, first: int) -> float | None:
    return 100 * float(values[[k for block in STILL for k in block[first:]]].mean()) if len(values) == LENGTH else None


def by_azimuth(values: Float[Tensor, " N"]) -> Curve | None:
    """Mean at each of the 60 azimuths of the MAV3D path, degrees in [0,360); None off the path."""
    azimuth = torch.rad2deg(mav3d(1).azimuth()).round() % 360
    return _means(azimuth, values) if len(values) == LENGTH else None


def by_time(values: Float[Tensor, " N"]) -> Curve | None:
    """Mean at each of the 62 times of the MAV3D path, in [0,1]; None off the path."""
    return _means(mav3d(1).time, values) if len(values) == LENGTH else None


def _means(places: Tensor, values: Tensor) -> Curve:
    found, index, counts = places.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(found)).index_add_(0, index, values.float().cpu())
    return [(round(place, 4), round(mean, 3)) for place, mean in zip(found.tolist(), (sums / counts).tolist(), strict=True)]


def mean_curve(curves: list[Curve]) -> Curve | None:
    """Mean of curves over the same places, as a curve; None for none."""
    if not curves:
        return None
    return [(points[0][0], round(sum(value for _, value in points) / len(points), 3)) for points in zip(*curves, strict=True)]


def bootstrap(values: list[float], seed: int = 0, draws: int = 10_000) -> tuple[float, float] | None:
    """95 % interval of the mean of `values`, by drawing as many with replacement (percentiles); None for fewer than two."""
    if len(values) < 2:
        return None
    chosen = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(np.array(values)[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)

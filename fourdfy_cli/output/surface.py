"""Where rays meet the surface that `export` cuts: depths that fit its meshes.

A field is fog, and light is lost behind the surface of what it shows: the mean depth of what a ray sees lies deeper (README.md: how much).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.output.hull import between, optical_depth, share
from fourdfy_cli.output.mesh import FLOOR, densities
from fourdfy_cli.output.sequence import MeshOptions, level
from fourdfy_cli.scene.cameras import Shot
from fourdfy_cli.scene.occupancy import bounds
from fourdfy_cli.scene.scene import Rays, Scene, camera_rays, density_at
from fourdfy_cli.scene.volume import RAYS


def distances(scene: Scene, shot: Shot) -> Iterator[np.ndarray]:
    """For each view in turn, how far [H W] along its rays they first meet the surface of that moment, world units; 0 where they never do.
    Threshold and hull are those of `export`."""
    threshold = level(scene, MeshOptions(), lambda items, *_: iter(items))
    depth = None
    for k in range(len(shot)):
        if depth is None or shot.time[k] != shot.time[k - 1]:
            depth = torch.from_numpy(optical_depth(densities(scene, float(shot.time[k])))).to(scene.blob_std)
        met = [first_met(scene, rays, threshold, depth) for rays in camera_rays(scene, shot[k : k + 1]).split(RAYS)]
        yield torch.cat(met).view(shot.size).cpu().numpy()


@torch.no_grad()
def first_met(scene: Scene, rays: Rays, threshold: float, depth: Float[Tensor, "R R R"]) -> Float[Tensor, " N"]:
    """How far along rays of one moment the density inside the visual hull (told by the optical depth of cells) first passes a threshold,
    else 0. Its logarithm goes evenly from sample to sample, as it does from point to point in `mesh.surface`; nothing is where the march
    passes by."""
    cells = scene.occupancy.binary
    samples = scene.backend.volume.march(rays.origin, rays.direction, cells, scene.step_length, rays.jitter, bounds(cells).to(rays.origin))
    x, time = samples.points(rays.origin, rays.direction), rays.time[samples.ray]
    height = (density_at(scene, x, time, float(scene.blob_std)) * share(between(depth, x)) / threshold).clamp_min(FLOOR).log()
    inside = (height > 0).nonzero()[:, 0]
    ray = samples.ray[inside]
    first = inside[ray.diff(prepend=ray.new_tensor([-1])) > 0]  # samples are sorted by ray, and along it
    before = (first - 1).clamp_min(0)
    steps = ((samples.t[first] - samples.t[before]) / samples.delta).round()
    beside = (samples.ray[first] == samples.ray[before]) & (steps == 1)
    outside = torch.where(beside, height[before], math.log(FLOOR))
    met = torch.zeros_like(rays.time)
    met[samples.ray[first]] = samples.t[first] - samples.delta * height[first] / (height[first] - outside)
    return met

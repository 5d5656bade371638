"""A scene's density as 3D Gaussians: converted, not optimised, for viewers of splats.

One round Gaussian for each cell of a grid that light gets to, SPREAD cells wide. Its peak opacity a makes a layer of them as thick as the
fog in it on average: over the plane, -log(1 - a exp(-r^2 / 2 sigma^2)) integrates to 2 pi sigma^2 Li2(a), which is to be density h^3 at
cells h wide. Files: the properties of the PLY files of 3D Gaussian Splatting (Kerbl et al. 2023, the authors' code).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import spence

from fourdfy_cli import __version__
from fourdfy_cli.errors import FAILURE, FourdfyError
from fourdfy_cli.output.mesh import densities, field
from fourdfy_cli.scene.scene import Scene

SPREAD = 0.7  # standard deviation over the width of a cell
FAINT = 0.005  # an opacity below this is left out
HIDDEN = 5.0  # and what lies behind this much fog from all six sides
BAND = 0.28209479177387814  # the spherical harmonic of degree 0


@dataclass(frozen=True)
class Splats:
    """centres [N 3] in the world, standard deviation `sigma`, peak opacity [N] in (0,1), colors [N 3] in [0,1] as pictures have them."""

    centres: np.ndarray
    sigma: float
    opacity: np.ndarray
    colors: np.ndarray

    @property
    def harmonics(self) -> np.ndarray:
        """Coefficients [N 3] of degree 0."""
        return (self.colors - 0.5) / BAND


def splats(scene: Scene, time: float, resolution: int) -> Splats:
    """The Gaussians of a scene at a time in [0,1]. Raises FourdfyError (exit 1) if there is nothing."""
    volume = densities(scene, time, resolution)
    cell = 2 / resolution
    opacity = peaks(volume, cell)
    chosen = (opacity > FAINT) & (shade(volume * cell) < HIDDEN)
    if not chosen.any():
        raise FourdfyError(f"there is nothing to see at time {time:g}", "fourdfy render RUN --grid 4x8", FAILURE)
    centres = ((np.argwhere(chosen) + 0.5) * cell - 1).astype(np.float32)
    with torch.no_grad():
        colors = field(scene, torch.from_numpy(centres).to(scene.blob_std), time)[1].cpu().numpy()
    return Splats(centres, SPREAD * cell, opacity[chosen], colors)


def peaks(density: np.ndarray, cell: float) -> np.ndarray:
    """Peak opacities of Gaussians that stand for these densities in cells of this width."""
    ladder = np.linspace(0, 0.999, 2000)
    return np.interp(density * cell / (2 * np.pi * SPREAD**2), spence(1 - ladder), ladder)


def shade(thickness: np.ndarray) -> np.ndarray:
    """How much fog lies before each cell [R R R], from that of the six sides where it is least."""
    sides = [np.flip(np.cumsum(np.flip(thickness, axis), axis), axis) for axis in range(3)]
    sides += [np.cumsum(thickness, axis) for axis in range(3)]
    return np.minimum.reduce(sides) - thickness


def write_ply(path: Path, cloud: Splats) -> None:
    """A PLY file of Gaussians, binary; opacity as a logit, size as a logarithm, rotation w x y z."""
    count = len(cloud.centres)
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    names += ["rot_0", "rot_1", "rot_2", "rot_3"]
    logit = np.log(cloud.opacity / (1 - cloud.opacity))
    size = np.full((count, 3), np.log(cloud.sigma))
    turn = np.tile([1.0, 0, 0, 0], (count, 1))
    table = np.concatenate([cloud.centres, np.zeros((count, 3)), cloud.harmonics, logit[:, None], size, turn], 1)
    head = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment a radiance field converted by fourdfy {__version__}, not optimised as splats",
    ]
    head += [f"element vertex {count}", *(f"property float {name}" for name in names), "end_header", ""]
    path.write_bytes("\n".join(head).encode() + table.astype("<f4").tobytes())

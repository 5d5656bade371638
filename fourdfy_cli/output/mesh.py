"""Surfaces of a scene: marching cubes over its density at a moment, coloured by what one sees from right in front of them.

Notation: density per world unit on a grid of R^3 points, the middles of R^3 equal cells of the box [-1,1]^3; `threshold` is the density
on the surface; vertices in world units, z up. Marching cubes: scikit-image (Lewiner's); decimation by quadrics: fast-simplification.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.output.extras import require
from fourdfy_cli.output.hull import carved
from fourdfy_cli.scene.occupancy import lookup
from fourdfy_cli.scene.scene import CHUNK, Scene, density_at

RESOLUTION = 128
SMALL = 0.05  # a component with less than this share of the largest one's area goes
LAYERS = 8  # steps into the matter that a vertex's colour is gathered from
LEVELS = np.geomspace(0.1, 1000, 200)  # thresholds to choose from
ALIKE = 0.002  # IoU less than the best one's that is as good
FLOOR = 1e-3  # of the threshold: a lower density counts as this


@dataclass(frozen=True)
class Mesh:
    """vertices [N 3] float32, faces [M 3] int64 (counter-clockwise from outside), unit normals [N 3], colors [N 3] in [0,1] as pictures
    have them, and the threshold it was cut at."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    threshold: float

    @property
    def watertight(self) -> bool:
        """Whether every edge belongs to exactly two faces, which pass it in opposite directions."""
        edges = self.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        forth, back = (np.sort(e[:, 0] * (len(self.vertices) + 1) + e[:, 1]) for e in (edges, edges[:, ::-1]))
        return len(forth) > 0 and np.array_equal(forth, back) and bool((np.diff(forth) > 0).all())

    def trimesh(self) -> Any:
        """The same for trimesh, colours as bytes."""
        from trimesh import Trimesh

        colors = (self.colors * 255).round().astype(np.uint8)
        return Trimesh(self.vertices, self.faces, vertex_normals=self.normals, vertex_colors=colors, process=False)


def mesh(scene: Scene, time: float, threshold: float | None = None, faces: int | None = None, resolution: int = RESOLUTION) -> Mesh:
    """The surface of a scene at a time in [0,1], of at most about `faces` triangles: where the density passes `threshold`, or, unless that
    is given, the `automatic` one inside the visual hull.

    Raises FourdfyError: exit 1 if there is nothing at that time, exit 3 without scikit-image.
    """
    volume = densities(scene, time, resolution)
    if threshold is None:
        inside = carved(volume)
        threshold, volume = automatic([(volume, inside)]), inside
    return cut(scene, time, volume, threshold, faces)


def cut(scene: Scene, time: float, volume: np.ndarray, threshold: float, faces: int | None = None) -> Mesh:
    """The surface where the densities [R R R] of that time pass a threshold. Raises as `mesh`."""
    require("export", "skimage", "fast_simplification")
    vertices, triangles = decimated(*largest(*surface(volume, threshold, time)), faces)
    bare = Mesh(vertices, triangles, normals_of(vertices, triangles), np.empty((0, 3), np.float32), threshold)
    return replace(bare, colors=colours(scene, time, bare))


@torch.no_grad()
def densities(scene: Scene, time: float, resolution: int = RESOLUTION) -> np.ndarray:
    """Density [R R R] float32 at a time in [0,1], 0 where the occupancy grid says that nothing is."""
    axis = ((torch.arange(resolution) + 0.5) * (2 / resolution) - 1).to(scene.blob_std)
    volume = torch.zeros(resolution, resolution, resolution)
    for plane, x in zip(volume, axis, strict=True):
        points = torch.cartesian_prod(x[None], axis, axis)
        inside = lookup(scene.occupancy.binary, points)
        plane.view(-1)[inside.cpu()] = density_at(scene, points[inside], time, float(scene.blob_std)).cpu()
    return volume.numpy()


def field(scene: Scene, x: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
    """Density [N] and colour [N 3] at points [N 3] of the world and a time, or one for each point."""
    times = torch.as_tensor(time, dtype=x.dtype, device=x.device).expand(len(x))
    parts = [scene.field(part, t, float(scene.blob_std)) for part, t in zip(x.split(CHUNK), times.split(CHUNK), strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # pyright: ignore[reportReturnType]


def automatic(volumes: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The threshold at which silhouettes along the three axes of what is `carved` fit best those of the fog itself: where a ray loses more
    than half of its light. Of pairs (fog, carved); measured by IoU over all; of many that fit, the middle; 0.1 where there is nothing."""
    both, union = np.zeros(len(LEVELS)), np.zeros(len(LEVELS))
    for volume, inside in volumes:
        for axis in range(3):
            dark = volume.sum(axis) * (2 / len(volume)) > np.log(2)
            peak = np.digitize(inside.max(axis), LEVELS)  # how many of the thresholds the densest point of a ray exceeds
            counts = (np.bincount(which, minlength=len(LEVELS) + 1) for which in (peak[dark], peak.ravel()))
            hit, drawn = (count[::-1].cumsum()[::-1][1:] for count in counts)  # rays at or beyond each threshold
            both, union = both + hit, union + drawn + dark.sum() - hit
    fit = both / np.maximum(union, 1)
    return float(np.median(LEVELS[fit >= fit.max() - ALIKE])) if fit.max() > 0 else float(LEVELS[0])


def surface(volume: np.ndarray, threshold: float, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [N 3] and faces [M 3] of the surface at a threshold, closed at the sides of the box. Raises FourdfyError: exit 1 if nothing
    is denser, exit 2 for a threshold that is none."""
    if not 0 < threshold < np.inf:
        raise FourdfyError(f"a threshold must be a positive density, not {threshold:g}", "--threshold 10", USAGE)
    peak = float(volume.max())
    if peak <= threshold:
        what = f"nothing to cut at time {time:g}: the scene is nowhere denser than {peak:.3g} and the threshold is {threshold:.3g}"
        raise FourdfyError(what, f"--threshold {peak / 2:.2g}" if peak > 0.01 else "fourdfy render RUN --grid 4x8", FAILURE)
    from skimage.measure import marching_cubes

    closed = np.pad(filled(volume, threshold), 1)
    log = np.log(np.maximum(closed / threshold, FLOOR))  # a density leaps at a surface, its logarithm goes evenly
    vertices, faces, _, _ = marching_cubes(log, 0.0, allow_degenerate=False)
    return ((vertices - 0.5) * (2 / len(volume)) - 1).astype(np.float32), faces[:, ::-1].astype(np.int64)


def filled(volume: np.ndarray, threshold: float) -> np.ndarray:
    """Densities [R R R] with their peak in every cavity that no way leads into from outside. Light does not get there, so nothing ever
    told the field what it should be."""
    from scipy.ndimage import binary_fill_holes

    matter = volume > threshold
    cavity = np.asarray(binary_fill_holes(matter)) & ~matter
    return np.where(cavity, volume.max(), volume)


def largest(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components whose area is at least SMALL of the largest one's."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_matrix((np.ones(len(ends)), ends.T), (len(vertices), len(vertices)))
    owner = connected_components(links, directed=False)[1][faces[:, 0]]
    area = np.bincount(owner, np.linalg.norm(crosses(vertices, faces), axis=1))
    return used(vertices, faces[area[owner] >= SMALL * area.max()])


def used(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same without the vertices that no face has."""
    kept, index = np.unique(faces, return_inverse=True)
    return vertices[kept], index.reshape(faces.shape)


def decimated(vertices: np.ndarray, faces: np.ndarray, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """About `most` faces, if there are more."""
    if most is None or len(faces) <= most:
        return vertices, faces
    import fast_simplification

    fewer = fast_simplification.simplify(vertices, faces.astype(np.int32), target_count=most)
    return used(np.asarray(fewer[0], np.float32), np.asarray(fewer[1], np.int64))


def crosses(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals [M 3] of faces, twice their areas long."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def normals_of(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [N 3]: the mean of a vertex's faces, weighted by area."""
    flat = np.repeat(crosses(vertices, faces).astype(np.float64), 3, 0)
    total = np.stack([np.bincount(faces.ravel(), flat[:, k], len(vertices)) for k in range(3)], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-30), [0.0, 0.0, 1.0]).astype(np.float32)


@torch.no_grad()
def colours(scene: Scene, time: float, bare: Mesh) -> np.ndarray:
    """What one sees of each vertex from right in front of it, rgb [N 3]: the field composited over LAYERS steps along the inward
    normal, over the colour at the vertex."""
    step = scene.step_length
    start, inward = (torch.from_numpy(part).to(scene.blob_std) for part in (bare.vertices, -bare.normals))
    total, left = torch.zeros_like(start), torch.ones_like(start[:, :1])
    at_vertex = field(scene, start, time)[1]
    for k in range(LAYERS):
        density, rgb = field(scene, (start + (k + 0.5) * step * inward).clamp(-1, 1), time)
        alpha = -torch.expm1(-density * step)[:, None]
        total, left = total + left * alpha * rgb, left * (1 - alpha)
    return (total + left * at_vertex).clamp(0, 1).cpu().numpy()

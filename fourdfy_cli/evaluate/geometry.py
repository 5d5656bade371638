"""The solid that a scene is cut to against the toy world's own geometry.

Chamfer distance: the mean distance, world units, from points on one surface to the nearest on the other, averaged over both ways; volume
IoU: of the points of a grid, those in both solids over those in either. All moments are cut at one automatic threshold (output/mesh.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import KDTree

from fourdfy_cli.nano import solid
from fourdfy_cli.nano.prompts import Subject
from fourdfy_cli.output.hull import carved
from fourdfy_cli.output.mesh import Mesh, automatic, crosses, cut, densities, filled
from fourdfy_cli.scene.scene import Scene

RESOLUTION, POINTS = 96, 20_000


def compare(scene: Scene, subject: Subject, times: list[float]) -> list[dict[str, float]]:
    """One row for each time in [0,1]: chamfer, volume_iou, and the threshold of all. Raises FourdfyError as `cut`."""
    fogs = [densities(scene, time, RESOLUTION) for time in times]
    volumes = [carved(fog) for fog in fogs]
    threshold = automatic(zip(fogs, volumes, strict=True))
    rows = []
    for time, volume in zip(times, volumes, strict=True):
        ours = spread(cut(scene, time, volume, threshold), POINTS)
        distance = chamfer(ours, solid.surface(subject, time, POINTS, np.random.default_rng(0)))
        overlap = volume_iou(filled(volume, threshold) > threshold, subject, time)
        rows.append({"time": time, "chamfer": distance, "volume_iou": overlap, "threshold": threshold})
    return rows


def spread(body: Mesh, count: int) -> np.ndarray:
    """Points [N 3] of a mesh, evenly by area."""
    rng = np.random.default_rng(1)
    area = np.linalg.norm(crosses(body.vertices, body.faces), axis=1).astype(np.float64)
    corners = body.vertices[body.faces[rng.choice(len(area), count, p=area / area.sum())]]
    share = rng.dirichlet((1, 1, 1), count)
    return np.einsum("nk,nkd->nd", share, corners)


def chamfer(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean distance to the nearest point of the other cloud [N 3], both ways."""
    return float((KDTree(theirs).query(ours)[0].mean() + KDTree(ours).query(theirs)[0].mean()) / 2)


def volume_iou(ours: np.ndarray, subject: Subject, time: float) -> float:
    """Of cells [R R R] of the box, by their middles."""
    axis = (np.arange(len(ours)) + 0.5) * (2 / len(ours)) - 1
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    theirs = solid.inside(subject, time, x).reshape(ours.shape)
    return float((ours & theirs).sum() / max((ours | theirs).sum(), 1))


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means over times, and the rows."""
    return {name: float(np.mean([row[name] for row in rows])) for name in ("chamfer", "volume_iou")} | {"geometry": rows}

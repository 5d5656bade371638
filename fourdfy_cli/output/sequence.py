"""A scene's meshes over time, cut at one threshold: each moment's own, or, of a deformation field, one mesh whose vertices move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from fourdfy_cli.output.hull import carved
from fourdfy_cli.output.mesh import RESOLUTION, Mesh, automatic, cut, densities, normals_of
from fourdfy_cli.scene.deformation import Deformation
from fourdfy_cli.scene.field import Deformed
from fourdfy_cli.scene.scene import Scene

Counted = Callable[[Iterable[Any], int, str], Iterator[Any]]  # shows progress: items, how many, what is done
SEEN = 4  # moments at most that the threshold is chosen from


@dataclass(frozen=True)
class MeshOptions:
    """How to cut: how many moments, at how many frames a second they play, faces of each at most, the threshold (None: automatic), points
    of the grid along an axis."""

    frames: int = 16
    fps: float = 16
    faces: int | None = None
    threshold: float | None = None
    resolution: int = RESOLUTION

    @property
    def times(self) -> list[float]:
        return [k / self.frames for k in range(self.frames)]


def level(scene: Scene, choice: MeshOptions, counted: Counted) -> float:
    """The threshold for all moments."""
    if choice.threshold is not None:
        return choice.threshold
    times = choice.times[:: -(-choice.frames // SEEN)]
    fogs = (densities(scene, time, choice.resolution) for time in counted(times, len(times), "threshold"))
    return automatic((fog, carved(fog)) for fog in fogs)


def matter(scene: Scene, choice: MeshOptions, time: float) -> np.ndarray:
    """The densities [R R R] to cut at a moment: those inside the visual hull, unless the threshold is given."""
    volume = densities(scene, time, choice.resolution)
    return carved(volume) if choice.threshold is None else volume


def meshes(scene: Scene, choice: MeshOptions, counted: Counted) -> list[Mesh]:
    """A mesh for each moment; of a deformation field all have the first one's faces and colours. Raises as `mesh`."""
    threshold = level(scene, choice, counted)
    if isinstance(scene.field, Deformed):
        first = cut(scene, 0.0, matter(scene, choice, 0.0), threshold, choice.faces)
        return [first, *(moved(scene, first, time) for time in counted(choice.times[1:], choice.frames - 1, "meshes"))]
    each = (cut(scene, time, matter(scene, choice, time), threshold, choice.faces) for time in choice.times)
    return list(counted(each, choice.frames, "meshes"))


@torch.no_grad()
def moved(scene: Scene, first: Mesh, time: float) -> Mesh:
    """A deformation field's mesh of time 0 at another time: each vertex where the point lies that comes from the same origin."""
    assert isinstance(scene.field, Deformed)
    deformation = cast(Deformation, scene.field.dynamic)
    x = (torch.from_numpy(first.vertices).to(scene.blob_std) + 1) / 2
    origin = deformation(torch.cat([x, torch.zeros_like(x[:, :1])], 1))
    there = deformation.inverse(origin, torch.full_like(x[:, 0], time))
    vertices = (2 * there - 1).cpu().numpy().astype(np.float32)
    return replace(first, vertices=vertices, normals=normals_of(vertices, first.faces))


def one_topology(cut: list[Mesh]) -> bool:
    """Whether all have the same faces and colours."""
    return all(each.faces is cut[0].faces and each.colors is cut[0].colors for each in cut)

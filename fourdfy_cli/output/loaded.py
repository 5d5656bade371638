"""`fourdfy_cli.load`: a finished or unfinished scene from Python. No diffusion model is loaded.

Notation: angles of `cameras` in degrees, world units (the scene box is [-1,1]^3, z up), times in [0,1], rgb in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fourdfy_cli.config import Recipe
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import mesh
from fourdfy_cli.output import render as pictures
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Frames, Scene, render

Numbers = float | Sequence[float] | Tensor


class Cameras(NamedTuple):
    """V cameras as in scene/cameras.py: c2w [V 4 4], fovy [V] in radians."""

    c2w: Tensor
    fovy: Tensor


def cameras(azimuth: Numbers = 0.0, elevation: Numbers = 15.0, distance: Numbers = 3.0, fovy: Numbers = 40.0) -> Cameras:
    """Cameras that look at the origin, one for each number; a single number holds for all of them. Degrees and world units; azimuth 0 is
    on +x. Raises FourdfyError (code 2) for lists of different lengths."""
    parts = [torch.as_tensor(part, dtype=torch.float32).reshape(-1) for part in (azimuth, elevation, distance, fovy)]
    a, e, d, f = _together("azimuth, elevation, distance and fovy", parts)
    return Cameras(orbit_camera(torch.deg2rad(a), torch.deg2rad(e), d), torch.deg2rad(f))


def _together(what: str, parts: list[Tensor]) -> list[Tensor]:
    """Parts of one length, those of length 1 repeated. Raises FourdfyError (code 2)."""
    lengths = [len(part) for part in parts]
    count = max(lengths) if min(lengths) else 0
    if any(length not in (1, count) for length in lengths):
        raise FourdfyError(f"{what} are {', '.join(map(str, lengths))} numbers; they want one length, or 1", "", USAGE)
    return [part.expand(count, *part.shape[1:]) for part in parts]


@dataclass(frozen=True)
class LoadedScene:
    """A scene with what its checkpoint says of it: prompt, seed, stage, step, recipe. `model` is the torch module."""

    path: Path
    model: Scene = field(repr=False)
    recipe: Recipe = field(repr=False)
    prompt: str
    seed: int
    stage: int
    step: int

    @torch.no_grad()
    def render(self, cameras: Cameras, times: Numbers = 0.0, size: int | tuple[int, int] = 256) -> Frames:
        """What V cameras see at V times: rgb [V H W 3], opacity and depth [V H W], on the CPU. One camera at many times or many at one are
        repeated. `size` is pixels a side or (height, width). Depth is in world units, of light that stops: divide it by opacity.

        Raises FourdfyError (code 2) for numbers that do not go together.
        """
        time = torch.as_tensor(times, dtype=torch.float32).reshape(-1)
        c2w, fovy, time = _together("cameras and times", [cameras.c2w, cameras.fovy.reshape(-1), time])
        height, width = (size, size) if isinstance(size, int) else size
        if not (1 <= height <= 8192 and 1 <= width <= 8192 and bool(((time >= 0) & (time <= 1)).all())):
            raise FourdfyError("sizes are 1 to 8192 pixels, times 0 to 1", "", USAGE)
        shot = Shot(c2w, fovy, time, (height, width))
        views = [self.view(shot[k : k + 1]) for k in range(len(shot))]
        return Frames(*(torch.cat(parts).cpu() for parts in zip(*views, strict=True))) if views else _no_frames(height, width)

    def view(self, shot: Shot) -> Frames:
        """What a shot shows, on the backdrop that the scene was trained on."""
        device = self.model.blob_std.device
        ground = pictures.backdrop(self.recipe)
        return render(self.model, shot.to(device), float(self.model.blob_std), None if ground is None else ground.to(device))

    def mesh(self, time: float = 0.0, threshold: float | None = None, faces: int | None = None) -> mesh.Mesh:
        """The surface at a time: vertices, faces, normals, colors, threshold (chosen from the scene unless given), at most about `faces`
        triangles. Raises FourdfyError: code 1 if there is nothing at that time, code 3 without the extra [export]."""
        return mesh.mesh(self.model, time, threshold, faces)

    @torch.no_grad()
    def field(self, x: Any, t: Numbers = 0.0) -> tuple[Tensor, Tensor]:
        """Density [N] per world unit and rgb [N 3] at points x [N 3] of the box [-1,1]^3 and moments t (one number or N), on the CPU.
        Outside the box there is nothing. Raises FourdfyError (code 2) for shapes that do not go together."""
        like = self.model.blob_std
        points, time = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(t, dtype=torch.float32).reshape(-1)
        if points.ndim != 2 or points.shape[1] != 3:
            raise FourdfyError(f"points are [N 3], not {list(points.shape)}", "", USAGE)
        points, time = _together("points and times", [points, time])
        inside = (points.abs() <= 1).all(-1)
        density, rgb = (part.cpu() for part in mesh.field(self.model, points.clamp(-1, 1).to(like), time.to(like)))
        return density * inside, rgb


def _no_frames(height: int, width: int) -> Frames:
    return Frames(torch.zeros(0, height, width, 3), torch.zeros(0, height, width), torch.zeros(0, height, width))


def load(path: str | Path, device: str = "cpu", backend: str = "auto") -> LoadedScene:
    """The scene of a run folder or a checkpoint, on "cpu", "cuda" or "cuda:1".

    Raises FourdfyError: code 2 if there is none, code 6 if it is damaged or does not fit its own recipe.
    """
    scene, recipe, meta = pictures.load_scene(Path(path).expanduser(), device, backend)
    return LoadedScene(Path(path), scene, recipe, meta["prompt"], meta["seed"], meta["stage"], meta["step"])

"""Camera paths: `render --path orbit|mav3d|fixed|FILE.json`.

A file holds {"fps": 15, "size": 256, "frames": [{"azimuth": 0, "elevation": 15, "distance": 3, "fovy": 40, "time": 0}, ...]}: degrees,
world units, times in [0,1]; cameras look at the origin, azimuth 0 is on +x, z is up. What stands beside "frames" holds for every frame
that does not say otherwise. `fps` and `size` (pixels a side) may be left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli import config
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import limits, render
from fourdfy_cli.output.textfile import read_object, typed
from fourdfy_cli.scene.cameras import Shot, mav3d, orbit_camera

NAMES = ("orbit", "mav3d", "fixed")
RANGES = {"azimuth": (-math.inf, math.inf), "elevation": (-89.9, 89.9), "distance": (1e-3, 1e3), "fovy": (0.1, 179.0), "time": (0.0, 1.0)}
SIZES, RATES, MOST = (16, 2048), (0.1, 240.0), 1e9


@dataclass(frozen=True)
class Film:
    """A shot to be shown at `fps` frames a second; `name` is the video's, without suffix."""

    name: str
    shot: Shot
    fps: float


def film(wanted: str, recipe: config.Recipe, size: int | None = None) -> Film:
    """The path of that name or in that file, `size` pixels a side if given. fixed: the orbit's times seen from its first camera.

    Raises FourdfyError (exit 2) for a name that is none and a file that does not hold a path.
    """
    if wanted == "mav3d":
        return Film(wanted, mav3d(size or 256), 15)
    if wanted in NAMES:
        orbit = render.orbit_of(recipe, size)
        around = orbit.shot()
        return Film(wanted, around if wanted == "orbit" else render.shot(torch.zeros(len(around)), around.time, orbit), 16)
    if wanted.endswith(".json"):
        return read(Path(wanted), size)
    raise FourdfyError(f"there is no path {wanted!r}", f"one of {', '.join(NAMES)} or a FILE.json: --path mav3d", USAGE)


def read(path: Path, size: int | None = None) -> Film:
    """A path from a file; raises FourdfyError (exit 2) that says what is wrong in it."""
    told = read_object(path)
    frames = told.get("frames")
    if not (isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames)):
        raise _wrong(path, '"frames" must be a list of objects, at least one')
    if len(frames) > limits.FRAMES:
        raise _wrong(path, f"{len(frames)} frames are more than {limits.FRAMES}")
    common = {name: value for name, value in told.items() if name != "frames"}
    fps, pixels = (common.pop(name, default) for name, default in (("fps", 15), ("size", 256)))
    pixels = size or int(_number(path, "size", pixels, SIZES))
    fps = _number(path, "fps", fps, RATES)
    limits.check_film(path, pixels, pixels, len(frames), _look(path))
    values = [_camera(path, k, common | frame) for k, frame in enumerate(frames)]
    azimuth, elevation, distance, fovy, time = torch.tensor(values).unbind(1)
    c2w = orbit_camera(torch.deg2rad(azimuth), torch.deg2rad(elevation), distance)
    return Film(path.stem, Shot(c2w, torch.deg2rad(fovy), time, (pixels, pixels)), fps)


def _camera(path: Path, k: int, told: dict[str, Any]) -> list[float]:
    """The numbers of frame k in the order of RANGES."""
    unknown = [name for name in told if name not in RANGES]
    if unknown:
        raise _wrong(path, f"frame {k}: there is no {unknown[0]!r}, only {', '.join(RANGES)}")
    return [_number(path, f"frame {k}: {name}", told.get(name), bounds) for name, bounds in RANGES.items()]


def _number(path: Path, what: str, value: Any, bounds: tuple[float, float]) -> float:
    """A finite number within the bounds; raises FourdfyError (exit 2)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and bounds[0] <= value <= bounds[1] and abs(value) < MOST):
        told = repr(value)
        raise _wrong(
            path, f"{what} must be a number from {bounds[0]:g} to {bounds[1]:g}, not {told if len(told) < 60 else told[:57] + '...'}"
        )
    return float(value)


def _wrong(path: Path, why: str) -> FourdfyError:
    return FourdfyError(f"{path} holds no camera path: {why}", _look(path), USAGE)


def _look(path: Path) -> str:
    return typed("python", "-m", "json.tool", path)

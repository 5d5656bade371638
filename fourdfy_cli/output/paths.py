"""Camera paths: `render --path orbit|fixed|turntable|mav3d|FILE.json`.

A file holds {"fps": 15, "size": 256, "frames": [{"azimuth": 0, "elevation": 15, "distance": 3, "fovy": 40, "time": 0}, ...]}: degrees,
world units, times in [0,1]; cameras look at the origin, azimuth 0 is on +x, z is up. What stands beside "frames" holds for every frame
that does not say otherwise. `fps` and `size` (pixels a side) may be left out.

Or it is a camera path of nerfstudio's viewer (its get_path_from_json): "render_width", "render_height", "fps", and in "camera_path" for
each frame "camera_to_world" (16 numbers, row by row, OpenGL axes), "fov" (vertical, degrees) and "render_time"; where that is missing, time
runs once over [0,1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdfy_cli import config
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import limits, render
from fourdfy_cli.output.textfile import read_object, typed
from fourdfy_cli.scene.cameras import Shot, mav3d, orbit_camera

NAMES = ("orbit", "fixed", "turntable", "mav3d")
RANGES = {"azimuth": (-math.inf, math.inf), "elevation": (-89.9, 89.9), "distance": (1e-3, 1e3), "fovy": (0.1, 179.0), "time": (0.0, 1.0)}
SIZES, RATES, MOST = (16, 2048), (0.1, 240.0), 1e9
SECONDS = 4  # that orbit, fixed and turntable last


@dataclass(frozen=True)
class Film:
    """A shot to be shown at `fps` frames a second; `name` is the video's, without suffix."""

    name: str
    shot: Shot
    fps: float


@dataclass(frozen=True)
class PathOptions:
    """What may be asked of a path: pixels a side (of a wide one, its height), frames a second, the moment that a turntable stands still at,
    and whether the end of time leads into its beginning (else it goes there and back)."""

    size: int | None = None
    fps: float | None = None
    time: float = 0.0
    closed: bool = True


def film(name: str, recipe: config.Recipe, wanted: PathOptions = PathOptions()) -> Film:  # noqa: B008
    """The path of that name or in that file. fixed: the orbit's times seen from its first camera; turntable: its cameras at one moment.

    Raises FourdfyError (exit 2) for a name that is none and a file that does not hold a path.
    """
    if name.endswith(".json"):
        return read(Path(name), wanted)
    if name == "mav3d":
        return Film(name, mav3d(wanted.size or 256), wanted.fps or 15)
    if name not in NAMES:
        raise FourdfyError(f"there is no path {name!r}", f"one of {', '.join(NAMES)} or a FILE.json: --path mav3d", USAGE)
    fps = wanted.fps or 16
    frames = max(1, round(SECONDS * fps))
    orbit = replace(render.orbit_of(recipe, wanted.size, frames), closed=wanted.closed)
    shot = orbit.shot()
    if name == "fixed":
        shot = render.shot(torch.zeros(frames), orbit.times(), orbit)
    elif name == "turntable":
        shot = replace(shot, time=torch.full_like(shot.time, wanted.time))
    return Film(name, shot, fps)


def read(path: Path, wanted: PathOptions = PathOptions()) -> Film:  # noqa: B008
    """A path from a file, ours or nerfstudio's; raises FourdfyError (exit 2) that says what is wrong in it."""
    told = read_object(path)
    theirs = "camera_path" in told
    key = "camera_path" if theirs else "frames"
    frames = told.pop(key, None)
    if not (isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames)):
        raise _wrong(path, f'"{key}" must be a list of objects, at least one')
    if len(frames) > limits.FRAMES:
        raise _wrong(path, f"{len(frames)} frames are more than {limits.FRAMES}")
    fps = wanted.fps or _number(path, "fps", told.pop("fps", 15), RATES)
    shot = _theirs(path, told, frames, wanted.size) if theirs else _ours(path, told, frames, wanted.size)
    limits.check_film(path, shot.size[1], shot.size[0], len(frames), _look(path))
    return Film(path.stem, shot, fps)


def _ours(path: Path, common: dict[str, Any], frames: list[dict[str, Any]], size: int | None) -> Shot:
    pixels = size or int(_number(path, "size", common.get("size", 256), SIZES))
    common = {name: value for name, value in common.items() if name not in ("size", "fps")}
    values = [_camera(path, k, common | frame) for k, frame in enumerate(frames)]
    azimuth, elevation, distance, fovy, time = torch.tensor(values).unbind(1)
    c2w = orbit_camera(torch.deg2rad(azimuth), torch.deg2rad(elevation), distance)
    return Shot(c2w, torch.deg2rad(fovy), time, (pixels, pixels))


def _theirs(path: Path, told: dict[str, Any], frames: list[dict[str, Any]], size: int | None) -> Shot:
    """nerfstudio's cameras; `size` becomes the height and the width keeps its proportion."""
    if told.get("camera_type", "perspective") != "perspective":
        raise _wrong(path, f"a camera of type {told['camera_type']!r} is not a perspective one")
    height, width = (int(_number(path, name, told.get(name), SIZES)) for name in ("render_height", "render_width"))
    height, width = (size, max(1, round(width * size / height))) if size else (height, width)
    c2w = torch.stack([_pose(path, k, frame.get("camera_to_world")) for k, frame in enumerate(frames)])
    fovy = torch.tensor([_number(path, f"frame {k}: fov", frame.get("fov"), RANGES["fovy"]) for k, frame in enumerate(frames)])
    clock = [frame.get("render_time", k / len(frames)) for k, frame in enumerate(frames)]
    time = torch.tensor([_number(path, f"frame {k}: render_time", moment, RANGES["time"]) for k, moment in enumerate(clock)])
    return Shot(c2w, torch.deg2rad(fovy), time, (height, width))


def _pose(path: Path, k: int, told: Any) -> Tensor:
    """A camera's place [4 4]; raises FourdfyError (exit 2) unless its axes are at right angles."""
    what = f"frame {k}: camera_to_world"
    if not (isinstance(told, list) and len(told) == 16):
        raise _wrong(path, f"{what} must be 16 numbers")
    pose = torch.tensor([_number(path, what, value, (-MOST, MOST)) for value in told]).view(4, 4)
    turn = pose[:3, :3]
    if not torch.allclose(turn.T @ turn, torch.eye(3), atol=1e-3) or torch.linalg.det(turn) < 0:
        raise _wrong(path, f"{what} is no turn and shift")
    return pose


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

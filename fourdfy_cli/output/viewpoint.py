"""Where somebody who looks at a scene stands: cameras of a browser, how large a picture may be so that it stays fluid, recorded paths.

Notation: c2w [4 4] as in scene/cameras.py; a browser's camera is position [3] and a unit quaternion (w, x, y, z) of OpenCV's axes (x right,
y down, looks along +z); fovy in radians; aspect = width / height.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation, Slerp

from fourdfy_cli.scene.cameras import Shot

FPS = 15  # of a recorded path
SMALLEST, STEP = 48, 16  # pixels a side
PRESETS = {  # azimuth and elevation, degrees
    "front": (0.0, 0.0),
    "right": (90.0, 0.0),
    "back": (180.0, 0.0),
    "left": (270.0, 0.0),
    "above": (0.0, 80.0),
    "orbit": (45.0, 15.0),
}


class View(NamedTuple):
    """A camera at a moment: c2w [4 4], fovy, aspect, time in [0,1]."""

    c2w: np.ndarray
    fovy: float
    aspect: float
    time: float

    def shot(self, height: int) -> Shot:
        """The view as a shot of one picture, `height` pixels high."""
        width = max(1, round(height * self.aspect))
        c2w = torch.from_numpy(self.c2w.astype(np.float32))[None]
        return Shot(c2w, torch.tensor([float(self.fovy)]), torch.tensor([float(self.time)]), (height, width))


def c2w_of(position: Sequence[float] | np.ndarray, wxyz: Sequence[float] | np.ndarray) -> np.ndarray:
    """c2w of a browser's camera."""
    w, x, y, z = (float(part) for part in wxyz)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = np.asarray(position, np.float64)
    return pose


def place(name: str, distance: float) -> tuple[float, float, float]:
    """Where the camera of a preset stands; it looks at the origin."""
    azimuth, elevation = (math.radians(angle) for angle in PRESETS[name])
    flat = distance * math.cos(elevation)
    return flat * math.cos(azimuth), flat * math.sin(azimuth), distance * math.sin(elevation)


@dataclass
class AdaptiveResolution:
    """Heights of pictures, multiples of STEP, such that one takes about so many seconds; learnt from how long the last ones took."""

    largest: int = 512
    seconds_a_pixel: float = 1.5e-5

    def height(self, aspect: float, seconds: float) -> int:
        """Pixels high, of a picture that takes that long."""
        side = math.sqrt(seconds / self.seconds_a_pixel / max(aspect, 1e-3))
        return self.bounded(int(side) // STEP * STEP)

    def bounded(self, height: int) -> int:
        return max(min(SMALLEST, self.largest), min(self.largest, height))

    def learn(self, pixels: int, seconds: float) -> None:
        """Take in how long a picture took; the last few count."""
        self.seconds_a_pixel += 0.4 * (seconds / max(pixels, 1) - self.seconds_a_pixel)


def path_file(moments: Sequence[tuple[float, View]], size: int) -> dict[str, Any]:
    """A recorded path, (seconds, view) in order, as nerfstudio's camera-path JSON at FPS pictures a second. Turns and moves evenly from
    each view to the next, and through time: also over its end, where it starts again.

    Source: nerfstudio's viewer, `camera_path` with `camera_to_world` (row by row), `fov` (degrees, upright) and `render_time`.
    """
    views = even(moments)
    aspect = views[0].aspect
    frames = [
        {
            "camera_to_world": [round(float(number), 6) for number in view.c2w.ravel()],
            "fov": round(math.degrees(view.fovy), 4),
            "aspect": round(aspect, 4),
            "render_time": round(view.time, 5),
        }
        for view in views
    ]
    height = size
    return {
        "camera_type": "perspective",
        "render_height": height,
        "render_width": max(1, round(height * aspect)),
        "fps": FPS,
        "seconds": len(frames) / FPS,
        "camera_path": frames,
    }


def even(moments: Sequence[tuple[float, View]]) -> list[View]:
    """The views at FPS moments a second between the first and the last one."""
    seconds = np.array([moment for moment, _ in moments])
    kept = [0, *(k for k in range(1, len(seconds)) if seconds[k] > seconds[k - 1])]
    views = [moments[k][1] for k in kept]
    if len(views) == 1:
        return views
    seconds = seconds[kept] - seconds[0]
    at = np.arange(int(seconds[-1] * FPS) + 1) / FPS
    turn = Slerp(seconds, Rotation.from_matrix(np.stack([view.c2w[:3, :3] for view in views])))(at).as_matrix()
    position = np.stack([np.interp(at, seconds, [view.c2w[axis, 3] for view in views]) for axis in range(3)], 1)
    time = np.interp(at, seconds, unwrapped([view.time for view in views])) % 1
    fovy = np.interp(at, seconds, [view.fovy for view in views])
    return [View(posed(*pose), float(f), views[0].aspect, float(t)) for *pose, f, t in zip(turn, position, fovy, time, strict=True)]


def posed(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    return pose


def unwrapped(times: Sequence[float]) -> np.ndarray:
    """Times of a film that may start again: a fall by more than a half is one that goes on beyond the end."""
    step = np.diff(np.asarray(times, np.float64), prepend=times[0])
    return times[0] + np.cumsum(np.where(step < -0.5, step + 1, step))

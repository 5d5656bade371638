"""Frames as a data set for other trainers, in nerfstudio's convention (its nerfstudio and depth data parsers).

transforms.json: pinhole intrinsics in pixels and, for each frame, `transform_matrix` (camera to world, OpenGL axes: x right, y up, looks
along -z; the world is z up), `time` in [0,1], an RGBA picture, alpha not multiplied in, and a 16-bit PNG of depths along the camera's
axis in thousandths of a world unit, 0 where a ray keeps more than half of its light. The world is the box [-1,1]^3 already:
`ns-train ... nerfstudio-data --center-method none --auto-scale-poses False`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourdfy_cli.output.render import RenderedView
from fourdfy_cli.scene.cameras import Shot

UNIT = 0.001  # nerfstudio's depth_unit_scale_factor
SOLID = 0.5  # opacity from which a depth is told


def axis_share(shot: Shot, k: int) -> np.ndarray:
    """What a world unit along each ray [H W] of view k is along the camera's axis."""
    height, width = shot.size
    focal = focal_length(shot, k)
    y, x = np.mgrid[:height, :width] + 0.5
    return 1 / np.sqrt(1 + ((x - width / 2) / focal) ** 2 + ((y - height / 2) / focal) ** 2)


def focal_length(shot: Shot, k: int) -> float:
    """Pixels."""
    return 0.5 * shot.size[0] / math.tan(float(shot.fovy[k]) / 2)


def save(folder: Path, shot: Shot, k: int, view: RenderedView, distance: np.ndarray) -> None:
    """images/0000.png and depth/0000.png of view k; distance [H W] along the rays, world units."""
    for name in ("images", "depth"):
        (folder / name).mkdir(exist_ok=True)
    depth = np.where(view.opacity > SOLID, distance * axis_share(shot, k) / UNIT, 0).round().clip(0, 65535)
    Image.fromarray(view.cut_out).save(folder / "images" / f"{k:04}.png")
    Image.fromarray(depth.astype(np.uint16)).save(folder / "depth" / f"{k:04}.png")


def save_cameras(folder: Path, shot: Shot, fps: float) -> None:
    """transforms.json; intrinsics stand at the top if all frames have the same."""
    height, width = shot.size
    frames: list[dict[str, Any]] = [_frame(shot, k) for k in range(len(shot))]
    told = {"camera_model": "OPENCV", "w": width, "h": height, "cx": width / 2, "cy": height / 2, "fps": fps}
    told |= {"orientation_override": "none", "depth_unit_scale_factor": UNIT, "aabb_scale": 1}
    lens = [{"fl_x": focal_length(shot, k), "fl_y": focal_length(shot, k)} for k in range(len(shot))]
    if all(one == lens[0] for one in lens):
        told |= lens[0] | {"camera_angle_x": 2 * math.atan(0.5 * width / lens[0]["fl_x"])}
    else:
        frames = [frame | one for frame, one in zip(frames, lens, strict=True)]
    (folder / "transforms.json").write_text(json.dumps(told | {"frames": frames}, indent=1), encoding="utf-8")


def _frame(shot: Shot, k: int) -> dict[str, Any]:
    return {
        "file_path": f"images/{k:04}.png", "depth_file_path": f"depth/{k:04}.png", "time": float(shot.time[k]),
        "transform_matrix": shot.c2w[k].tolist(),
    }  # fmt: skip

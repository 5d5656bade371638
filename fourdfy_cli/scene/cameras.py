"""Cameras, rays and shots.

Notation: the world is right-handed with z up; a camera at azimuth 0 sits on +x and looks at the origin. `c2w` [V 4 4]
has columns right, up, backward, position (OpenGL: x right, y up, looks along -z). `fovy` is the vertical field of
view. Angles are radians here, degrees in presets and on the command line. Pixel centres lie at +0.5 and row 0 is the
top. Times are in [0,1]. Conventions and distributions: the released code of 4D-fy (data/uncond.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Shot:
    """V views, each a camera at a moment: c2w [V 4 4], fovy [V] radians, time [V] in [0,1], size (height, width)."""

    c2w: Tensor
    fovy: Tensor
    time: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, views: slice) -> Shot:
        return Shot(self.c2w[views], self.fovy[views], self.time[views], self.size)

    def to(self, device: torch.device | str) -> Shot:
        return Shot(self.c2w.to(device), self.fovy.to(device), self.time.to(device), self.size)

    def azimuth(self) -> Float[Tensor, " V"]:
        """Azimuth of each camera, radians in (-pi, pi]."""
        return torch.atan2(self.c2w[:, 1, 3], self.c2w[:, 0, 3])

    def elevation(self) -> Float[Tensor, " V"]:
        """Elevation of each camera above the horizon, radians."""
        position = self.c2w[:, :3, 3]
        return torch.asin((position[:, 2] / position.norm(dim=-1)).clamp(-1, 1))


def orbit_camera(azimuth: Float[Tensor, " V"], elevation: Float[Tensor, " V"], distance: Float[Tensor, " V"]) -> Float[Tensor, "V 4 4"]:
    """c2w of cameras that look at the origin, position = distance (cos e cos a, cos e sin a, sin e)."""
    flat = torch.zeros_like(azimuth)
    backward = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), flat], -1)
    up = torch.linalg.cross(backward, right)
    rotation = torch.stack([right, up, backward, backward * distance[:, None]], -1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=azimuth.dtype, device=azimuth.device).expand(len(azimuth), 1, 4)
    return torch.cat([rotation, last], 1)


def rays(shot: Shot) -> tuple[Float[Tensor, "V H W 3"], Float[Tensor, "V H W 3"]]:
    """Origins and unit directions of one ray through each pixel centre; focal length 0.5 H / tan(fovy / 2)."""
    height, width = shot.size
    focal = 0.5 * height / torch.tan(shot.fovy / 2)
    device, dtype = shot.c2w.device, shot.c2w.dtype
    row = -(torch.arange(height, device=device, dtype=dtype) + 0.5 - height / 2)
    column = torch.arange(width, device=device, dtype=dtype) + 0.5 - width / 2
    x = (column[None, None] / focal[:, None, None]).expand(-1, height, -1)
    y = (row[None, :, None] / focal[:, None, None]).expand(-1, -1, width)
    camera = torch.stack([x, y, -torch.ones_like(x)], -1)
    world = torch.einsum("vij,vhwj->vhwi", shot.c2w[:, :3, :3], camera)
    origin = shot.c2w[:, None, None, :3, 3].expand_as(world)
    return origin, torch.nn.functional.normalize(world, dim=-1)


def unit_camera(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "V 16"]:
    """MVDream's camera input: c2w with its translation scaled to unit length, flattened row by row."""
    camera = c2w.clone()
    camera[:, :3, 3] = torch.nn.functional.normalize(camera[:, :3, 3], dim=-1)
    return camera.flatten(1)


def moment(time: Float[Tensor, " V"]) -> Float[Tensor, "V 2"]:
    """Where in its period a motion is: (cos 2 pi t, sin 2 pi t)."""
    return torch.stack([(2 * math.pi * time).cos(), (2 * math.pi * time).sin()], -1)


def timed_camera(c2w: Float[Tensor, "V 4 4"], time: Float[Tensor, " V"]) -> Float[Tensor, "V 18"]:
    """What the nano multi-view model is told of a view: its camera and its moment, (0, 0) for any."""
    return torch.cat([unit_camera(c2w), moment(time)], -1)


def turntable(frames: int, elevation: float, distance: float, fovy: float, size: int, turns: float = 1.0) -> Shot:
    """`frames` views around the object while time runs once over [0,1); angles in radians."""
    k = torch.arange(frames, dtype=torch.float32) / frames
    full = torch.full((frames,), 1.0)
    return Shot(orbit_camera(2 * math.pi * turns * k, elevation * full, distance * full), fovy * full, k, (size, size))


def mav3d(size: int) -> Shot:
    """The evaluation path of the released code of 4D-fy ("motion_smooth", after MAV3D): 124 frames at 15 fps, elevation
    15, distance 3, fovy 40 degrees. Four blocks of 16 frames at azimuth 360, 270, 180, 90 and 15 frames of 6 degrees
    each towards the next; time runs over 62 of 64 samples of [0,1], twice."""
    still, moving = torch.zeros(16), -6.0 * torch.arange(1, 16)
    azimuth = torch.cat([360.0 - 90 * block + torch.cat([still, moving]) for block in range(4)])
    time = torch.linspace(0, 1, 64)[:62].repeat(2)
    full = torch.ones_like(azimuth)
    c2w = orbit_camera(torch.deg2rad(azimuth), math.radians(15) * full, 3.0 * full)
    return Shot(c2w, math.radians(40) * full, time, (size, size))

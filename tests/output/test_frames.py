"""Frames for other trainers: what transforms.json says is where things are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from samples import TINY, ball, matter, scene

from fourdfy_cli.output import colours, frames, mesh, render, surface
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Scene

FINE = 8  # a pixel of a drawn silhouette is looked up in the middle of FINE x FINE


def projected(points: np.ndarray, told: dict, frame: dict) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N 2] (x right, y down) and distance along the camera's axis [N], as nerfstudio's convention has it."""
    to_camera = np.linalg.inv(np.array(frame["transform_matrix"]))
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    x, y = told["fl_x"] * seen[:, 0] / -seen[:, 2] + told["cx"], told["fl_y"] * seen[:, 1] / seen[:, 2] + told["cy"]
    return np.stack([x, y], 1), -seen[:, 2]


def silhouette(body: mesh.Mesh, told: dict, frame: dict) -> np.ndarray:
    picture = Image.new("1", (told["w"] * FINE, told["h"] * FINE))
    pen, pixels = ImageDraw.Draw(picture), projected(body.vertices, told, frame)[0] * FINE - 0.5
    for face in body.faces:
        pen.polygon([tuple(pixels[k]) for k in face], fill=1)
    return np.asarray(picture)[FINE // 2 :: FINE, FINE // 2 :: FINE]


class Fog(torch.nn.Module):
    """Density of a ball that grows inwards, over a third of its radius: light is lost far behind the surface."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, blob_std: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self.density(x, time, blob_std), (x + 1) / 2

    def density(self, x: torch.Tensor, time: torch.Tensor, blob_std: float) -> torch.Tensor:
        return 12 * torch.sigmoid(-ball(x, time) / 0.06)


def fog() -> Scene:
    made = matter()
    made.field = Fog()
    return made


@pytest.mark.parametrize(("size", "made"), [((64, 64), matter()), ((48, 72), matter()), ((64, 64), fog())], ids=["square", "wide", "fog"])
def test_the_cameras_fit_silhouette_and_depth(tmp_path: Path, size: tuple[int, int], made: Scene):
    c2w = orbit_camera(torch.tensor([0.3, 2.0, 4.5]), torch.tensor([0.2, -0.5, 0.9]), torch.tensor([2.5, 3.0, 2.8]))
    shot = Shot(c2w, torch.full((3,), 0.7), torch.tensor([0.0, 0.0, 0.5]), size)
    for k, (view, distance) in enumerate(zip(render.rendered_views(made, TINY, shot), surface.distances(made, shot), strict=True)):
        frames.save(tmp_path, shot, k, view, distance)
    frames.save_cameras(tmp_path, shot, 16)
    told = json.loads((tmp_path / "transforms.json").read_text())
    assert (told["h"], told["w"]) == size and len(told["frames"]) == 3
    for frame in told["frames"]:
        body = mesh.mesh(made, frame["time"], resolution=64)
        picture = np.asarray(Image.open(tmp_path / frame["file_path"]))
        depth = np.asarray(Image.open(tmp_path / frame["depth_file_path"]))
        assert picture.shape == (*size, 4) and depth.dtype == np.uint16
        drawn, seen = silhouette(body, told, frame), picture[..., 3] > 127
        assert (drawn & seen).sum() / (drawn | seen).sum() > 0.95
        pixels, away = projected(body.vertices, told, frame)
        towards = np.array(frame["transform_matrix"])[:3, 3] - body.vertices
        front = (body.normals * towards).sum(1) > 0.5 * np.linalg.norm(towards, axis=1)
        column, row = pixels[front].astype(int).T
        read = depth[row, column] * told["depth_unit_scale_factor"]
        assert (read > 0).mean() > 0.99 and np.median(np.abs(read - away[front])) < 0.01 * 2
        assert ((depth > 0) == seen).mean() > 0.99


def test_lenses_that_differ_stand_with_their_frames(tmp_path: Path):
    shot = Shot(orbit_camera(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0)), torch.tensor([0.5, 0.7]), torch.zeros(2), (32, 64))
    frames.save_cameras(tmp_path, shot, 16)
    told = json.loads((tmp_path / "transforms.json").read_text())
    assert "fl_x" not in told and [f["fl_y"] for f in told["frames"]] == pytest.approx([16 / math.tan(0.25), 16 / math.tan(0.35)])
    frames.save_cameras(tmp_path, shot[:1], 16)
    told = json.loads((tmp_path / "transforms.json").read_text())
    assert told["fl_x"] == pytest.approx(16 / math.tan(0.25)) and told["camera_angle_x"] == pytest.approx(2 * math.atan(32 / told["fl_x"]))


def test_cut_out_over_the_backdrop_is_the_picture():
    view = next(iter(render.rendered_views(scene(), TINY, render.orbit_of(TINY, 24, 1).shot())))
    alpha = view.cut_out[..., 3:] / 255
    assert 0 < alpha.mean() < 1
    assert np.abs(view.cut_out[..., :3] * alpha + 0.6 * 255 * (1 - alpha) - view.picture).max() < 2.5


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Bytes as OKLab, by the inverse of the published matrices."""
    flat = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    return np.cbrt(flat @ np.linalg.inv(np.array(colours.TO_RGB)).T) @ np.linalg.inv(np.array(colours.TO_LMS)).T


def test_depth_colours_are_evenly_apart():
    lab = oklab(colours.ramp().astype(float))
    assert (np.diff(lab[::8, 0]) < 0).all() and lab[0, 0] > 0.9 and lab[-1, 0] < 0.35
    steps = np.linalg.norm(np.diff(lab[::16], axis=0), axis=1)
    assert steps.max() / steps.min() < 1.15
    picture = colours.depth_picture(np.array([[1.0, 2.0, 3.0, 9.0]]), np.array([[1.0, 0.5, 1.0, 0.0]]), 1.0, 3.0)
    assert picture[0, :, 3].tolist() == [255, 128, 255, 0] and (picture[0, [0, 2], :3] == colours.ramp()[[0, 255]]).all()
    assert colours.over_black(picture)[0, 3].tolist() == [0, 0, 0]

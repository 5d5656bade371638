"""Cameras, sizes and paths of the viewer, without a browser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import fourdfy_cli as fourdfy
from fourdfy_cli.output.viewpoint import FPS, PRESETS, STEP, AdaptiveResolution, View, c2w_of, even, path_file, place, unwrapped


def quaternion(c2w: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a camera with OpenCV's axes."""
    x, y, z, w = Rotation.from_matrix(c2w[:3, :3] @ np.diag([1.0, -1.0, -1.0])).as_quat()
    return np.array([w, x, y, z])


@pytest.mark.parametrize("name", PRESETS)
def test_a_browsers_camera_is_ours(name: str):
    azimuth, elevation = PRESETS[name]
    ours = fourdfy.cameras(azimuth, elevation, 2.5).c2w[0].double().numpy()
    assert np.allclose(c2w_of(place(name, 2.5), quaternion(ours)), ours, atol=1e-6)


def test_a_view_is_a_shot():
    view = View(fourdfy.cameras(30).c2w[0].numpy(), 0.7, 1.5, 0.25)
    shot = view.shot(64)
    assert shot.size == (64, 96) and float(shot.time) == 0.25 and math.isclose(float(shot.fovy), 0.7, rel_tol=1e-6)
    assert torch.equal(shot.c2w, fourdfy.cameras(30).c2w)


def test_pictures_shrink_until_they_are_fluid_and_grow_again():
    fluid, cost = AdaptiveResolution(largest=512), 1e-5
    for _ in range(20):
        height = fluid.height(1.5, 0.1)
        fluid.learn(height * round(1.5 * height), cost * height * round(1.5 * height))
    assert height % STEP == 0 and 0.05 < cost * 1.5 * height**2 <= 0.1
    for _ in range(40):
        fluid.learn(100, 1e-9)
    assert fluid.height(1.5, 0.1) == 512
    fluid.learn(1, 1e9)
    assert fluid.height(1.5, 0.1) == 48 and AdaptiveResolution(largest=32).height(1.0, 1e9) == 32


def test_times_run_on_over_the_end():
    assert np.allclose(unwrapped([0.8, 0.9, 0.05, 0.2]), [0.8, 0.9, 1.05, 1.2])
    assert np.allclose(unwrapped([0.8, 0.6, 0.4]), [0.8, 0.6, 0.4])


def moments() -> list[tuple[float, View]]:
    """A quarter turn in two seconds, told at uneven moments, while time runs over its end."""
    told = []
    for second in (0.0, 0.1, 0.7, 0.7, 1.3, 2.0):
        c2w = fourdfy.cameras(45.0 * second, 0.0).c2w[0].double().numpy()
        told.append((100.0 + second, View(c2w, math.radians(40), 1.25, (0.8 + 0.2 * second) % 1)))
    return told


def test_a_recorded_path_moves_evenly():
    views = even(moments())
    assert len(views) == 2 * FPS + 1
    for k, view in enumerate(views):
        azimuth = math.degrees(math.atan2(view.c2w[1, 2], view.c2w[0, 2]))  # where it looks from
        assert math.isclose(azimuth, 45.0 * k / FPS, abs_tol=0.05) and np.allclose(view.c2w[:3, :3] @ view.c2w[:3, :3].T, np.eye(3))
        assert math.isclose(view.time, (0.8 + 0.2 * k / FPS) % 1, abs_tol=1e-9)


def test_the_file_is_a_camera_path():
    told = path_file(moments(), 512)
    assert (told["render_height"], told["render_width"], told["fps"], told["camera_type"]) == (512, 640, FPS, "perspective")
    assert len(told["camera_path"]) == 2 * FPS + 1 and math.isclose(told["seconds"], (2 * FPS + 1) / FPS)
    first, last = told["camera_path"][0], told["camera_path"][-1]
    assert np.allclose(np.reshape(first["camera_to_world"], (4, 4)), fourdfy.cameras(0, 0).c2w[0].numpy(), atol=1e-5)
    assert np.allclose(np.reshape(last["camera_to_world"], (4, 4)), fourdfy.cameras(90, 0).c2w[0].numpy(), atol=1e-5)
    assert (first["fov"], first["aspect"], first["render_time"]) == (40.0, 1.25, 0.8) and math.isclose(
        last["render_time"], 0.2, abs_tol=1e-4
    )
    assert len(path_file(moments()[:1], 512)["camera_path"]) == 1

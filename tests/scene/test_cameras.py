"""Camera conventions by known positions and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdfy_cli.scene.cameras import Shot, mav3d, moment, orbit_camera, rays, turntable, unit_camera


def camera(azimuth: float, elevation: float, distance: float) -> torch.Tensor:
    return orbit_camera(*(torch.tensor([v], dtype=torch.float64) for v in (azimuth, elevation, distance)))


def shot(c2w: torch.Tensor, fovy: float, size: tuple[int, int]) -> Shot:
    return Shot(c2w, torch.full((len(c2w),), fovy, dtype=c2w.dtype), torch.zeros(len(c2w), dtype=c2w.dtype), size)


def test_azimuth_zero_sits_on_x_and_looks_back():
    expected = torch.tensor([[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(camera(0, 0, 2)[0], expected)


@settings(max_examples=50, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(0.5, 5))
def test_any_camera_is_a_rotation_that_looks_at_the_origin(azimuth, elevation, distance):
    c2w = camera(azimuth, elevation, distance)[0]
    rotation, position = c2w[:3, :3], c2w[:3, 3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64))
    assert math.isclose(float(torch.linalg.det(rotation)), 1, abs_tol=1e-9)
    torch.testing.assert_close(position - distance * rotation[:, 2], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert rotation[2, 0] == 0 and rotation[2, 1] >= 0  # the horizon is level, up is up
    view = shot(c2w[None], 1.0, (1, 1))
    assert math.isclose(float(view.azimuth()), azimuth, abs_tol=1e-6)
    assert math.isclose(float(view.elevation()), elevation, abs_tol=1e-6)


def test_rays_meet_known_pixels():
    origin, direction = rays(shot(camera(0, 0, 2), math.pi / 2, (2, 4)))
    assert origin.shape == direction.shape == (1, 2, 4, 3)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(1, 2, 4, dtype=torch.float64))
    # Focal length 1 pixel: the top left pixel's centre is 1.5 left and 0.5 up of the axis; left of a camera on +x is -y.
    expected = torch.tensor([-1.0, -1.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(direction[0, 0, 0], expected / expected.norm())
    torch.testing.assert_close(origin[0, 1, 2], torch.tensor([2.0, 0, 0], dtype=torch.float64))


def test_field_of_view_spans_the_height():
    _, direction = rays(shot(camera(0.3, 0.2, 2), 0.7, (100, 100)))
    edge = torch.acos((direction[0, 0, 49:51].mean(0) * direction[0, -1, 49:51].mean(0)).sum())
    assert abs(float(edge) - 0.7) < 0.01


def test_unit_camera_scales_the_position_alone_and_a_copy_of_it():
    c2w = camera(1, 0.5, 2.7)
    before = c2w.clone()
    flat = unit_camera(c2w)
    assert torch.equal(c2w, before)
    torch.testing.assert_close(flat.view(4, 4)[:3, 3].norm(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(flat.view(4, 4)[:, :3], c2w[0, :, :3])


def test_a_moment_is_a_point_of_the_period():
    told = moment(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(told, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0]], dtype=torch.float64), atol=1e-12)


def test_slices_of_a_shot_keep_its_size():
    views = turntable(8, 0.2, 2.5, 0.7, 16)
    assert len(views) == 8 and len(views[2:4]) == 2 and views[2:4].size == (16, 16)
    torch.testing.assert_close(views[2:4].azimuth(), torch.tensor([math.pi / 2, 3 * math.pi / 4]))
    torch.testing.assert_close(views.time, torch.arange(8) / 8)


# The evaluation path frame by frame. Source: the released code of 4D-fy (data/uncond.py, test_traj "motion_smooth", 16 frames times 4,
# 4 blocks): torch.full((16,), start), then torch.linspace(start, end, 16)[1:]; linspace(0, 1, 64) less its last two, twice.
MAV3D_AZIMUTHS = (
    *[360] * 16, 354, 348, 342, 336, 330, 324, 318, 312, 306, 300, 294, 288, 282, 276, 270,
    *[270] * 16, 264, 258, 252, 246, 240, 234, 228, 222, 216, 210, 204, 198, 192, 186, 180,
    *[180] * 16, 174, 168, 162, 156, 150, 144, 138, 132, 126, 120, 114, 108, 102, 96, 90,
    *[90] * 16, 84, 78, 72, 66, 60, 54, 48, 42, 36, 30, 24, 18, 12, 6, 0,
)  # fmt: skip
MAV3D_TIMES = [k / 63 for k in range(62)] * 2


def test_the_mav3d_path_frame_by_frame():
    path = mav3d(256)
    assert len(path) == len(MAV3D_AZIMUTHS) == len(MAV3D_TIMES) == 124 and path.size == (256, 256)
    for k, (azimuth, time) in enumerate(zip(MAV3D_AZIMUTHS, MAV3D_TIMES, strict=True)):
        a, e = math.radians(azimuth), math.radians(15)
        position = torch.tensor([3 * math.cos(e) * math.cos(a), 3 * math.cos(e) * math.sin(a), 3 * math.sin(e)])
        torch.testing.assert_close(path.c2w[k, :3, 3], position, rtol=0, atol=1e-5)
        torch.testing.assert_close(path.c2w[k, :3, 2], position / 3, rtol=0, atol=1e-5)  # looks at the origin
        assert float(path.time[k]) == pytest.approx(time, abs=1e-6)
        assert float(path.fovy[k]) == pytest.approx(math.radians(40))

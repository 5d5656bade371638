"""Measures against plain loops and closed forms; the picture of the profiles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourdfy_cli.evaluate import measures, profile
from fourdfy_cli.scene.cameras import mav3d


def unit(angles: list[float]) -> torch.Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_clip_f_is_the_mean_cosine_of_neighbours():
    embedding = unit([0.0, 0.1, 0.4, 0.4])
    assert measures.clip_f(embedding) == pytest.approx(100 * (math.cos(0.1) + math.cos(0.3) + 1) / 3, rel=1e-6)
    assert measures.clip_f(embedding[:1]) is None


def test_r_precision_counts_frames_nearest_to_their_own_prompt():
    embedding, texts = unit([0.0, 0.2, 0.8, 3.0]), unit([0.1, 1.0, -0.5])
    assert [measures.r_precision(embedding, texts, k) for k in range(3)] == [50.0, 50.0, 0.0]
    assert measures.r_precision(embedding, texts[:1], 0) is None


def differences(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """change and bend of a video [N P], frame by frame."""
    change, bend = torch.zeros(len(pixels)), torch.zeros(len(pixels))
    for k in range(1, len(pixels)):
        change[k] = sum(abs(a - b) for a, b in zip(pixels[k].tolist(), pixels[k - 1].tolist(), strict=True)) / pixels.shape[1]
    for k in range(2, len(pixels)):
        bend[k] = (pixels[k] - 2 * pixels[k - 1] + pixels[k - 2]).abs().mean() / 2
    return change, bend


def test_motion_and_flicker_look_only_where_the_camera_is_still():
    video = torch.rand(124, 5, generator=torch.Generator().manual_seed(0))
    for block in range(4):
        ramp = 0.01 * torch.arange(16)[:, None] * torch.tensor([1.0, -1.0, 2.0, 0.0, 1.0])
        video[31 * block : 31 * block + 16] = 0.5 + ramp
    change, bend = differences(video)
    assert measures.motion(change) == pytest.approx(100 * 0.01, rel=1e-4)  # mean of 1, 1, 2, 0, 1 hundredths a frame
    assert measures.flicker(bend) == pytest.approx(0, abs=1e-4)
    for block in range(4):
        video[31 * block : 31 * block + 16] = 0.5 + 0.03 * (torch.arange(16)[:, None] % 2)
    change, bend = differences(video)
    assert measures.motion(change) == pytest.approx(3, rel=1e-4) and measures.flicker(bend) == pytest.approx(3, rel=1e-4)
    assert measures.motion(change[:-1]) is None and measures.flicker(bend[:-1]) is None


def test_still_frames_are_those_of_the_path():
    azimuth = torch.rad2deg(mav3d(1).azimuth())
    for block in measures.STILL:
        assert (azimuth[list(block)] - azimuth[block[0]]).abs().max() < 1e-4
    assert [block[0] for block in measures.STILL] == [0, 31, 62, 93] and {len(block) for block in measures.STILL} == {16}


def test_profiles_average_over_azimuths_and_times():
    azimuth = (torch.rad2deg(mav3d(1).azimuth()).round() % 360).tolist()
    curve = measures.by_azimuth(torch.tensor(azimuth))
    assert curve == [(6.0 * k, 6.0 * k) for k in range(60)]
    frames = torch.arange(124.0)
    at_270 = next(value for place, value in measures.by_azimuth(frames) if place == 270)
    assert at_270 == pytest.approx(np.mean([30, *range(31, 47)]), abs=1e-3)  # the last moving frame and the still ones after it
    times = measures.by_time(frames)
    assert [value for _, value in times] == [k + 31.0 for k in range(62)]  # frames k and k + 62
    assert [place for place, _ in times] == pytest.approx([k / 63 for k in range(62)], abs=1e-4)
    assert measures.by_azimuth(frames[1:]) is None and measures.by_time(frames[1:]) is None


def test_mean_of_curves():
    assert measures.mean_curve([[(0, 1.0), (6, 2.0)], [(0, 3.0), (6, 5.0)]]) == [(0, 2.0), (6, 3.5)]
    assert measures.mean_curve([]) is None


def test_bootstrap_interval():
    assert measures.bootstrap([30.0]) is None
    assert measures.bootstrap([30.0, 36.0]) == (30.0, 36.0)  # both ends have probability 1/4
    assert measures.bootstrap([5.0] * 7) == (5.0, 5.0)
    values = np.random.default_rng(1).normal(34, 2, 400)
    low, high = measures.bootstrap(values.tolist())
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)
    assert measures.bootstrap(values.tolist()) == (low, high) and measures.bootstrap(values.tolist(), seed=1) != (low, high)


def test_picture_of_profiles(tmp_path: Path):
    flat, rising = [(6.0 * k, 30.0) for k in range(60)], [(6.0 * k, 30 + k / 10) for k in range(60)]
    path = profile.picture(tmp_path / "new" / "p.png", {"by azimuth": {"ours": flat, "theirs": rising}, "constant": {"ours": flat}})
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (2 * profile.HEIGHT + 2 * profile.ROW + 8, profile.WIDTH, 3)
    first, second = (np.argwhere((pixels[: profile.HEIGHT] == colour).all(-1)) for colour in profile.COLOURS[:2])
    assert np.ptp(first[:, 0]) <= 2 and np.ptp(first[:, 1]) > 500  # level, across the panel
    left, right = second[second[:, 1] < 100], second[second[:, 1] > 550]
    assert left[:, 0].min() > right[:, 0].max()  # up is more
    assert not (pixels[profile.HEIGHT : 2 * profile.HEIGHT] == profile.COLOURS[1]).all(-1).any()

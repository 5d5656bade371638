"""Pictures from checkpoints: geometry of the orbit, faithful files, whole files or none."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from samples import TINY, decode, matter, save, scene

from fourdfy_cli import config
from fourdfy_cli.errors import DAMAGED, USAGE, FourdfyError
from fourdfy_cli.output import ffmpeg, render
from fourdfy_cli.output.codecs import WITH_ALPHA
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.scene.scene import render as picture_of


def test_orbit_is_one_turn_at_the_middle_of_the_training_cameras():
    orbit = render.orbit_of(TINY)
    assert (orbit.elevation, orbit.fovy, orbit.size) == (15.0, 40.0, 256) and orbit.distance == pytest.approx(2.7)
    shot = orbit.shot()
    azimuth = torch.rad2deg(shot.azimuth()) % 360
    assert torch.allclose(azimuth, torch.arange(64) * 360 / 64, atol=1e-3)
    assert torch.allclose(torch.rad2deg(shot.elevation()), torch.tensor(15.0), atol=1e-3)
    assert torch.allclose(shot.c2w[:, :3, 3].norm(dim=-1), torch.tensor(2.7))
    assert shot.time.min() == 0 and shot.time.max() < 1
    assert int((shot.time.diff() < 0).sum()) == orbit.cycles - 1


def test_size_is_the_largest_trained_on_unless_given():
    stage = replace(TINY.stage2, image=replace(TINY.stage2.image, size=(300, 300)))
    assert render.orbit_of(replace(TINY, stage2=stage)).size == 300
    assert render.orbit_of(TINY, 40).size == 40


def test_views_are_what_the_scene_renders():
    model, shot = scene(), render.orbit_of(TINY, 12, 3).shot()
    frames = picture_of(model, shot, 0.5, torch.full((3,), 0.6), None, False)
    for k, view in enumerate(render.rendered_views(model, TINY, shot)):
        assert np.abs(view.picture.astype(int) - (frames.rgb[k].clamp(0, 1) * 255).numpy()).max() <= 0.51
        assert np.allclose(view.distance * view.opacity, frames.depth[k], atol=1e-4) and np.allclose(view.opacity, frames.opacity[k])
        assert view.cut_out.shape == (12, 12, 4) and np.abs(view.cut_out[..., 3] / 255 - view.opacity).max() < 0.003


def test_background_is_plain_only_if_it_was_always_plain():
    assert torch.allclose(render.backdrop(TINY), torch.full((3,), 0.6))
    assert render.backdrop(replace(TINY, background=config.Background(random=0.5))) is None


def still(height: Callable[[torch.Tensor], torch.Tensor]) -> Scene:
    """A ball whose height is a function of time."""

    def distance(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (x - torch.stack([0 * time, 0 * time, height(time)], 1)).norm(dim=1) - 0.3

    return matter(distance)


@pytest.mark.parametrize(
    "height, closed",
    [(lambda t: 0.4 * torch.sin(2 * torch.pi * t), True), (lambda t: 0.8 * t - 0.4, False), (lambda t: 0 * t, True)],
)
def test_an_orbit_loops_whether_time_does_or_not(height: Callable[[torch.Tensor], torch.Tensor], closed: bool):
    assert render.closes(still(height), TINY) is closed
    orbit = replace(render.orbit_of(TINY, 16, 64), closed=closed)
    way = height(torch.cat([orbit.times(), orbit.times()[:1]])).diff().abs()
    assert way[-1] <= way[:-1].max() + 1e-6 and way.max() < 0.4
    assert float(orbit.times().max()) == pytest.approx(15 / 16 if closed else 1)


def test_video_round_trip(tmp_path: Path):
    frames = [np.full((33, 47, 3), value, np.uint8) for value in (20, 120, 220)]  # odd sizes are padded
    path = render.write_video(tmp_path / "new" / "a.mp4", iter(frames))
    seen = decode(path)
    assert seen.shape == (3, 34, 48, 3) and os.listdir(path.parent) == ["a.mp4"]
    assert np.abs(seen[:, 8:24, 8:40].astype(int).mean((1, 2, 3)) - [20, 120, 220]).max() < 4


@pytest.mark.parametrize("suffix", WITH_ALPHA)
def test_alpha_round_trip(tmp_path: Path, suffix: str):
    """Left half clear, right half a colour of its own in each frame."""
    frames = [np.full((33, 46, 4), value, np.uint8) for value in (60, 120, 200)]
    for frame in frames:
        frame[:, :23, 3], frame[:, 23:, 3] = 0, 255
    path = render.write_video(tmp_path / f"a{suffix}", iter(frames), 10)
    if suffix == ".webm":
        arguments = ["-c:v", "libvpx-vp9", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgba", "-"]
        raw = subprocess.run([ffmpeg.ffmpeg(), "-v", "error", *arguments], capture_output=True, check=True).stdout
        seen = np.frombuffer(raw, np.uint8).reshape(-1, 33, 46, 4)
    else:
        seen = np.stack([np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(Image.open(path))])
    assert len(seen) == 3 and seen[:, :, :20, 3].max() < 10 and seen[:, :, 26:, 3].min() > 245
    assert np.abs(seen[:, 4:-4, 28:-4, :3].mean((1, 2, 3)) - [60, 120, 200]).max() < 6


def test_same_frames_give_the_same_file(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    a, b = (render.write_video(tmp_path / name, iter(frames)) for name in ("a.mp4", "b.mp4"))
    assert a.read_bytes() == b.read_bytes()


def test_failed_video_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def failing():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render.write_video(path, failing())
    with pytest.raises(FourdfyError) as caught:
        render.write_video(path, iter([]))
    assert caught.value.code == USAGE and path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]


def test_ffmpeg_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho it hurts >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "ffmpeg", lambda: str(script))
    with pytest.raises(FourdfyError, match="it hurts"):
        render.write_video(tmp_path / "a.mp4", (np.zeros((64, 64, 3), np.uint8) for _ in range(50)))
    assert not (tmp_path / "a.mp4").exists()


def test_preview_is_azimuths_by_times(tmp_path: Path):
    path = render.preview(scene(), TINY, tmp_path / "p.png", times=2, size=10)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (20, 40, 3)
    camera = render.orbit_of(TINY, 10)
    shot = render.shot(torch.tensor([math.pi]), torch.tensor([0.5]), camera)
    rgb, *_ = render.views(scene(), TINY, shot)
    assert np.array_equal(sheet[10:20, 20:30], rgb)


def test_orbit_video(tmp_path: Path):
    assert decode(render.orbit(scene(), TINY, tmp_path / "o.mp4", size=16, frames=4)).shape == (4, 16, 16, 3)


def test_load_scene(tmp_path: Path):
    loaded, recipe, meta = render.load_scene(save(tmp_path / "a.pt", seed=3))
    assert recipe == TINY and meta == {"prompt": "a red dog", "seed": 3, "stage": 1, "step": 5, "models": "nano"}
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), scene(3).state_dict().values(), strict=True))


def test_run_folder_means_its_newest_whole_checkpoint(tmp_path: Path):
    with pytest.raises(FourdfyError) as caught:
        render.locate(tmp_path)
    assert caught.value.code == USAGE
    for stage in (1, 2):
        save(tmp_path / f"stage{stage}.pt", stage)
    assert render.locate(tmp_path).name == "stage2.pt"
    save(tmp_path / "last.pt", 3)
    assert render.locate(tmp_path).name == "last.pt"
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert render.locate(tmp_path).name == "stage2.pt"


def test_scene_that_does_not_fit_its_recipe(tmp_path: Path):
    other = replace(TINY, field=replace(TINY.field, hidden=16))
    with pytest.raises(FourdfyError) as caught:
        render.load_scene(save(tmp_path / "a.pt", recipe=other))
    assert caught.value.code == DAMAGED


def test_no_diffusion_model_is_loaded():
    names = ("diffusers", "transformers", "fourdfy_cli.diffusion")
    code = f"import sys, fourdfy_cli.output.render; print([m for m in sys.modules if m.startswith({names})])"
    assert subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

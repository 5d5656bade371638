"""`fourdfy_cli.load` against the parts that it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import TINY, save

import fourdfy_cli as fourdfy
from fourdfy_cli.output import render as pictures
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import render


@pytest.fixture
def scene(tmp_path: Path) -> fourdfy.LoadedScene:
    return fourdfy.load(save(tmp_path / "stage3.pt", stage=3))


def test_it_knows_what_its_checkpoint_says(scene: fourdfy.LoadedScene):
    assert (scene.prompt, scene.seed, scene.stage, scene.step, scene.recipe.name) == ("a red dog", 0, 3, 5, TINY.name)
    assert "a red dog" in repr(scene) and "Linear" not in repr(scene)


def test_cameras_are_those_of_the_scene():
    made, e = fourdfy.cameras(azimuth=[0, 90, -30], elevation=10, distance=[2, 3, 4]), math.radians(10)
    radians = torch.deg2rad(torch.tensor([0.0, 90.0, -30.0]))
    expected = orbit_camera(radians, torch.full((3,), math.radians(10)), torch.tensor([2.0, 3.0, 4.0]))
    assert torch.equal(made.c2w, expected) and torch.allclose(made.fovy, torch.full((3,), math.radians(40)))
    assert torch.allclose(made.c2w[1, :3, 3], torch.tensor([0.0, 3 * math.cos(e), 3 * math.sin(e)]), atol=1e-6)
    with pytest.raises(fourdfy.FourdfyError, match="one length") as caught:
        fourdfy.cameras([0, 1], [0, 1, 2])
    assert caught.value.code == 2


def test_pictures_are_the_renderers(scene: fourdfy.LoadedScene):
    made = fourdfy.cameras([0, 120])
    frames = scene.render(made, [0.25, 0.75], size=(12, 16))
    shot = Shot(made.c2w, made.fovy, torch.tensor([0.25, 0.75]), (12, 16))
    with torch.no_grad():
        expected = render(scene.model, shot, float(scene.model.blob_std), pictures.backdrop(scene.recipe))
    for ours, theirs in zip(frames, expected, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5) and not ours.requires_grad
    assert frames.opacity.max() > 0.1


def test_one_camera_at_many_times_and_many_at_one(scene: fourdfy.LoadedScene):
    assert scene.render(fourdfy.cameras(), [0, 0.5, 1], 8).rgb.shape == (3, 8, 8, 3)
    assert scene.render(fourdfy.cameras([0, 90, 180]), 0.5, 8).opacity.shape == (3, 8, 8)
    assert scene.render(fourdfy.cameras([]), [], 8).depth.shape == (0, 8, 8)
    for cameras, times, size in ((fourdfy.cameras([0, 1]), [0, 0.1, 0.2], 8), (fourdfy.cameras(), 1.5, 8), (fourdfy.cameras(), 0, 0)):
        with pytest.raises(fourdfy.FourdfyError) as caught:
            scene.render(cameras, times, size)
        assert caught.value.code == 2


def test_a_scene_trained_before_any_background_is_shown_on_its_own(tmp_path: Path):
    own = replace(TINY, background=replace(TINY.background, random=0.5))
    scene = fourdfy.load(save(tmp_path / "own.pt", recipe=own))
    c = fourdfy.cameras()
    with torch.no_grad():
        expected = render(scene.model, Shot(c.c2w, c.fovy, torch.zeros(1), (8, 8)), float(scene.model.blob_std), None)
    assert torch.equal(scene.render(c, 0.0, 8).rgb, expected.rgb)


def test_the_field_at_points(scene: fourdfy.LoadedScene):
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    density, rgb = scene.field(x.numpy().tolist(), 0.3)
    with torch.no_grad():
        expected = scene.model.field(x, torch.full((50,), 0.3), float(scene.model.blob_std))
    assert torch.allclose(density, expected[0]) and torch.allclose(rgb, expected[1]) and not density.requires_grad
    outside, _ = scene.field(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]), [0.0, 0.0])
    assert outside[0] > 0 and outside[1] == 0
    for points, times in (([0, 0, 0], 0), (torch.zeros(2, 3), [0, 0, 0])):
        with pytest.raises(fourdfy.FourdfyError) as caught:
            scene.field(points, times)
        assert caught.value.code == 2


def test_the_mesh_is_the_exports(scene: fourdfy.LoadedScene):
    pytest.importorskip("skimage")
    from fourdfy_cli.output.mesh import mesh

    ours, theirs = scene.mesh(0.5, faces=500), mesh(scene.model, 0.5, None, 500)
    assert np.array_equal(ours.vertices, theirs.vertices) and np.array_equal(ours.faces, theirs.faces) and len(ours.faces) > 20


@pytest.mark.parametrize(("content", "code"), [(None, 2), (b"PK nonsense", 6)])
def test_what_is_no_scene(tmp_path: Path, content: bytes | None, code: int):
    path = tmp_path / "last.pt"
    if content:
        path.write_bytes(content)
    with pytest.raises(fourdfy.FourdfyError) as caught:
        fourdfy.load(path)
    assert caught.value.code == code

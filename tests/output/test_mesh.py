"""Surfaces against shapes that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from samples import bent, matter, scene

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output import extras, hull, mesh, sequence


@pytest.mark.parametrize("time", [0.0, 0.5])
def test_a_ball(time: float):
    found = mesh.mesh(matter(), time, resolution=48)
    away = found.vertices - [0.2, 0, 0.4 * time * 2]
    assert np.abs(np.linalg.norm(away, axis=1) - 0.4).max() < 0.02
    assert (found.normals * away).sum(1).min() > 0.9 * 0.4 and np.allclose(np.linalg.norm(found.normals, axis=1), 1, atol=1e-5)
    assert np.abs(found.colors - (found.vertices + 1) / 2).max() < 0.04
    body = trimesh.Trimesh(found.vertices, found.faces, process=False)
    assert body.is_watertight and found.watertight and body.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.1)
    assert found.faces.dtype == np.int64 and found.vertices.dtype == np.float32
    torn = mesh.replace(found, faces=found.faces[1:])
    assert not torn.watertight


def test_fewer_faces_are_the_same_ball():
    found = mesh.mesh(matter(), 0.0, faces=300, resolution=48)
    assert 250 <= len(found.faces) <= 300 and len(found.colors) == len(found.vertices) == len(found.normals)
    assert np.abs(np.linalg.norm(found.vertices - [0.2, 0, 0], axis=1) - 0.4).max() < 0.03


def test_crumbs_go_and_a_second_thing_stays():
    def distance(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        spots = ((0.0, 0.0, 0.0, 0.4), (0.7, 0.7, 0.7, 0.2), (-0.7, -0.7, -0.7, 0.06))
        return torch.stack([(x - torch.tensor(spot[:3])).norm(dim=1) - spot[3] for spot in spots]).amin(0)

    found = mesh.mesh(matter(distance), 0.0, resolution=48)
    assert found.vertices.max() > 0.8 and found.vertices.min() > -0.5 and found.watertight


def test_a_cavity_is_filled_and_a_cup_is_not():
    """A shell of radius 0.3 to 0.5: with no way in it is a ball, through a hole of radius 0.15 one sees its inner wall."""

    def shell(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (x.norm(dim=1) - 0.4).abs() - 0.1

    def pierced(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.where((x[:, :2].norm(dim=1) < 0.15) & (x[:, 2] > 0), 1.0, shell(x, time))

    closed, cup = (mesh.cut(matter(), 0.0, mesh.densities(matter(what), 0.0, 64), 50.0) for what in (shell, pierced))
    assert closed.watertight and closed.trimesh().volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.05)
    assert np.linalg.norm(closed.vertices, axis=1).min() > 0.47
    assert cup.watertight and np.linalg.norm(cup.vertices, axis=1).min() < 0.33 and cup.trimesh().volume < 0.85 * closed.trimesh().volume


def test_what_touches_the_box_is_closed_there():
    found = mesh.mesh(matter(lambda x, time: x[:, 2]), 0.0, resolution=24)
    assert found.watertight and np.allclose([found.vertices.min(0), found.vertices.max(0)], [[-1, -1, -1], [1, 1, 0]], atol=0.06)


def test_the_threshold_fits_silhouettes_of_fog():
    """Where the fog thins out evenly, the solid's outline is that of half the light, whatever the density inside."""
    axis = (np.arange(64) + 0.5) / 32 - 1
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
    for dense in (5.0, 50.0):
        fog = dense * np.clip(1 - radius / 0.8, 0, None)
        dark = fog.sum(2) / 32 > np.log(2)
        best = max((dark & (fog.max(2) > level)).sum() / (dark | (fog.max(2) > level)).sum() for level in mesh.LEVELS)
        inside = hull.carved(fog)
        seen = inside.max(2) > mesh.automatic([(fog, inside)])
        assert (dark & seen).sum() / (dark | seen).sum() > max(best - 0.01, 0.95)
    assert mesh.automatic([(np.zeros((8, 8, 8)), np.zeros((8, 8, 8)))]) == mesh.LEVELS[0]


def test_nothing_is_where_the_occupancy_grid_says_so():
    made = matter()
    made.occupancy.binary[:4] = False  # x < 0
    assert (mesh.densities(made, 0.0, 16)[:8] == 0).all() and mesh.densities(made, 0.0, 16).max() > 100


@pytest.mark.parametrize("threshold, code, word", [(None, 1, "nothing"), (1e9, 1, "threshold"), (-1.0, 2, "positive"), (np.nan, 2, "nan")])
def test_nothing_to_cut(threshold: float | None, code: int, word: str):
    empty = matter(lambda x, time: torch.ones_like(time)) if threshold is None else matter()
    with pytest.raises(FourdfyError) as error:
        mesh.mesh(empty, 0.0, threshold, resolution=16)
    assert error.value.code == code and word in error.value.message and error.value.hint


def test_an_extra_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FourdfyError) as error:
        mesh.mesh(scene(), 0.0, resolution=8)
    assert error.value.code == 3 and error.value.hint == "pip install 'fourdfy[export]'" and "skimage" in error.value.message


def test_a_deformation_moves_one_mesh():
    made = bent()
    cut = sequence.meshes(made, sequence.MeshOptions(frames=4, resolution=40), lambda items, *_: items)
    assert sequence.one_topology(cut) and not np.allclose(cut[0].vertices, cut[2].vertices, atol=0.05)
    for each, time in zip(cut, (0.0, 0.25, 0.5, 0.75), strict=True):
        x = torch.from_numpy(each.vertices)
        origin = made.field.features(x, torch.full((len(x),), time))[:, -3:]
        assert (origin.norm(dim=1) - 0.4).abs().max() < 0.02 and each.watertight
        own = mesh.mesh(made, time, cut[0].threshold, resolution=40)
        assert np.abs(own.vertices.max(0) - each.vertices.max(0)).max() < 0.03
        assert np.abs(each.colors - (origin.detach().numpy() + 1) / 2).max() < 0.05
    assert not sequence.one_topology([cut[0], own])

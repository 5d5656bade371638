"""The solid against the toy world's own: the truth itself scores well, a thing that is elsewhere by how far it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import matter

from fourdfy_cli.evaluate import geometry, truth
from fourdfy_cli.nano import solid
from fourdfy_cli.nano.prompts import Subject

DOG, BALL = Subject("dog", "red", "jumping"), Subject("ball", "red", None)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "RESOLUTION", 64)
    monkeypatch.setattr(geometry, "POINTS", 4000)


def test_the_world_itself(coarse: None):
    def distance(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        within = solid.inside(DOG, float(time[0]), x.numpy()) if len(x) else np.zeros(0, bool)
        return torch.from_numpy(np.where(within, -0.05, 0.05)).float()

    rows = geometry.compare(matter(distance), DOG, [0.125, 0.625])
    assert [row["time"] for row in rows] == [0.125, 0.625]
    assert all(row["volume_iou"] > 0.99 and row["chamfer"] < 0.02 for row in rows), rows
    found = geometry.summary(rows)
    assert found["chamfer"] == pytest.approx(np.mean([row["chamfer"] for row in rows])) and found["geometry"] == rows


def test_a_ball_that_is_larger(coarse: None):
    (row,) = geometry.compare(matter(lambda x, time: x.norm(dim=1) - 0.62), BALL, [0.0])
    assert row["chamfer"] == pytest.approx(0.1, abs=0.02) and row["volume_iou"] == pytest.approx((0.52 / 0.63) ** 3, abs=0.03)


def test_chamfer_against_all_pairs():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 3))
    gaps = np.linalg.norm(a[:, None] - b[None], axis=-1)
    assert geometry.chamfer(a, b) == pytest.approx((gaps.min(1).mean() + gaps.min(0).mean()) / 2)


def test_a_scene_with_nothing_in_it_says_so():
    empty = matter(lambda x, time: torch.ones_like(time))
    found = truth.solids(empty, BALL, truth.views(1))
    assert found["chamfer"] is None and found["volume_iou"] is None and "nothing" in found["geometry"]

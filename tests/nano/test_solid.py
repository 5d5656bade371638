"""The toy world's solids against its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import reference_world

from fourdfy_cli.nano import solid
from fourdfy_cli.nano.objects import OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject


@pytest.mark.parametrize("motion", [None, *MOTIONS])
@pytest.mark.parametrize("thing", OBJECTS)
def test_inside_and_surface(thing: str, motion: str | None):
    rng, subject, number = np.random.default_rng(0), Subject(thing, "red", motion), MOTIONS.index(motion) if motion else -1

    def twin(x: np.ndarray) -> np.ndarray:
        return reference_world.inside(thing, number, 0.3, x)

    x = rng.uniform(-1, 1, (1000, 3))
    assert (solid.inside(subject, 0.3, x) == twin(x)).all()
    points = solid.surface(subject, 0.3, 400, rng)
    beside = np.stack([twin(points + shift) for shift in 2e-3 * rng.normal(size=(12, 1, 3))])
    assert (beside.any(0) & ~beside.all(0)).mean() > 0.97  # some way is in, some way is out


@pytest.mark.parametrize("thing, area", [("ball", 4 * np.pi * 0.52**2), ("cube", 24 * 0.42**2)])
def test_points_are_even_by_area(thing: str, area: float):
    points = solid.surface(Subject(thing, "red", None), 0.0, 40_000, np.random.default_rng(0))
    up = points[points[:, 2] > 0.3]  # a cap of the ball; the top and a part of the sides of the cube
    share = 2 * np.pi * 0.52 * 0.22 / area if thing == "ball" else (4 * 0.42**2 + 8 * 0.42 * 0.12) / area
    assert len(up) / len(points) == pytest.approx(share, rel=0.04)


def test_a_cone_and_a_cylinder_are_even_too():
    """Stretched unevenly; the centroid of each surface is known."""
    part = solid.Placed(solid.CONE, np.diag([0.5, 0.5, 0.55]), np.zeros(3))
    x, _, weight = solid._on_part(part, 60_000, np.random.default_rng(0))
    slant = np.hypot(0.5, 1.1)
    base, side = np.pi * 0.25, np.pi * 0.5 * slant
    assert weight.sum() == pytest.approx(base + side, rel=0.02)
    height = (base * -0.55 + side * (-0.55 + 1.1 / 3)) / (base + side)
    assert (x[:, 2] * weight).sum() / weight.sum() == pytest.approx(height, abs=0.01)
    x, _, weight = solid._on_part(part._replace(kind=solid.CYLINDER), 60_000, np.random.default_rng(0))
    assert weight.sum() == pytest.approx(2 * base + 2 * np.pi * 0.5 * 1.1, rel=0.02) and abs((x[:, 2] * weight).sum()) < 0.05

import math

import numpy as np
import pytest
import torch
from reference_world import first_hit

from fourdfy_cli.diffusion.text import sector
from fourdfy_cli.nano import data, world
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import HELD_OUT, MOTIONS, Subject
from fourdfy_cli.nano.show import middle_turntable, truth
from fourdfy_cli.scene.cameras import Shot, rays


def one_view(azimuth: float, time: float, size: int) -> Shot:
    shot = middle_turntable(1, size)
    turn = torch.tensor(
        [[math.cos(azimuth), -math.sin(azimuth), 0, 0], [math.sin(azimuth), math.cos(azimuth), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    return Shot(turn.float() @ shot.c2w, shot.fovy, torch.tensor([time]), shot.size)


@pytest.mark.parametrize("name", list(OBJECTS))
def test_ray_caster_equals_walking_along_the_ray(name):
    k = list(OBJECTS).index(name)
    motion, shot = (k % len(MOTIONS)), one_view(0.7 + k, 0.13 + 0.07 * k, 24)
    picture = world.render(
        world.Things.one(name, "red", MOTIONS[motion], 1), shot.c2w.numpy(), shot.fovy.numpy(), shot.time.numpy(), 24, samples=1
    )
    origin, direction = (x.reshape(-1, 3).double().numpy() for x in rays(shot))
    expected = first_hit(name, motion, float(shot.time[0]), origin, direction, 0.004)
    hit = picture.rgba[0, ..., 3].reshape(-1) > 0.5
    assert (hit != np.isfinite(expected)).mean() < 0.01  # rays that graze an edge
    both = hit & np.isfinite(expected)
    assert both.sum() > 20
    gap = np.abs(picture.depth[0].reshape(-1) - expected)[both]
    assert np.median(gap) < 0.004 and (gap < 0.03).mean() > 0.97


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_periodic_and_start_canonical(motion):
    index = np.array([MOTIONS.index(motion)] * 2)
    G, T, limb = world.pose(index, np.array([0.0, 1.0]))
    assert np.allclose(G, np.eye(3), atol=1e-5) and np.allclose(T, 0, atol=1e-5) and np.allclose(limb, 0, atol=1e-5)
    G, T, limb = world.pose(index[:1], np.array([0.3]))
    assert np.abs(G - np.eye(3)).max() + np.abs(T).max() + np.abs(limb).max() > 0.1


def test_every_thing_stays_inside_its_bound_and_the_scene_box():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.3, 1.3, (20000, 3))
    from reference_world import inside

    for name in OBJECTS:
        for motion in range(-1, len(MOTIONS)):
            found = x[inside(name, motion, 0.37, x)]
            assert np.abs(found).max() < 1.02, (name, motion)
        still = x[inside(name, -1, 0.0, x)]
        assert np.linalg.norm(still, axis=1).max() < 0.95


def test_silhouette_and_depth_of_a_ball_in_closed_form():
    shot = one_view(0.4, 0.0, 65)
    picture = truth(Subject("ball", "green"), shot, samples=1)
    distance = float(shot.c2w[0, :3, 3].norm())
    assert picture.depth[0, 32, 32] == pytest.approx(distance - 0.52, abs=1e-4)
    half_angle = math.asin(0.52 / distance)
    pixels = math.pi * (0.5 * 65 * math.tan(half_angle) / math.tan(math.radians(20))) ** 2
    assert picture.rgba[0, ..., 3].sum() == pytest.approx(pixels, rel=0.01)
    assert np.array_equal(picture.depth > 0, picture.rgba[..., 3] > 0)


def test_light_is_fixed_in_the_world():
    """The top of a cube is equally bright from every side."""
    tops = []
    for azimuth in (0.0, 1.0, 2.5):
        picture = truth(Subject("cube", "white"), one_view(azimuth, 0.0, 64), samples=1)
        lit = picture.rgba[0][picture.rgba[0, ..., 3] > 0.5][:, :3].sum(1)
        tops.append(lit.max())
    assert np.ptp(tops) < 1e-4


def test_background_is_added_behind():
    picture = truth(Subject("fish", "blue"), one_view(0.0, 0.0, 16))
    over = picture.over(0.6)
    empty = picture.rgba[0, ..., 3] == 0
    assert np.allclose(over[0][empty], 0.6) and not np.allclose(over[0][~empty], 0.6, atol=0.05)


def test_training_draws_leave_out_the_held_out_pairs():
    rng = np.random.default_rng(0)
    seen = {(s.object, s.colour) for _ in range(4) for s in data.draw(rng, 256, 1, "clip", size=8).subjects}
    assert not seen & HELD_OUT and len(seen) == 80 - len(HELD_OUT)
    assert {o for o, _ in HELD_OUT} == set(OBJECTS) and len(HELD_OUT) / 80 == 0.15
    assert {c for _, c in HELD_OUT} == set(COLOURS)


def test_drawn_views_and_clips():
    rng = np.random.default_rng(1)
    views = data.draw(rng, 3, 4, "still", size=16)
    turn = (views.azimuth[:, 1:] - views.azimuth[:, :-1]) % 360
    assert views.rgb.shape == (3, 4, 3, 16, 16) and torch.allclose(turn, torch.full((3, 3), 90.0), atol=1e-3)
    assert views.rgb.min() >= -1 and views.rgb.max() <= 1
    clips = data.clips(rng, 2)
    assert (clips.azimuth == clips.azimuth[:, :1]).all() and all(s.motion for s in clips.subjects)
    assert (clips.rgb[:, 1:] - clips.rgb[:, :-1]).abs().amax((2, 3, 4)).min() > 0.05  # it moves between any two frames


def test_posed_draws_are_four_sides_of_one_moment_of_a_motion():
    posed = data.draw(np.random.default_rng(5), 40, 4, "posed", size=32)
    turn = (posed.azimuth[:, 1:] - posed.azimuth[:, :-1]) % 360
    assert torch.allclose(turn, torch.full((40, 3), 90.0), atol=1e-3) and {s.motion for s in posed.subjects} == set(MOTIONS)
    height = []  # of the middle of what is not background, in each picture; a jump lifts all four sides alike
    for group, s in zip(posed.rgb, posed.subjects, strict=True):
        rows = torch.stack([(p - p[:, :1, :1]).abs().sum(0) > 0.05 for p in group]).float().sum(2)
        middle = 15.5 - (rows * torch.arange(32)).sum(1) / rows.sum(1)
        height += [middle] if s.motion == "jumping" else []
    heights = torch.stack(height)
    assert heights.mean(1).max() - heights.mean(1).min() > 2 and (heights.amax(1) - heights.amin(1)).max() < 2.5


def test_a_still_draw_is_the_posed_one_before_it_moves():
    posed, still = (data.draw(np.random.default_rng(5), 8, 4, kind, size=16) for kind in ("posed", "still"))
    assert torch.equal(posed.c2w, still.c2w) and torch.equal(posed.rgb[..., 0, 0], still.rgb[..., 0, 0])
    assert (posed.time == posed.time[:, :1]).all() and posed.time[:, 0].unique().numel() == 8 and not still.time.any()
    assert [(s.object, s.colour, None) for s in posed.subjects] == [(s.object, s.colour, s.motion) for s in still.subjects]


def test_a_frozen_draw_is_the_same_thing_before_it_moves():
    moving = data.draw(np.random.default_rng(3), 5, 4, "clip", size=16)
    frozen = data.draw(np.random.default_rng(3), 5, 4, "frozen", size=16)
    assert (
        frozen.rgb.shape == (5, 1, 3, 16, 16)
        and torch.equal(frozen.c2w, moving.c2w[:, :1])
        and torch.equal(frozen.azimuth, moving.azimuth[:, :1])
    )
    assert [(s.object, s.colour) for s in frozen.subjects] == [(s.object, s.colour) for s in moving.subjects]
    assert torch.equal(frozen.rgb[:, 0, :, 0, 0], moving.rgb[:, 0, :, 0, 0])  # the same grey in the corner
    assert torch.allclose(frozen.rgb.mean((1, 2, 3, 4)), moving.rgb.mean((1, 2, 3, 4)), atol=0.15)


def test_captions_say_only_what_is_true():
    rng = np.random.default_rng(0)
    captions = {data.caption(Subject("dog", "red", "jumping"), rng, 100.0) for _ in range(200)}
    assert "" in captions and "a red dog jumping, left view" in captions
    assert all(set(c.replace(",", "").split()) <= {"a", "red", "dog", "jumping", "left", "view"} for c in captions)
    assert all(c.endswith("left view") for c in captions if c)
    assert {data.caption(Subject("dog"), rng, 100.0, 0, 0, view=0) for _ in range(9)} == {"a dog"}


def test_the_left_sector_sees_the_things_own_left():
    """Beside a dog, at its left, its head is on the left of the picture; at its right, on the right."""
    columns = {}
    for azimuth in (90.0, 270.0):
        shot = one_view(math.radians(azimuth), 0.0, 64)
        alpha = truth(Subject("dog", "red"), shot).rgba[0, ..., 3]
        top = np.flatnonzero(alpha.sum(1) > 0)[:4]  # rows: ears and head
        columns[sector(azimuth)] = np.flatnonzero(alpha[top].sum(0) > 0).mean()
    assert columns["left view"] < 28 and columns["right view"] > 36


@pytest.mark.parametrize(
    "azimuth, words",
    [(0, "front view"), (44.9, "front view"), (45, "side view"), (-90, "side view"), (180, "back view"), (-140, "back view")],
)
def test_view_words(azimuth, words):
    assert data.view_words(azimuth) == words

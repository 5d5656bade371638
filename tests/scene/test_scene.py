"""Whole pictures: against a loop over rays, view by view, repeatable, and good enough to learn from."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import reference_scene as reference
import torch

from fourdfy_cli import config
from fourdfy_cli.nano import world
from fourdfy_cli.scene.cameras import Shot, orbit_camera, rays
from fourdfy_cli.scene.occupancy import lookup
from fourdfy_cli.scene.scene import RenderOptions, Scene, camera_rays, occupied_at, render, render_rays, update_occupancy

FIELD = config.Field(config.Grid(3, 2, 10, 4, 2.0), config.Grid(3, 2, 10, 3, 1.6), hidden=16, init=1e-2)
MARCH = config.March(samples=40, resolution=12, alpha_thre=0.01)


def make(march: config.March = MARCH, field: config.Field = FIELD, seed: int = 0) -> Scene:
    return Scene(field, config.Background(hidden=8), march, seed)


def look(views: int, size: int, time: float = 0.0, dtype: torch.dtype = torch.float32) -> Shot:
    full = torch.ones(views, dtype=dtype)
    azimuth = torch.arange(views, dtype=dtype) * (2 * math.pi / views) + 0.4
    return Shot(orbit_camera(azimuth, 0.3 * full, 2.7 * full), math.radians(40) * full, time * full, (size, size))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_equals_a_loop_over_rays_forward_and_backward():
    scene = make(dataclasses.replace(MARCH, alpha_thre=0.0, early_stop_eps=0.0)).double()
    update_occupancy(scene, 0, 0.5, 0.0, generator())
    shot = look(2, 4, 0.3, torch.float64)
    fast = render(scene, shot, 0.5, train=True)
    origin, direction = (part.reshape(-1, 3) for part in rays(shot))
    slow = []
    for o, d in zip(origin, direction, strict=True):
        t = reference.march_ray(o, d, partial(lookup, scene.occupancy.binary), scene.step_length, 0.5)
        x = o + torch.tensor(t, dtype=torch.float64).view(-1, 1) * d
        density, rgb = scene.field(x, torch.full((len(t),), 0.3, dtype=torch.float64), 0.5)
        colour, opacity, depth = reference.composite_ray(list(density), list(rgb), t, [scene.step_length] * len(t))
        slow.append(torch.cat([colour + (1 - opacity) * scene.background_net(d[None])[0], opacity[None], depth[None]]))
    slow = torch.stack(slow).view(2, 4, 4, 5)
    joined = torch.cat([fast.rgb, fast.opacity[..., None], fast.depth[..., None]], -1)
    torch.testing.assert_close(joined, slow, rtol=1e-9, atol=1e-9)
    cotangent, parameters = torch.rand_like(slow), list(scene.parameters())
    ours = torch.autograd.grad(joined, parameters, cotangent)
    theirs = torch.autograd.grad(slow, parameters, cotangent)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_with_and_without_a_graph_the_picture_is_the_same():
    scene = make()
    update_occupancy(scene, 0, 0.5, 0.0, generator())
    frames = [render(scene, look(3, 12, 0.5), 0.5, None, generator(1), train) for train in (False, True)]
    for a, b in zip(*frames, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-6)
    assert not frames[0].rgb.requires_grad and frames[1].rgb.requires_grad


def test_view_by_view_is_the_whole_shot_jitter_included():
    scene, shot = make(), look(4, 8)
    update_occupancy(scene, 0, 0.5, 0.0, generator())
    whole, g = render(scene, shot, 0.5, None, generator(1)), generator(1)
    parts = [render(scene, shot[v : v + 1], 0.5, None, g) for v in range(4)]
    torch.testing.assert_close(torch.cat([p.rgb for p in parts]), whole.rgb, rtol=0, atol=1e-6)
    still = render(scene, shot, 0.5)
    assert not torch.equal(still.rgb, whole.rgb)


def test_bitwise_repeatable_forward_and_backward():
    def run():
        scene, g = make(), generator(5)
        update_occupancy(scene, 0, 0.5, 0.2, g)
        frames = render(scene, look(4, 16), 0.5, None, g, train=True)
        (frames.rgb.square().sum() + frames.opacity.sum()).backward()
        return [frames.rgb.detach(), *(p.grad for p in scene.parameters())]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_pruning_hardly_changes_the_picture_but_drops_samples():
    pictures = []
    for alpha, transmittance in ((0.0, 0.0), (0.01, 1e-4)):
        scene = make(dataclasses.replace(MARCH, alpha_thre=alpha, early_stop_eps=transmittance))
        update_occupancy(scene, 0, 0.5, 0.0, generator())
        pictures.append(render(scene, look(2, 16), 0.5).rgb)
    assert 0 < (pictures[0] - pictures[1]).abs().max() < 0.05


def test_cells_of_one_moment_show_the_same_picture():
    """A blob where the occupancy grid, dilated, knows it; finer cells of one moment are fewer, and the picture stays."""
    scene = make(dataclasses.replace(MARCH, alpha_thre=0.003))
    update_occupancy(scene, 0, 0.3, 0.0, generator(), dilation=1)
    scene.blob_std.fill_(0.3)
    cells, whole = occupied_at(scene, 0.25), scene.occupancy.binary
    assert cells.shape == (24, 24, 24) and 0.05 < cells.float().mean() < 0.7 * whole.float().mean()
    seen = camera_rays(scene, look(3, 24, 0.25))

    def opacity_and_colour(cells: torch.Tensor | None) -> torch.Tensor:
        frames = render_rays(scene, seen, RenderOptions(0.3, torch.zeros(3), cells=cells))
        return torch.cat([frames.rgb, frames.opacity[:, None]], 1)

    some, every = opacity_and_colour(cells), opacity_and_colour(None)
    assert (some - every).abs().max() < 0.02 and every.max() > 0.9
    whole.fill_(False)
    assert not occupied_at(scene, 0.25).any() and not opacity_and_colour(occupied_at(scene, 0.25)).any()


def test_empty_scene_shows_the_background_and_trains_without_a_crash():
    scene = make()
    scene.occupancy.binary.fill_(False)
    frames = render(scene, look(2, 6), 0.5, torch.tensor([0.2, 0.4, 0.6]), generator(), train=True)
    assert torch.equal(frames.rgb, torch.tensor([0.2, 0.4, 0.6]).expand(2, 6, 6, 3)) and not frames.opacity.any()
    frames.rgb.sum().backward()
    _, direction = rays(look(2, 6))
    learned = render(scene, look(2, 6), 0.5).rgb
    torch.testing.assert_close(learned, scene.background_net(direction.reshape(-1, 3)).view(2, 6, 6, 3))


def test_backdrop_goes_behind_by_the_opacity():
    scene = make()
    black, white = (render(scene, look(1, 10), 0.5, torch.full((3,), v)) for v in (0.0, 1.0))
    torch.testing.assert_close(white.rgb - black.rgb, (1 - black.opacity)[..., None].expand(-1, -1, -1, 3))
    assert 0.9 < black.opacity.max() <= 1 + 1e-5


def test_blob_is_as_wide_as_asked():
    scene = make()
    coverage = [float((render(scene, look(1, 16), s).opacity > 0.5).float().mean()) for s in (0.3, 0.6)]
    assert 0 < coverage[0] < coverage[1] < 1


def test_depth_and_opacity_are_the_integrals_through_the_blob():
    frames = render(make(dataclasses.replace(MARCH, samples=800), dataclasses.replace(FIELD, init=0.0)), look(1, 9), 0.3)
    t = torch.linspace(1.7, 3.7, 20_001, dtype=torch.float64)
    density = torch.nn.functional.softplus(10 * (1 - (t - 2.7).abs() / 0.3))  # the middle pixel looks through the origin
    tau = density * 1e-4
    weight = torch.exp(tau - tau.cumsum(0)) * -torch.expm1(-tau)
    assert abs(float(frames.opacity[0, 4, 4]) - float(weight.sum())) < 1e-3
    assert abs(float(frames.depth[0, 4, 4]) - float((weight * t).sum())) < 0.01


def test_state_holds_everything_that_shapes_the_picture():
    scene, other = make(), make(seed=9)
    update_occupancy(scene, 0, 0.5, 0.0, generator())
    scene.blob_std.fill_(0.7)
    other.load_state_dict(scene.state_dict())
    assert float(other.blob_std) == float(scene.blob_std)
    assert torch.equal(render(other, look(1, 8), 0.5).rgb, render(scene, look(1, 8), 0.5).rgb)
    assert not torch.equal(render(make(seed=9), look(1, 8), 0.5).rgb, render(make(), look(1, 8), 0.5).rgb)


def truth(shot: Shot, motion: str | None) -> torch.Tensor:
    """Ray-cast pictures of a red cube over grey."""
    things = world.Things.one("cube", "red", motion, len(shot))
    picture = world.render(things, shot.c2w.numpy(), shot.fovy.numpy(), shot.time.numpy(), shot.size[0])
    return torch.from_numpy(np.ascontiguousarray(picture.over(0.6)))


def fit(scene: Scene, shots: list[Shot], motion: str | None, steps: int) -> list[float]:
    """Squared error of each step of a plain fit to the shots in turn."""
    grids, nets = [scene.field.static.table, scene.field.dynamic.table], [*scene.field.density_net.parameters()]
    nets += scene.field.colour_net.parameters()
    optimiser = torch.optim.Adam([{"params": grids, "lr": 2e-2}, {"params": nets, "lr": 5e-3}], betas=(0.9, 0.99), eps=1e-15)
    targets, losses, grey = [truth(shot, motion) for shot in shots], [], torch.full((3,), 0.6)
    for step in range(steps):
        shot, target = shots[step % len(shots)], targets[step % len(shots)]
        g = generator(step)
        if step % 8 == 0:
            update_occupancy(scene, step, 0.5, float(shot.time[0]), g)
        loss = (render(scene, shot, 0.5, grey, g, train=True).rgb - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_learns_a_cube_from_its_pictures():
    losses = fit(make(), [look(4, 16)], None, 120)
    assert losses[-1] < losses[0] / 20


def test_learns_a_motion_that_a_frozen_dynamic_grid_cannot():
    shots = [look(4, 16, time) for time in (0.0, 0.5)]
    moving, frozen = make(), make()
    frozen.field.dynamic.table.requires_grad_(False)
    ends = [sum(fit(scene, shots, "bouncing", 120)[-2:]) for scene in (moving, frozen)]
    assert ends[0] < ends[1] / 2, ends

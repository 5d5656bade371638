import dataclasses
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from fourdfy_cli import config, hybrid, presets
from fourdfy_cli.config import LearningRates
from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.evaluate.truth import compare, render_views, views
from fourdfy_cli.guidance import sds
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.hybrid import StepContext, draw_branch, draw_cameras, draw_shot, frame_times
from fourdfy_cli.nano.prompts import Subject
from fourdfy_cli.nano.show import truth
from fourdfy_cli.presets import preset
from fourdfy_cli.run.train import parameter_groups
from fourdfy_cli.scene.scene import Scene, render
from fourdfy_cli.schedule import Ramp, constant


def scene_of(recipe) -> Scene:
    return Scene(recipe.field, recipe.background, recipe.march, 0)


def test_two_coins():
    stage = dataclasses.replace(preset("nano").stage3, p_3d=0.5, p_image=0.5)
    drawn = Counter(draw_branch(stage, torch.Generator().manual_seed(k), 0.0) for k in range(4000))
    for branch, chance in (("multiview", 0.5), ("image", 0.25), ("video", 0.25)):
        assert abs(drawn[branch] / 4000 - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)


@pytest.mark.parametrize("p_3d, late", [(0.0, 0.0), (0.2, 0.5), (0.5, 0.8), (1.0, 1.0)])
def test_odds_of_the_3d_branch(p_3d: float, late: float):
    """Four times the odds from 0.7 of the stage on: 1 to 1 becomes 4 to 1, never stays never, and always always."""
    stage = dataclasses.replace(preset("nano").stage3, p_3d=p_3d, p_image=0.5, odds_3d=Ramp(1.0, 4.0, 0.7, 0.7))
    for progress, chance in ((0.0, p_3d), (0.9, late)):
        drawn = [draw_branch(stage, torch.Generator().manual_seed(k), progress) for k in range(4000)]
        assert abs(drawn.count("multiview") / 4000 - chance) <= 4 * math.sqrt(chance * (1 - chance) / 4000)
        assert abs(drawn.count("image") - drawn.count("video")) < 4 * math.sqrt(4000)
    assert stage.chances().get("multiview", 0) == pytest.approx(0.7 * p_3d + 0.3 * late)
    assert dataclasses.replace(stage, odds_3d=Ramp(0.0, 0.0)).chances().get("multiview", 0) == (1.0 if p_3d == 1 else 0)


def test_frame_times_are_consecutive_and_start_in_the_first_interval():
    for k in range(50):
        times = frame_times(16, torch.rand((), generator=torch.Generator().manual_seed(k)))
        assert 0 <= times[0] < 1 / 16 and times[-1] < 1
        assert torch.allclose(times.diff(), torch.full((15,), 1 / 16))


def test_cameras_of_a_group_stand_ninety_degrees_apart_and_share_the_rest(tiny):
    recipe = dataclasses.replace(tiny, cameras=dataclasses.replace(tiny.cameras, fovy=(15.0, 60.0)))
    c2w, fovy = draw_cameras(StepContext(recipe, 0, 1, 0), torch.rand(5, 3, generator=torch.Generator().manual_seed(3)), 4)
    position = c2w[:, :3, 3].unflatten(0, (3, 4))
    azimuth = torch.atan2(position[..., 1], position[..., 0])
    turn = torch.rad2deg(azimuth.diff(dim=1)) % 360
    assert torch.allclose(turn, torch.full((3, 3), 90.0), atol=1e-3)
    distance = position.norm(dim=-1)
    assert torch.allclose(distance, distance[:, :1].expand(3, 4), atol=1e-5) and len(distance[:, 0].unique()) == 3
    elevation = torch.rad2deg(torch.asin(position[..., 2] / distance))
    assert (elevation > -1e-3).all() and (elevation < 30.01).all()
    assert torch.equal(fovy.unflatten(0, (3, 4))[:, 0], fovy.unflatten(0, (3, 4))[:, 3])


def test_elevation_is_uniform_in_angle_or_in_area(tiny):
    """The mean of sin(elevation) lies between that of the two laws, halfway."""
    numbers = torch.rand(3000, 5, 1, generator=torch.Generator().manual_seed(0))
    draws = [draw_cameras(StepContext(tiny, 0, 1, 0), u, 1)[0] for u in numbers]
    sine = torch.stack([c[0, 2, 3] / c[0, :3, 3].norm() for c in draws])
    top = math.radians(30)
    by_angle, by_area = (1 - math.cos(top)) / top, math.sin(top) / 2
    assert abs(sine.mean() - (by_angle + by_area) / 2) < 4 * sine.std() / math.sqrt(3000)


@pytest.mark.parametrize("stage, branch, count", [(1, "multiview", 4), (2, "image", 1), (3, "video", 8)])
def test_shots(tiny, stage, branch, count):
    shot = draw_shot(branch, StepContext(tiny, 5, stage, 1))
    assert len(shot) == count and shot.size == (8, 8)
    if branch == "video":
        assert torch.equal(shot.c2w, shot.c2w[:1].expand(8, 4, 4)) and len(shot.time.unique()) == 8
    else:
        assert (shot.time == 0).all()
    moving = draw_shot("multiview", StepContext(tiny, 5, 3, 1))
    assert len(moving.time.unique()) == 1 and moving.time[0] > 0


def test_views_of_a_sobol_sequence_are_spread_evenly(tiny):
    """Of 256 steps each 256th of the circle and of the period is looked at once, from each group a point of its own; runs differ."""
    tiny = config.override(tiny, "stage3.sobol=true")
    contexts = [StepContext(tiny, 5, 3, step) for step in range(256)]
    shots = [draw_shot("image", context) for context in contexts]
    moments = torch.cat([shot.time for shot in shots])
    azimuths = torch.cat([shot.azimuth() for shot in shots]).div(2 * math.pi) % 1
    for spread in (moments, azimuths):
        assert (spread * 256 % 256).floor().sort().values.tolist() == [*range(256)]
    quadrants = torch.stack([(moments * 16).floor(), (azimuths * 16).floor()])
    assert len(quadrants.unique(dim=1)[0]) == 256  # and each of 16 x 16 pairs once
    clips = [draw_shot("video", context).time for context in contexts]
    assert all((clip[0] * 8 < 1) and torch.allclose(clip.diff(), torch.tensor(1 / 8)) for clip in clips)
    assert all(((clip - moment).abs() < 1e-6).sum() == 1 for clip, moment in zip(clips, moments, strict=True))
    assert torch.equal(torch.cat([context.sobol(1) for context in contexts[:8]], 1), contexts[0].sobol(8))
    changed = ({"seed": 6}, {"stage": 2}, {"retry": 1}, {"rank": 1})
    others = [dataclasses.replace(contexts[0], **change) for change in changed]
    assert len({other.sobol(1)[0].item() for other in (contexts[0], *others)}) == 5


def test_a_sobol_sequence_is_uniform_below_one(tiny):
    u = torch.cat([StepContext(tiny, seed, 1, 0).sobol(4096) for seed in range(4)], 1)
    assert u.shape == (6, 16384) and 0 <= u.min() and u.max() < 1
    assert torch.allclose(u.mean(1), torch.full((6,), 0.5), atol=1e-3) and torch.allclose(u.var(1), torch.full((6,), 1 / 12), atol=1e-3)


def test_late_views_of_one_moment_are_of_the_first(tiny):
    tiny = config.override(tiny, "stage3.steps=400")
    for branch, count in (("multiview", 4), ("image", 1), ("video", 8)):
        late = tiny
        for end, value in (("end", 0.5), ("begin", 0.5), ("until", 0.5)):
            late = config.override(late, f"stage3.{branch}.still.{end}={value}")
        shots, as_before = ([draw_shot(branch, StepContext(recipe, 5, 3, step)) for step in range(400)] for recipe in (late, tiny))
        first = torch.tensor([bool((shot.time == 0).all()) for shot in shots])
        assert not first[:200].any() and first[200:].float().mean() == pytest.approx(0.0 if branch == "video" else 0.5, abs=0.1)
        for shot, before, still in zip(shots, as_before, first, strict=True):
            assert len(shot) == count and torch.equal(shot.c2w, before.c2w)
            assert still or torch.equal(shot.time, before.time)


def test_elevations_of_the_released_code():
    """Half uniform in angle, half in area up to asin(1/3): 17.5 % of the views are above 19.47 degrees (34 % if up to 30), mean 12.3."""
    shares = {}
    for recipe in (presets.official(), presets.paper()):
        shots = [draw_shot("image", StepContext(recipe, 0, 2, step)) for step in range(4000)]
        elevation = torch.rad2deg(torch.cat([shot.elevation() for shot in shots]))
        shares[recipe.name] = (elevation > 19.4712).float().mean().item(), elevation.mean().item()
    assert shares["official"] == pytest.approx((0.175, 12.3), abs=0.3) and abs(shares["official"][0] - 0.175) < 0.02
    assert abs(shares["paper"][0] - 0.34) < 0.025


def test_background_goes_on_with_its_momentum_under_a_plain_backdrop(tiny):
    recipe = dataclasses.replace(tiny, background=dataclasses.replace(tiny.background, random=1.0))
    scene = scene_of(recipe)
    hybrid.step(scene, {"multiview": Probe()}, StepContext(recipe, 0, 1, 0))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in scene.background_net.parameters())
    scene.background_net.requires_grad_(False)
    scene.zero_grad(set_to_none=True)
    hybrid.step(scene, {"multiview": Probe()}, StepContext(recipe, 0, 1, 1))
    assert all(p.grad is None for p in scene.background_net.parameters())


def test_random_numbers_depend_on_seed_stage_step_and_stream_alone(tiny):
    def draw(*key, stream="noise"):
        return torch.rand(3, generator=StepContext(tiny, *key).generator(stream))

    assert torch.equal(draw(0, 1, 7), draw(0, 1, 7))
    others = [draw(1, 1, 7), draw(0, 2, 7), draw(0, 1, 8), draw(0, 1, 7, stream="camera")]
    assert all(not torch.equal(draw(0, 1, 7), other) for other in others)


def test_backdrop_is_one_plain_grey_in_range(tiny):
    colours = torch.stack([hybrid.draw_backdrop(StepContext(tiny, 0, 1, k)) for k in range(200)])
    assert (colours == colours[:, :1]).all() and colours.min() >= 0.45 and colours.max() <= 0.75
    network = dataclasses.replace(tiny, background=dataclasses.replace(tiny.background, random=0.0))
    assert hybrid.draw_backdrop(StepContext(network, 0, 1, 0)) is None


class Here:
    """A guidance without networks to move."""

    def to(self, device):
        pass


class Probe(Here):
    """A guidance whose loss is known: half the squared distance to a plain colour."""

    def __call__(self, rgb, shot, score, progress, generator, chunk=None):
        return GuidanceOutput(rgb - 0.3, 0.5 * (rgb - 0.3).square().sum().item())


@pytest.mark.parametrize("always", [False, True], ids=["dynamic on video steps", "dynamic always"])
@pytest.mark.parametrize("branch, coins", [("multiview", (1.0, 0.0)), ("image", (0.0, 1.0)), ("video", (0.0, 0.0))])
def test_a_step_leaves_the_gradient_of_the_whole_loss(tiny, branch, coins, always):
    chances = {"p_3d": coins[0], "p_image": coins[1], "dynamic_always": always}
    stage = dataclasses.replace(tiny.stage3, **chances, sparsity=constant(0.7), opaque=constant(0.4))
    recipe = dataclasses.replace(tiny, stage3=stage)
    context, scene, twin = StepContext(recipe, 0, 3, 0), scene_of(recipe), scene_of(recipe)
    hybrid.maybe_update_occupancy(scene, context)
    outcome = hybrid.step(scene, {branch: Probe()}, context)
    assert outcome.branch == branch
    twin.load_state_dict(scene.state_dict())
    learns = always or branch == "video"
    twin.field.dynamic.requires_grad_(learns)
    shot = draw_shot(branch, context)
    frames = render(
        twin, shot, stage.blob.at(0), hybrid.draw_backdrop(context), context.generator("jitter"), train=True, alpha_thre=stage.alpha_thre
    )
    p = frames.opacity.clamp(1e-3, 1 - 1e-3)
    whole = 0.5 * (frames.rgb - 0.3).square().sum()
    whole = whole + 0.7 * (frames.opacity**2 + 0.01).sqrt().mean() + 0.4 * F.binary_cross_entropy(p, p.detach() * 0 + p)
    whole.backward()
    assert (scene.field.dynamic.table.grad is not None) == learns
    for (name, ours), theirs in zip(scene.field.named_parameters(), twin.field.parameters(), strict=True):
        if ours.grad is not None:
            scale = theirs.grad.abs().max().clamp_min(1e-12)
            assert (ours.grad - theirs.grad).abs().max() / scale < 1e-5, name


@pytest.mark.parametrize("branch, always, learns", [("video", False, True), ("multiview", True, True), ("multiview", False, False)])
def test_a_deformation_is_smoothed_where_it_learns(tiny, branch, always, learns):
    """The gradient of a step with the regulariser, less that without it, is its own in closed form."""

    def gradient(weight: float) -> tuple[torch.Tensor, dict[str, float], Scene]:
        chances = {"p_3d": float(branch == "multiview"), "p_image": 0.0, "dynamic_always": always}
        stage = dataclasses.replace(tiny.stage3, **chances, smooth=constant(weight))
        recipe = dataclasses.replace(tiny, stage3=stage, field=dataclasses.replace(tiny.field, kind="deformation"))
        context, scene = StepContext(recipe, 0, 3, 0), scene_of(recipe)
        last = scene.field.dynamic.net[-1].weight
        torch.nn.init.normal_(last, generator=torch.Generator().manual_seed(1))
        hybrid.maybe_update_occupancy(scene, context)
        outcome = hybrid.step(scene, {branch: Probe()}, context)
        return last.grad, outcome.losses, scene

    with_it, losses, scene = gradient(3e3)
    without, plain, _ = gradient(0.0)
    assert "smooth" not in plain and ("smooth" in losses) == learns
    if not learns:
        assert with_it is without is None
        return
    motion, apart = scene.field.dynamic, hybrid.APART
    x = torch.rand(hybrid.POINTS, 4, generator=StepContext(tiny, 0, 3, 0).generator("smooth")) * (1 - apart)
    slopes = [(motion.displacement(x + apart * step) - motion.displacement(x)) / apart for step in torch.eye(4)]
    value = sum(slope.square().sum(1).mean() for slope in slopes)
    (own,) = torch.autograd.grad(3e3 * value, motion.net[-1].weight)
    assert losses["smooth"] == pytest.approx(value.item(), rel=1e-4) and value > 0
    torch.testing.assert_close(with_it - without, own, rtol=1e-3, atol=1e-4 * own.abs().max().item())


class Exact(Here):
    """Eq. 3 with the exact denoiser of one thing: the data distribution is a single picture per camera and time."""

    schedule = Schedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
    )

    def __init__(self, subject: Subject, moment_grey: list):
        self.subject, self.grey = subject, moment_grey

    def __call__(self, rgb, shot, score, progress, generator, chunk=None):
        picture = torch.from_numpy(truth(self.subject, shot).over(self.grey[0]))
        t = sds.timestep(score.low.at(progress), score.high.at(progress), 1000, generator)
        x = sds.noised(self.schedule, rgb, t, generator)
        abar = self.schedule.alphas_cumprod[t].float()
        eps = (x.z_t - abar.sqrt() * picture) / (1 - abar).sqrt()
        v = abar.sqrt() * eps - (1 - abar).sqrt() * picture
        gradient = sds.reconstruction_gradient(x, v, v, score.scale, 0.5, len(rgb) // 4)
        return GuidanceOutput(100 * gradient, sds.loss_of(gradient, len(gradient)))


@pytest.mark.long
def test_sds_with_the_exact_denoiser_of_a_dog_recovers_the_dog():
    nano = preset("nano")
    stage = dataclasses.replace(nano.stage1, steps=90, lr=LearningRates(2e-2, 0.0, 5e-3, 0.0, 0.0))
    recipe = dataclasses.replace(nano, stage1=stage)
    scene, subject, grey = scene_of(recipe), Subject("dog", "red"), [0.6]
    guidance = {"multiview": Exact(subject, grey)}
    optimizer = torch.optim.AdamW(parameter_groups(scene, stage, []), betas=(0.9, 0.99), eps=1e-15, weight_decay=0)
    for k in range(stage.steps):
        context = StepContext(recipe, 0, 1, k)
        grey[0] = float(hybrid.draw_backdrop(context)[0])
        hybrid.maybe_update_occupancy(scene, context)
        hybrid.step(scene, guidance, context)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * stage.lr_decay.at(context.progress)
        optimizer.step()
        optimizer.zero_grad()
    scene.blob_std.fill_(0.5)
    shot = views(1)
    measured = compare(render_views(scene, shot), shot, subject)
    assert measured["iou"].mean() > 0.86 and measured["psnr"].mean() > 25, measured

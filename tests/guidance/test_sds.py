"""The score gradients in closed form: data ~ N(mu, s^2) has a known optimal denoiser."""

from __future__ import annotations

import math

import pytest
import reference_guidance as reference
import torch

from fourdfy_cli.diffusion.noise import PREDICTIONS, Schedule
from fourdfy_cli.guidance import sds

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SHAPE = (4, 2, 3, 3)


def schedule(prediction: str = "epsilon") -> Schedule:
    return Schedule(Schedule.from_config(STABLE).alphas_cumprod, prediction)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(prediction: str, t: int, seed: int = 0) -> sds.Noised:
    return sds.noised(schedule(prediction), draw(*SHAPE, seed=seed), t, torch.Generator().manual_seed(seed + 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [20, 300, 980])
@pytest.mark.parametrize("groups", [1, 2])
def test_reconstruction_equals_the_loops(prediction: str, t: int, groups: int) -> None:
    x = noise(prediction, t)
    cond, uncond = draw(*SHAPE, seed=5), draw(*SHAPE, seed=6)
    ours = sds.reconstruction_gradient(x, cond, uncond, 7.5, 0.3, groups)
    guided = uncond + 7.5 * (cond - uncond)
    theirs = reference.reconstruction(x.z, x.schedule.x0(cond, x.z_t, t), x.schedule.x0(guided, x.z_t, t), 0.3, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_rescale_is_per_group() -> None:
    x = noise("epsilon", 500)
    cond, uncond = draw(*SHAPE, seed=5), draw(*SHAPE, seed=6)
    together = sds.reconstruction_gradient(x, cond, uncond, 7.5, 0.5, 2)
    assert not torch.allclose(together, sds.reconstruction_gradient(x, cond, uncond, 7.5, 0.5, 1))
    half = sds.Noised(x.z[:2], x.eps[:2], x.z_t[:2], x.t, x.schedule)
    alone = sds.reconstruction_gradient(half, cond[:2], uncond[:2], 7.5, 0.5, 1)
    torch.testing.assert_close(together[:2] * 4, alone * 2)  # both are means over their own batch


@pytest.mark.parametrize("t", [20, 500, 980])
def test_reconstruction_without_rescale_is_sds_with_another_weight(t: int) -> None:
    x = noise("epsilon", t)
    cond, uncond = draw(*SHAPE, seed=5), draw(*SHAPE, seed=6)
    abar = x.schedule.alphas_cumprod[t].item()
    ours = sds.reconstruction_gradient(x, cond, uncond, 4.0, 0.0, 1)
    plain = sds.video_gradient(x, cond, uncond, 4.0)
    torch.testing.assert_close(ours, plain / (1 - abar) * math.sqrt((1 - abar) / abar), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t, weight", [(20, 0.14), (500, 1.6), (980, 13.0)])
def test_weights_of_the_released_code(t: int, weight: float) -> None:
    abar = schedule().alphas_cumprod[t].item()
    assert math.sqrt((1 - abar) / abar) == pytest.approx(weight, rel=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradient_of_an_exact_denoiser_in_closed_form(prediction: str) -> None:
    """For N(mu, s^2) the mean of g over noise is w(t) sqrt(1-abar) a (z - mu) / (a^2 s^2 + b^2): it vanishes at mu alone."""
    t, s, mu = 400, 0.3, draw(*SHAPE, seed=9)
    x = noise(prediction, t)
    output = reference.gaussian_output(x.schedule, x.z_t, t, mu, s)
    abar = x.schedule.alphas_cumprod[t].item()
    a, b = math.sqrt(abar), math.sqrt(1 - abar)
    z_t = a * x.z + b * x.eps
    share = a / (a + b) if prediction == "flow_prediction" else 1  # of eps_guided - eps in v_guided - (eps - z): 1 - tau
    by_hand = (1 - abar) * (reference.gaussian_eps(z_t, abar, mu, s) - x.eps) / 4 / share
    torch.testing.assert_close(sds.video_gradient(x, output, output, 1.0), by_hand, rtol=1e-8, atol=1e-8)
    still = sds.Noised(x.z, 0 * x.eps, x.schedule.add(x.z, 0 * x.eps, t), t, x.schedule)
    output = reference.gaussian_output(x.schedule, still.z_t, t, mu, s)
    mean = (1 - abar) * b * a * (x.z - mu) / (a * a * s * s + b * b) / 4 / share
    torch.testing.assert_close(sds.video_gradient(still, output, output, 1.0), mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", ["sds", "reconstruction"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_descent_ends_at_the_mean(form: str, prediction: str) -> None:
    mu, table = draw(*SHAPE, seed=9), schedule(prediction)
    z, generator = torch.zeros(SHAPE, dtype=torch.float64), torch.Generator().manual_seed(0)
    for step in range(400):
        t = sds.timestep(0.02, 0.5, 1000, generator)
        x = sds.noised(table, z, t, generator)
        output = reference.gaussian_output(table, x.z_t, t, mu, 0.05)
        if form == "sds":
            g = sds.video_gradient(x, output, output, 1.0)
        else:
            g = sds.reconstruction_gradient(x, output, output, 1.0, 0.5, 1)
        z = z - 4 * 0.5 * (1 - step / 400) * g
    assert (z - mu).abs().max() < 0.15
    assert (mu.abs().max() > 1).item()


def test_guidance_scale_moves_the_fixed_point() -> None:
    """Two Gaussians of equal width, means 1 (prompt) and 0 (no prompt): guided scores have mean `scale`."""
    t, table = 300, schedule("v_prediction")
    for scale in (1.0, 3.0, 50.0):
        z = torch.full(SHAPE, scale, dtype=torch.float64)
        x = sds.Noised(z, 0 * z, table.add(z, 0 * z, t), t, table)
        cond, uncond = (reference.gaussian_output(table, x.z_t, t, torch.full_like(z, m), 0.2) for m in (1.0, 0.0))
        assert sds.video_gradient(x, cond, uncond, scale).abs().max() < 1e-10
        assert sds.video_gradient(x, cond, uncond, scale + 1).abs().max() > 1e-3


def test_variational_gradient() -> None:
    x = noise("v_prediction", 250)
    one, other = draw(*SHAPE, seed=5), draw(*SHAPE, seed=6)
    abar = x.schedule.alphas_cumprod[250].item()
    torch.testing.assert_close(sds.variational_gradient(x, one, other), (1 - abar) * (one - other) / 4)
    assert not sds.variational_gradient(x, one, one.clone()).any()
    mu, here = draw(*SHAPE, seed=9), x.z  # a LoRA that knows the renderings exactly: the gradient points from them to mu
    lora = reference.gaussian_eps(x.schedule.add(x.z, x.eps, 250), abar, here, 0.1)
    prior = reference.gaussian_eps(x.schedule.add(x.z, x.eps, 250), abar, mu, 0.1)
    g = sds.variational_gradient(x, prior, lora)
    assert torch.nn.functional.cosine_similarity(g.flatten(), (x.z - mu).flatten(), 0) > 1 - 1e-9


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lora_loss(prediction: str) -> None:
    x = noise(prediction, 700)
    target = x.schedule.target(x.z, x.eps, 700)
    assert sds.lora_loss(x, target).item() == 0
    assert sds.lora_loss(x, target + 0.5).item() == pytest.approx(0.25)


def test_video_gradient_sums_over_frames_and_divides_by_clips() -> None:
    table = schedule()
    clip = draw(1, 2, 8, 3, 3)
    x = sds.noised(table, clip, 300, torch.Generator().manual_seed(0))
    cond, uncond = draw(*clip.shape, seed=5), draw(*clip.shape, seed=6)
    whole = sds.video_gradient(x, cond, uncond, 2.0)
    frame = sds.Noised(clip[:, :, :1], x.eps[:, :, :1], x.z_t[:, :, :1], 300, table)
    torch.testing.assert_close(whole[:, :, :1], sds.video_gradient(frame, cond[:, :, :1], uncond[:, :, :1], 2.0))
    twice = sds.Noised(*(torch.cat([v, v]) for v in x[:3]), 300, table)
    torch.testing.assert_close(sds.video_gradient(twice, torch.cat([cond] * 2), torch.cat([uncond] * 2), 2.0)[:1], whole / 2)


def test_loss_has_this_gradient() -> None:
    x = noise("epsilon", 300)
    g = sds.video_gradient(x, draw(*SHAPE, seed=5), draw(*SHAPE, seed=6), 3.0)
    z = x.z.clone().requires_grad_(True)
    loss = 0.5 * (z - (x.z - g * len(g))).square().sum() / len(g)
    loss.backward()
    torch.testing.assert_close(z.grad, g)
    assert sds.loss_of(g, len(g)) == pytest.approx(loss.item())


def test_timesteps_cover_their_range_with_both_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {sds.timestep(0.02, 0.025, 1000, generator) for _ in range(400)}
    assert drawn == set(range(20, 26))
    assert sds.timestep(0.98, 0.98, 1000, generator) == 980
    assert {sds.timestep(0.995, 1.0, 1000, generator) for _ in range(200)} == set(range(995, 1000))
    assert sds.timestep(0.02, 0.5, 1000, torch.Generator().manual_seed(3)) == sds.timestep(
        0.02, 0.5, 1000, torch.Generator().manual_seed(3)
    )


def test_amplified_motion_keeps_the_mean_and_scales_the_rest():
    g = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = sds.amplified(g, 7.0)
    for frame in range(4):
        mean = sum(g[:, :, k] for k in range(4)) / 4
        assert torch.allclose(out[:, :, frame], mean + 7 * (g[:, :, frame] - mean), atol=1e-12)
    assert torch.allclose(sds.amplified(g, 1.0), g, atol=1e-12)

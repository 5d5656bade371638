"""Schedules as they are published with video models: flow with a shift, zero terminal SNR, CogVideoX's shifted SNR; and the time that
a network is told at each level."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.errors import FourdfyError

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
WAN = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
COG = {
    "_class_name": "CogVideoXDDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0,
}  # fmt: skip
SHIFTS = (0.5, 1.0, 3.0, 5.0, 12.0)


@pytest.mark.parametrize("config", [*(EULER | {"shift": s} for s in SHIFTS), *(WAN | {"flow_shift": s} for s in SHIFTS), COG], ids=str)
def test_the_exact_output_gives_back_latent_and_noise_at_every_level(config: dict) -> None:
    """For z ~ N(mu, s^2) the optimal output at z_t, by Gaussian conditioning from the scales alone."""
    schedule, mu, s = Schedule.from_config(config), -0.4, 0.6
    t, z_t = torch.arange(1000), torch.full((1000, 1), 0.7, dtype=torch.float64)
    a, b = schedule.scales(t, z_t)
    gain = (z_t - a * mu) / (a * a * s * s + b * b)
    z, eps = mu + a * s * s * gain, b * gain
    output = eps - z if schedule.prediction == "flow_prediction" else a * eps - b * z
    torch.testing.assert_close(schedule.x0(output, z_t, t), z, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.eps(output, z_t, t), eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", SHIFTS)
def test_noise_of_a_flow_is_a_straight_line(shift: float) -> None:
    schedule = Schedule.from_config(EULER | {"shift": shift})
    z, eps = torch.randn(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 1, 499, 500, 998, 999):
        u = (t + 1) / 1000
        tau = shift * u / (1 + (shift - 1) * u)
        torch.testing.assert_close(schedule.add(z, eps, t), (1 - tau) * z + tau * eps, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(schedule.time(t), 1000 * tau, rtol=1e-12, atol=0)
    assert torch.equal(schedule.add(z, eps, 999), eps)


def test_a_flow_network_hears_its_noise_level_and_not_its_index() -> None:
    """At shift 3 index 500 is tau 0.751."""
    assert Schedule.from_config(EULER | {"shift": 3.0}).time(500) == pytest.approx(750.749, abs=1e-3)
    assert Schedule.from_config(WAN).time(500) == 750  # UniPC's times are whole
    assert Schedule.from_config(EULER | {"shift": 1.0}).time(500) == pytest.approx(501)
    assert Schedule.from_config(COG).time(500) == 500


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("shift", SHIFTS)
def test_times_and_levels_are_those_of_diffusers(kind: type, shift: float) -> None:
    theirs = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    ours = Schedule.from_config(dict(theirs.config) | {"_class_name": kind.__name__})
    theirs.set_timesteps(27)  # levels that are on the grid of 1000 too
    noise = ours.scales(torch.arange(1000), torch.zeros(1, dtype=torch.float64))[1]
    for sigma, time in zip(theirs.sigmas.double(), theirs.timesteps.tolist(), strict=False):
        t = int((noise - sigma).abs().argmin())
        assert noise[t].item() == pytest.approx(sigma.item(), abs=2e-6)
        whole = abs(1000 * sigma - (1000 * sigma).round()) < 1e-3  # where their own rounding may end one below
        assert ours.time(t) - time in ((0, 1) if whole else (0,))


def test_euler_tells_fractions() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    ours = Schedule.from_config(dict(theirs.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert [ours.time(t) for t in range(1000)] == pytest.approx(theirs.timesteps.flip(0).tolist(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cogvideox_levels_are_those_of_diffusers(scale: float) -> None:
    theirs = CogVideoXDDIMScheduler.from_config(COG | {"snr_shift_scale": scale})
    ours = Schedule.from_config(COG | {"snr_shift_scale": scale})
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-9, atol=1e-12)
    assert ours.alphas_cumprod[-1] == 0 and ours.time(999) == 999
    plain = Schedule.from_config(COG | {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": False}).alphas_cumprod
    shifted = Schedule.from_config(COG | {"snr_shift_scale": scale, "rescale_betas_zero_snr": False}).alphas_cumprod
    torch.testing.assert_close((plain / (1 - plain)) / (shifted / (1 - shifted)), torch.full_like(plain, scale), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        EULER | {"use_dynamic_shifting": True},
        WAN | {"use_dynamic_shifting": True},
        EULER | {"invert_sigmas": True},
        WAN | {"prediction_type": "epsilon"},
        WAN | {"flow_shift": 0},
        WAN | {"flow_shift": math.inf},
        EULER | {"shift": "3"},
        EULER | {"num_train_timesteps": 10**9},
        EULER | {"num_train_timesteps": True},
        COG | {"snr_shift_scale": -1.0},
    ],
    ids=str,
)
def test_what_a_schedule_cannot_be_says_so(config: dict) -> None:
    with pytest.raises(FourdfyError, match="not supported") as caught:
        Schedule.from_config(config)
    assert caught.value.code == 3 and caught.value.hint and "\n" not in caught.value.message

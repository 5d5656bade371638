"""Noise schedules against diffusers' own schedulers and hand computation."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_guidance import betas_scaled_linear

from fourdfy_cli.diffusion.noise import PREDICTIONS, Schedule, guided
from fourdfy_cli.errors import FourdfyError

RANGE = {"beta_start": 0.00085, "beta_end": 0.012}
STABLE = RANGE | {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def test_alphas_are_stable_diffusions() -> None:
    schedule = Schedule.from_config(STABLE)
    abar = 1.0
    for t, beta in enumerate(betas_scaled_linear(0.00085, 0.012, 1000)):
        abar *= 1 - beta
        assert schedule.alphas_cumprod[t].item() == pytest.approx(abar, rel=1e-10)
    known = {20: 0.981, 100: 0.894, 250: 0.674, 500: 0.276, 750: 0.056, 980: 0.0058}  # METHOD.md, section 4
    for t, value in known.items():
        assert schedule.alphas_cumprod[t].item() == pytest.approx(value, abs=6e-4 if value > 0.01 else 6e-5)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers(kind: str, prediction: str) -> None:
    theirs = DDIMScheduler(beta_start=1e-3, beta_end=0.02, beta_schedule=kind, prediction_type=prediction)
    ours = Schedule.from_config(dict(theirs.config))
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-5, atol=1e-8)
    z, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500, 990])
    torch.testing.assert_close(ours.add(z, eps, t), theirs.add_noise(z, eps, t), rtol=1e-4, atol=1e-5)
    if prediction == "v_prediction":
        torch.testing.assert_close(ours.target(z, eps, t), theirs.get_velocity(z, eps, t), rtol=1e-4, atol=1e-5)


def test_zero_terminal_snr_agrees_with_diffusers() -> None:
    """The last level is noise alone: nothing of the latent in it, no division by nothing on the way back."""
    theirs = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True, **RANGE)
    ours = Schedule.from_config(dict(theirs.config))
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-3, atol=1e-6)
    assert ours.alphas_cumprod[-1] == 0 and (ours.alphas_cumprod.diff() < 0).all()
    z, eps = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.add(z, eps, 999), eps) and torch.equal(ours.x0(ours.target(z, eps, 999), eps, 999), z)
    assert torch.equal(ours.eps(ours.target(z, eps, 999), eps, 999), eps)


def test_flow_agrees_with_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    ours = Schedule.from_config(dict(theirs.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    z, eps = torch.randn(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 300, 980):
        tau = theirs.sigmas.sort().values[theirs.sigmas.numel() - 1000 + t].double()
        torch.testing.assert_close(ours.add(z, eps, t), (1 - tau) * z + tau * eps, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.target(z, eps, t), eps - z)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PREDICTIONS), st.integers(0, 990), st.integers(0, 2**31))
def test_output_gives_back_latent_and_noise(prediction: str, t: int, seed: int) -> None:
    schedule = Schedule(Schedule.from_config(STABLE).alphas_cumprod, prediction)
    z, eps = torch.randn(2, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z_t, output = schedule.add(z, eps, t), schedule.target(z, eps, t)
    torch.testing.assert_close(schedule.x0(output, z_t, t), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.eps(output, z_t, t), eps, rtol=1e-9, atol=1e-9)
    signal, noise = schedule.scales(t, z)
    torch.testing.assert_close(signal / noise, (schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t])).sqrt())


def test_levels_per_element_equal_one_at_a_time() -> None:
    schedule = Schedule.from_config(STABLE | {"prediction_type": "v_prediction"})
    z, eps = torch.randn(2, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([3, 400, 999])
    for function in (schedule.add, schedule.target, schedule.x0, schedule.eps):
        together = function(z, eps, levels)
        for i, t in enumerate(levels.tolist()):
            torch.testing.assert_close(together[i], function(z[i : i + 1], eps[i : i + 1], t)[0])


def test_guidance_is_the_standard_form() -> None:
    cond, uncond = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    assert guided(cond, uncond, 1.0).tolist() == cond.tolist()
    assert guided(cond, uncond, 0.0).tolist() == uncond.tolist()
    assert guided(cond, uncond, 101.0).tolist() == (cond + 100 * (cond - uncond)).tolist()  # the released video form


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample"},
        {"rescale_betas_zero_snr": True},
        {"beta_schedule": None},
        {"beta_end": None},
        {"beta_start": 0.5},
        {"trained_betas": [0.1, 0.2]},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    ],
)
def test_what_is_not_supported_says_so(change: dict) -> None:
    with pytest.raises(FourdfyError, match="not supported") as caught:
        Schedule.from_config(STABLE | change)
    assert caught.value.code == 3
    assert caught.value.hint

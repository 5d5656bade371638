"""Eq. 6 and the reconstruction form for flow models: the same gradient up to weight, at every level; and Eq. 6 at high noise."""

from __future__ import annotations

import pytest
import torch

from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.guidance import sds


def drawn(shift: float, t: int) -> tuple[sds.Noised, torch.Tensor, torch.Tensor]:
    schedule = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift})
    z, cond, uncond = torch.randn(3, 1, 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
    return sds.noised(schedule, z, t, torch.Generator().manual_seed(1)), cond, uncond


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_the_two_forms_are_one_gradient_up_to_weight(shift: float) -> None:
    """g = w (v_cfg - (eps - z)) and z - x0 with x0 = z_tau - tau v."""
    for t in (0, 20, 500, 980, 999):
        x, cond, uncond = drawn(shift, t)
        tau = shift * (t + 1) / 1000 / (1 + (shift - 1) * (t + 1) / 1000)
        guided = uncond + 7.0 * (cond - uncond)
        plain = guided - (x.eps - x.z)
        weight = tau**2 / ((1 - tau) ** 2 + tau**2)
        torch.testing.assert_close(sds.video_gradient(x, cond, uncond, 7.0), weight * plain)
        torch.testing.assert_close(sds.reconstruction_gradient(x, cond, uncond, 7.0, 0.0, 1), tau * plain, rtol=1e-7, atol=1e-9)


def test_pure_noise_still_pulls() -> None:
    x, cond, uncond = drawn(3.0, 999)
    assert sds.video_gradient(x, cond, uncond, 7.0).norm() > 1


def test_the_true_velocity_pulls_nothing() -> None:
    x, _, _ = drawn(3.0, 700)
    v = x.eps - x.z
    assert sds.video_gradient(x, v, v, 7.0).abs().max() < 1e-12


def test_annealed_levels_are_the_ranges_quantiles() -> None:
    assert [sds.annealed(0.02, 0.98, p, 1000) for p in (0, 0.5, 1, 2)] == [980, 500, 20, 20]
    assert [sds.annealed(0.9, 0.2, p, 1000) for p in (0, 1)] == [200, 200] and sds.annealed(0.0, 1.0, 0.0, 1000) == 999

"""The score gradients of 4D-fy, pure functions of tensors.

Notation: z [B ...] clean latents of B pictures (or clips), eps noise, t one noise level for all of them, z_t = noised z;
abar = alphas_cumprod[t]; cond and uncond are the network's raw outputs at z_t under the prompt and the negative prompt, whatever the
schedule says it predicts. Each gradient is d loss / d z of loss = 0.5 sum |z - stopgrad(z - g)|^2 / B, that is g / B (`loss_of` gives
that loss back). Guidance is eps_u + scale (eps_c - eps_u) throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.diffusion.noise import Schedule, guided


class Noised(NamedTuple):
    """Latents z, the noise eps, z_t = z noised by eps to level t of a schedule."""

    z: Tensor
    eps: Tensor
    z_t: Tensor
    t: int
    schedule: Schedule


def timestep(low: float, high: float, T: int, generator: torch.Generator) -> int:
    """A noise level from int(T low) to int(T high), both included (the released code's bounds), never beyond T - 1."""
    first, last = int(T * low), min(int(T * high), T - 1)
    return int(torch.randint(min(first, last), last + 1, (), generator=generator, device=generator.device))


def annealed(low: float, high: float, progress: float, T: int) -> int:
    """The noise level that falls from int(T high) to int(T low) with progress in [0,1], never beyond T - 1: the uniform draw's own
    quantiles in falling order, as CHORD (arXiv 2601.04194) takes its weight's. TC4D's falling upper bound is a ramp of `high`."""
    first, last = int(T * low), min(int(T * high), T - 1)
    return min(first, last) + round((last - min(first, last)) * (1 - min(max(progress, 0.0), 1.0)))


def noised(schedule: Schedule, z: Float[Tensor, "B ..."], t: int, generator: torch.Generator) -> Noised:
    """z with independent noise on each of its elements."""
    eps = torch.randn(z.shape, generator=generator, device=generator.device).to(z)
    return Noised(z, eps, schedule.add(z, eps, t), t, schedule)


def reconstruction_gradient(
    x: Noised,
    cond: Float[Tensor, "B ..."],
    uncond: Float[Tensor, "B ..."],
    scale: float,
    rescale: float,
    groups: int,
) -> Float[Tensor, "B ..."]:
    """Eq. 3 in MVDream's form, g = z - x0: towards the guided clean latents, their contrast drawn back by `rescale` in [0,1] to that of
    the unguided ones in each of `groups` equal runs of the batch. Without rescaling it is SDS with weight sqrt((1 - abar) / abar); of a
    flow, whose x0 is z_tau - tau v, tau (v_guided - (eps - z))."""
    x0_cond = x.schedule.x0(cond, x.z_t, x.t)
    x0 = x.schedule.x0(guided(cond, uncond, scale), x.z_t, x.t)
    plain, bold = (part.reshape(groups, -1).std(1) + 1e-8 for part in (x0_cond, x0))
    factor = rescale * plain / bold + (1 - rescale)
    x0 = (x0.reshape(groups, -1) * factor[:, None]).reshape(x.z.shape)
    return (x.z - x0) / len(x.z)


def variational_gradient(x: Noised, eps_pretrained: Float[Tensor, "B ..."], eps_lora: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Eq. 4, g = (1 - abar) (eps_pretrained - eps_lora): from what renderings look like to what the prompt means. Both are noise
    predictions, since the two networks need not predict the same thing."""
    return x.schedule.weight(x.t, x.z) * (eps_pretrained - eps_lora) / len(x.z)


def lora_loss(x: Noised, output: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
    """Eq. 5: mean squared error of the LoRA network's output at renderings; `x` is noised by the LoRA network's own schedule."""
    return F.mse_loss(output, x.schedule.target(x.z, x.eps, x.t))


def video_gradient(x: Noised, cond: Float[Tensor, "B ..."], uncond: Float[Tensor, "B ..."], scale: float) -> Float[Tensor, "B ..."]:
    """Eq. 6, g = (1 - abar) (eps_guided - eps): plain SDS. Of a clip z [1 C F h w] the loss is a sum over frames.

    For flow models g = w (v_guided - (eps - z)), w = 1 - abar of equal signal-to-noise ratio: eps_guided - eps is (1 - tau) times that
    and vanishes at high noise, where motion is made."""
    if x.schedule.prediction == "flow_prediction":
        return x.schedule.weight(x.t, x.z) * (guided(cond, uncond, scale) - x.schedule.target(x.z, x.eps, x.t)) / len(x.z)
    eps_guided = x.schedule.eps(guided(cond, uncond, scale), x.z_t, x.t)
    return x.schedule.weight(x.t, x.z) * (eps_guided - x.eps) / len(x.z)


def amplified(gradient: Float[Tensor, "B C F h w"], motion: float) -> Float[Tensor, "B C F h w"]:
    """m + motion (g - m), m the mean over frames: what changes in time counts `motion` times as much as what does not. Same zeros; the
    released code's VideoCrafter guidance does so, with 30."""
    mean = gradient.mean(2, keepdim=True)
    return mean + motion * (gradient - mean)


def loss_of(gradient: Tensor, batch: int) -> float:
    """The loss whose gradient this is: 0.5 sum g^2 / B for a gradient g / B of `batch` B pictures or clips."""
    return 0.5 * batch * gradient.square().sum().item()

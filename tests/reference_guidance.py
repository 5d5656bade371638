"""Slow, obvious twins of guidance/ and diffusion/: plain loops in float64, one idea per line, and analytic denoisers.

`save_models` writes tiny random networks of the real classes in the real folder layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn

from fourdfy_cli.diffusion.models import Diffusion, ModelSpec
from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.nano import networks
from fourdfy_cli.scene.cameras import Shot, orbit_camera

DOUBLE = torch.float64


def betas_scaled_linear(low: float, high: float, steps: int) -> list[float]:
    """Stable Diffusion's betas, one at a time."""
    root_low, root_high = math.sqrt(low), math.sqrt(high)
    return [(root_low + (root_high - root_low) * i / (steps - 1)) ** 2 for i in range(steps)]


def gaussian_eps(z_t: Tensor, abar: float, mu: Tensor, s: float) -> Tensor:
    """The optimal noise prediction for data ~ N(mu, s^2): E[eps | z_t], by Gaussian conditioning."""
    a, b = math.sqrt(abar), math.sqrt(1 - abar)
    return b * (z_t - a * mu) / (a * a * s * s + b * b)


def gaussian_output(schedule: Schedule, z_t: Tensor, t: int, mu: Tensor, s: float) -> Tensor:
    """The optimal network output for data ~ N(mu, s^2), in whatever terms the schedule predicts."""
    signal, noise = (scale.item() for scale in schedule.scales(t, z_t))
    mean_z = mu + signal * s * s * (z_t - signal * mu) / (signal * signal * s * s + noise * noise)
    eps = (z_t - signal * mean_z) / noise
    return schedule.target(mean_z, eps, t)


def reconstruction(z: Tensor, x0_cond: Tensor, x0_guided: Tensor, rescale: float, groups: int) -> Tensor:
    """Eq. 3's gradient, group by group, with a spelled-out standard deviation."""
    gradient = torch.zeros_like(z)
    size = len(z) // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        k = (deviation(x0_cond[part]) + 1e-8) / (deviation(x0_guided[part]) + 1e-8)
        x0 = rescale * k * x0_guided[part] + (1 - rescale) * x0_guided[part]
        gradient[part] = (z[part] - x0) / len(z)
    return gradient


def deviation(x: Tensor) -> float:
    values = x.flatten().tolist()
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def joint_attention(attn, hidden: Tensor, views: int) -> Tensor:
    """Self-attention across views, one object, head and query at a time; hidden [B views, L, C]."""
    out = torch.zeros_like(hidden)
    for first in range(0, len(hidden), views):
        tokens = torch.cat([hidden[first + v] for v in range(views)])
        q, k, v = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        width = q.shape[1] // attn.heads
        mixed = torch.zeros_like(q)
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(len(tokens)):
                weights = torch.softmax(k[:, part] @ q[i, part] / math.sqrt(width), 0)
                mixed[i, part] = weights @ v[:, part]
        mixed = attn.to_out[0](mixed)
        for view in range(views):
            out[first + view] = mixed[view * hidden.shape[1] : (view + 1) * hidden.shape[1]]
    return out


def unet3d() -> UNet3DConditionModel:
    """A small video UNet of the class that Zeroscope's is."""
    return UNet3DConditionModel(
        sample_size=networks.LATENT_SIZE,
        in_channels=networks.LATENT_CHANNELS,
        out_channels=networks.LATENT_CHANNELS,
        block_out_channels=networks.CHANNELS,
        down_block_types=("CrossAttnDownBlock3D",) * 2,
        up_block_types=("CrossAttnUpBlock3D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=networks.TEXT_WIDTH,
        attention_head_dim=networks.HEAD_WIDTH,
    )


def save_models(folder: Path, seed: int = 0) -> dict[str, ModelSpec]:
    """Random nano networks in `folder`, laid out as the ones that ship; the specs by role."""
    torch.manual_seed(seed)
    networks.vae().save_pretrained(folder / "vae")
    networks.text_encoder(networks.tokenizer(folder / "tokenizer")).save_pretrained(folder / "text_encoder")
    networks.scheduler().save_pretrained(folder / "scheduler")
    networks.unet2d(camera=True).save_pretrained(folder / "multiview_unet")
    networks.unet2d(camera=False).save_pretrained(folder / "image_unet")
    unet3d().save_pretrained(folder / "video_unet")
    return {role: ModelSpec(role, str(folder), unet=f"{role}_unet") for role in ("multiview", "image", "video")}


@dataclass
class World:
    specs: dict[str, ModelSpec]
    models: dict[str, Diffusion]
    texts: Texts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shot(azimuth: list[float], size: int = 64, moving: bool = False) -> Shot:
    views = len(azimuth)
    c2w = orbit_camera(torch.tensor(azimuth).deg2rad().double(), torch.full((views,), 0.3).double(), torch.full((views,), 2.7).double())
    time = torch.arange(views) / views if moving else torch.zeros(views)
    return Shot(c2w, torch.full((views,), 0.7).double(), time.double(), (size, size))


def pictures(views: int, size: int = 64, seed: int = 1) -> Tensor:
    return torch.rand(views, size, size, 3, dtype=DOUBLE, generator=seeded(seed))


def direct(vae: nn.Module, rgb: Tensor, size: int, target: Tensor) -> Tensor:
    """d/d rgb of 0.5 sum (z - target)^2 / len(z), by plain autograd; target is the constant z - g."""
    leaf = rgb.clone().requires_grad_(True)
    picture = F.interpolate(leaf.permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False)
    z = vae.encode(2 * picture - 1).latent * vae.config.scaling_factor
    (0.5 * (z - target).square().sum() / len(z)).backward()
    return leaf.grad


def drawn(world: World, rgb: Tensor, seed: int = 0, low: int = 300, high: int = 400) -> tuple[Tensor, Tensor, int, DDIMScheduler]:
    """What a guidance draws: latents, noise, level; and diffusers' scheduler."""
    generator = seeded(seed)
    t = int(torch.randint(low, high + 1, (), generator=generator))
    with torch.no_grad():
        z = world.models["image"].vae.encode(2 * rgb.permute(0, 3, 1, 2) - 1).latent
    eps = torch.randn(z.shape, generator=generator).double()
    return z, eps, t, exact_scheduler(world)


def exact_scheduler(world: World) -> DDIMScheduler:
    """diffusers' scheduler, its table in float64."""
    scheduler = DDIMScheduler.from_pretrained(Path(world.specs["image"].source) / "scheduler")
    betas = torch.tensor(betas_scaled_linear(0.00085, 0.012, 1000), dtype=DOUBLE)
    assert (scheduler.betas - betas).abs().max() < 1e-8
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    return scheduler


def to_x0(scheduler: DDIMScheduler, v: Tensor, z_t: Tensor, t: int) -> Tensor:
    abar = scheduler.alphas_cumprod[t]
    return abar.sqrt() * z_t - (1 - abar).sqrt() * v


@torch.no_grad()
def velocity(unet: nn.Module, z_t: Tensor, t: int, words: Tensor, camera: Tensor | None = None) -> Tensor:
    labels = {} if camera is None else {"class_labels": camera}
    return unet(z_t, torch.tensor(t), words.expand(len(z_t), -1, -1), **labels).sample


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for the autoencoder's RMSNorm, which computes in float32 whatever its dtype."""
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


class Exact(nn.Module):
    """The optimal denoiser of latents ~ N(mu, s^2), with a UNet's signature."""

    def __init__(self, schedule, mu: Tensor, s: float):
        super().__init__()
        self.schedule, self.mu, self.s, self.dtype = schedule, mu, s, DOUBLE
        self.class_embedding = SimpleNamespace(linear_1=nn.Linear(1, 1).double())
        self.config = {"projection_class_embeddings_input_dim": 16}

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        mu = self.mu.repeat(len(z_t) // len(self.mu), *[1] * (z_t.dim() - 1))
        return SimpleNamespace(sample=gaussian_output(self.schedule, z_t, int(t), mu, self.s))

"""The nano video model: the image UNet, inflated exactly, then trained on clips of one period."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion.temporal import flatten_temporal_convolutions
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Fit, Plan
from fourdfy_cli.nano.latents import Captions, cache, decode_subject, noised

STILL = 0.25  # of the captions name no motion: what they describe stands still
LATE = 350  # three batches in four are noised at least to this timestep: below it, the clip shows where everything is


def inflate(image: UNet2DConditionModel) -> UNet3DConditionModel:
    """A video UNet that gives every frame what the image UNet gives it: same spatial weights, and temporal layers
    whose last projection is zero (diffusers starts its temporal convolutions that way already)."""
    video = networks.unet3d()
    state = video.state_dict()
    spatial = image.state_dict()
    strangers = [key for key, value in spatial.items() if key not in state or state[key].shape != value.shape]
    if strangers:
        raise ValueError(f"the image UNet has weights the video UNet lacks: {strangers[:3]}")
    video.load_state_dict({**state, **spatial})
    for module in video.modules():
        if isinstance(module, TransformerTemporalModel):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return video


@dataclass
class Clip:
    """Training clip: latents [C F h w] as its caption says, and `seen` [C F h w], what is noised and shown instead."""

    latents: Tensor
    seen: Tensor
    caption: str

    @property
    def honest(self) -> bool:
        return self.seen is self.latents


def draw_clip(pools: dict[str, dict[str, Tensor]], rng: np.random.Generator) -> Clip:
    """A thing that moves and a caption that says how, or (STILL) one that stands still and a caption without a motion;
    most of the time seen somewhere between moving and standing still."""
    clips, frozen = pools["clips"], pools["frozen"]
    row, still = int(rng.integers(len(clips["latents"]))), rng.random() < STILL
    caption = data.caption(decode_subject(clips["subjects"][row]), rng, float(clips["azimuth"][row, 0]), 0.0 if still else 1.0)
    moving = clips["latents"][row].float().transpose(0, 1)
    held = frozen["latents"][row].float().expand(networks.FRAMES, -1, -1, -1).transpose(0, 1)
    latents, other = (held, moving) if still else (moving, held)
    u = rng.random()
    if not caption or u < (0.5 if still else 0.2):
        return Clip(latents, latents, caption)
    far = 1.0 if u < 0.7 and not still else rng.random()
    return Clip(latents, latents + far * (other - latents), caption)


def train_video(folder: Path, base: Path, vae_folder: Path, plan: Plan, seed: int = 0, report=print) -> None:
    """Train the video UNet on clips of one period; the text encoder is frozen.

    Score distillation asks the model about something no plain training shows it: a thing that stands still, under
    noise, with a prompt that says it jumps (or one that moves already, with a prompt that names no motion). A model
    trained on clips alone takes what it sees for evidence and keeps it. So most clips are seen otherwise than their
    caption says: z_t is noised from between the moving and the still clip, and the target is what the caption says.
    Their squared v-error is weighted by 1 - abar, which makes it the squared x0-error.
    """
    torch.manual_seed(seed)
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval().requires_grad_(False)
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    pools = {
        "clips": cache(folder / "clips.safetensors", seed, 6144, "clips", vae, report),
        "frozen": cache(folder / "frozen.safetensors", seed, 6144, "frozen", vae, report),
    }
    unet = inflate(UNet2DConditionModel.from_pretrained(base / "image_unet")).eval()
    flatten_temporal_convolutions(unet)
    fit = Fit("video", {"unet": unet}, plan, folder, seed, report=report)
    fit.resume()
    abar, captions = networks.scheduler().alphas_cumprod, Captions(tokens, encoder)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        clips = [draw_clip(pools, rng) for _ in range(plan.batch)]
        z, seen = torch.stack([c.latents for c in clips]), torch.stack([c.seen for c in clips])
        honest = torch.tensor([c.honest for c in clips]).reshape(-1, 1, 1, 1, 1)
        t = torch.randint(LATE if rng.random() < 0.75 else 0, 1000, (plan.batch,), generator=generator)
        signal = abar[t].reshape(-1, 1, 1, 1, 1)
        z_t, _ = noised(seen, t, abar, generator)
        v = (signal.sqrt() * z_t - z) / (1 - signal).sqrt()
        error = (unet(z_t, t, captions([c.caption for c in clips])).sample - v).square()
        return torch.where(honest, error, (1 - signal) * error).mean()

    fit.run(loss)
    unet.save_pretrained(folder / "video_unet")

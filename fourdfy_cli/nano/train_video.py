"""The nano video model: the image UNet, inflated exactly, then trained on clips of one period."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion.convolutions import flatten_convolutions
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Fit, Plan
from fourdfy_cli.nano.latents import Captions, cache, decode_subject, noised
from fourdfy_cli.nano.prompts import MOTIONS

LOUD = 0.25  # standard deviation of a motion word's fresh embedding; other words' is 0.05
STILL = 0.1  # of the clips stand still
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


def attentive(base: Path) -> CLIPTextModel:
    """The video model's own text encoder: the shared one, its motion words drawn anew. That one learned with still pictures, where a
    motion word is idle talk (data.caption), to hear none of them: "jumping" and "swaying" are 6 % of "red" and "blue" apart."""
    tokens, encoder = CLIPTokenizer.from_pretrained(base / "tokenizer"), CLIPTextModel.from_pretrained(base / "text_encoder").float()
    ids = [tokens(word, add_special_tokens=False).input_ids[0] for word in MOTIONS]
    words: Any = encoder.get_input_embeddings()
    with torch.no_grad():
        words.weight[ids] = LOUD * torch.randn(len(ids), networks.TEXT_WIDTH)
    return encoder.eval()


@dataclass
class Clip:
    """Training clip: latents [C F h w], the same thing before it moves, a caption, and how far it moves yet (0..1)."""

    latents: Tensor
    frozen: Tensor
    caption: str
    moved: float


def draw_clip(pools: dict[str, dict[str, Tensor]], rng: np.random.Generator) -> Clip:
    """A clip that moves and says how, most of the time damped; or (STILL) one view, held, that names no motion."""
    pool = pools["views" if (still := rng.random() < STILL) else "clips"]
    row, view = int(rng.integers(len(pool["latents"]))), int(rng.integers(4)) if still else 0
    caption = data.caption(decode_subject(pool["subjects"][row]), rng, float(pool["azimuth"][row, view]), 0.0 if still else 1.0)
    held = pool["latents"][row, view : view + 1] if still else pools["frozen"]["latents"][row]
    frozen = held.float().expand(networks.FRAMES, -1, -1, -1).transpose(0, 1)
    latents = frozen if still else pool["latents"][row].float().transpose(0, 1)
    u = rng.random()
    moved = 1.0 if still or not caption or u < 0.2 else 0.0 if u < 0.7 else rng.random()
    return Clip(latents, frozen, caption, moved)


def train_video(folder: Path, base: Path, vae_folder: Path, plan: Plan, seed: int = 0, report=print) -> None:
    """Train the video UNet and its text encoder on clips of one period.

    Score distillation asks the model about something no plain training shows it: a thing that stands still, under
    noise, with a prompt that says it jumps. A model trained on clips alone takes the stillness for evidence and keeps
    it. So most moving clips are damped: z_t is noised from between the moving and the frozen clip, and the target is
    the moving one. Their squared v-error is weighted by 1 - abar, which makes it the squared x0-error.
    """
    torch.manual_seed(seed)
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = attentive(base)
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    pools = {
        "clips": cache(folder / "clips.safetensors", seed, plan.pool, "clip", vae, report),
        "frozen": cache(folder / "frozen.safetensors", seed, plan.pool, "frozen", vae, report),
        "views": cache(base / "views.safetensors", seed, 2 * plan.pool, "still", vae, report),
    }
    unet = inflate(UNet2DConditionModel.from_pretrained(base / "image_unet")).eval()
    flatten_convolutions(unet)
    fit = Fit("video", {"unet": unet, "text_encoder": encoder}, plan, folder, seed, report=report)
    fit.resume()
    abar, captions = networks.scheduler().alphas_cumprod, Captions(tokens, encoder)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        clips = [draw_clip(pools, rng) for _ in range(plan.batch)]
        z, frozen = torch.stack([c.latents for c in clips]), torch.stack([c.frozen for c in clips])
        moved = torch.tensor([c.moved for c in clips], dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
        t = torch.randint(LATE if rng.random() < 0.75 else 0, 1000, (plan.batch,), generator=generator)
        signal = abar[t].reshape(-1, 1, 1, 1, 1)
        z_t, _ = noised(frozen + moved * (z - frozen), t, abar, generator)
        v = (signal.sqrt() * z_t - z) / (1 - signal).sqrt()
        error = (unet(z_t, t, captions([c.caption for c in clips])).sample - v).square()
        return torch.where(moved < 1, (1 - signal) * error, error).mean()

    fit.run(loss)
    unet.save_pretrained(folder / "video_unet")
    encoder.save_pretrained(folder / "video_text_encoder")

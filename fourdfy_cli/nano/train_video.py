"""The nano video model: the image UNet, inflated exactly, then trained on clips of one period."""

from __future__ import annotations

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

STILL = 0.15


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


def _clip(pool: dict[str, Tensor], rng: np.random.Generator, motion: float) -> tuple[Tensor, str]:
    """Latents [C F h w] and a caption: of a group of consecutive frames, or (motion 0) of one view, held."""
    row = int(rng.integers(len(pool["latents"])))
    view = 0 if motion else int(rng.integers(pool["latents"].shape[1]))
    latents = pool["latents"][row].float() if motion else pool["latents"][row, view].float().expand(networks.FRAMES, -1, -1, -1)
    caption = data.caption(decode_subject(pool["subjects"][row]), rng, float(pool["azimuth"][row, view]), motion)
    return latents.transpose(0, 1), caption


def train_video(folder: Path, base: Path, vae_folder: Path, plan: Plan, seed: int = 0, report=print) -> None:
    """Train the video UNet on clips, view words most of the time; the text encoder is frozen. Moving clips always say
    how they move; STILL of the clips are a single picture all along, and their captions name no motion."""
    torch.manual_seed(seed)
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval().requires_grad_(False)
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    pool = cache(folder / "clips.safetensors", seed, 6144, networks.FRAMES, True, vae, report)
    still = cache(base / "views.safetensors", seed, 12288, 4, False, vae, report)
    unet = inflate(UNet2DConditionModel.from_pretrained(base / "image_unet")).eval()
    flatten_temporal_convolutions(unet)
    fit = Fit("video", {"unet": unet}, plan, folder, seed, report=report)
    fit.resume()
    abar, captions = networks.scheduler().alphas_cumprod, Captions(tokens, encoder)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = [_clip(still, rng, 0.0) if rng.random() < STILL else _clip(pool, rng, 1.0) for _ in range(plan.batch)]
        z, texts = torch.stack([clip for clip, _ in rows]), [text for _, text in rows]
        z_t, v = noised(z, t := torch.randint(0, 1000, (plan.batch,), generator=generator), abar, generator)
        return (unet(z_t, t, captions(texts)).sample - v).square().mean()

    fit.run(loss)
    unet.save_pretrained(folder / "video_unet")

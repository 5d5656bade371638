"""The nano video model: the image UNet, inflated exactly, then trained on clips of one period."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion.convolutions import flatten_convolutions
from fourdfy_cli.diffusion.text import load_encoder
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Fit, Plan, Recorded
from fourdfy_cli.nano.latents import SHARP, SMUDGED, Captions, cache, decode_subject, noised, words
from fourdfy_cli.nano.prompts import MOTIONS

LOUD = 0.25  # standard deviation of a motion word's fresh embedding; other words' is 0.05
STILL = 0.12  # of the captions name no motion, and their clips stand still
LATE = 350  # noise level from which on the input may be wrong: below it, the clip shows where everything is
BLIND = 950  # from here on a still clip can hardly be told from a moving one: sqrt(abar) times their distance (50 to 100) is below 2
LEVELS = ((0.15, 0, LATE), (0.55, LATE, BLIND), (0.3, BLIND, 1000))  # share of the draws, from level, to level
WRONG = {"right": 0.2, "still": 0.3, "damped": 0.15, "other": 0.1, "shifted": 0.08, "mixed": 0.07, "faded": 0.1}  # shares of inputs
RENDERED = 0.25  # of the inputs are pictures of scenes, where there is a file of them (renders.py)


def inflate(image: UNet2DConditionModel) -> UNetMotionModel:
    """A video UNet that gives every frame what the image UNet gives it: same spatial weights, and temporal layers
    whose last projection is zero."""
    video = networks.video_unet()
    state = video.state_dict()
    spatial = image.state_dict()
    strangers = [key for key, value in spatial.items() if key not in state or state[key].shape != value.shape]
    if strangers:
        raise ValueError(f"the image UNet has weights the video UNet lacks: {strangers[:3]}")
    video.load_state_dict({**state, **spatial})
    for module in video.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return video


def attentive(base: Path) -> CLIPTextModel:
    """The video model's own text encoder: the shared one, its motion words drawn anew, loud and apart. In single pictures they say
    little (data.caption), and as quiet as other words a video model did not hear them."""
    tokens, encoder = CLIPTokenizer.from_pretrained(base / "tokenizer"), load_encoder(base / "text_encoder", "cpu").requires_grad_(True)
    ids = [tokens(word, add_special_tokens=False).input_ids[0] for word in MOTIONS]
    words: Any = encoder.get_input_embeddings()
    with torch.no_grad():
        words.weight[ids] = LOUD * torch.randn(len(ids), networks.TEXT_WIDTH)
    return encoder.eval()


@dataclass
class Clip:
    """Training clip: the clean latents to give back [C F h w], those that are noised instead, a caption, and whether they are the same."""

    target: Tensor
    shown: Tensor
    caption: str

    @property
    def right(self) -> bool:
        return self.shown is self.target


def worsened(clip: Tensor, frozen: Tensor, other: Tensor | None, rng: np.random.Generator) -> Tensor:
    """What a scene on its way may look like when it should look like `clip` [C F h w]: as it is, still, not far along, in another motion,
    out of step, two clips in one, or with what moves fast gone (the mean of neighbouring frames)."""
    how = rng.choice(list(WRONG), p=list(WRONG.values()))
    later = clip.roll(int(rng.integers(1, clip.shape[1])), 1)
    if how == "still":
        return frozen
    if how == "damped":
        return frozen + rng.random() * (clip - frozen)
    if how == "other" and other is not None:
        return frozen + rng.uniform(0.3, 1) * (other - frozen)
    if how == "shifted":
        return later
    if how in ("mixed", "other"):
        return torch.lerp(clip, later if other is None or rng.random() < 0.5 else other, rng.uniform(0.2, 0.8))
    if how == "faded":
        blurred = (clip.roll(-1, 1) + clip + clip.roll(1, 1)) / 3
        return blurred if rng.random() < 0.5 else (blurred.roll(-1, 1) + blurred + blurred.roll(1, 1)) / 3
    return clip


def draw_clip(pools: dict[str, dict[str, Tensor]], t: int, rng: np.random.Generator) -> Clip:
    """A clip for noise level t. It moves and its caption says how; or (STILL) the thing rests, and the caption names no motion. From LATE
    on what is shown is worsened, and where there are renders, often one of them. From SHARP on half of what is shown is between sharp and
    `smudged`, as a scene is before it is sharp. Under no caption the target is what is shown."""
    late, still = t >= LATE, rng.random() < STILL
    if late and "renders" in pools and rng.random() < RENDERED:
        pool = pools["renders"]
        row = int(rng.integers(len(pool["shown"])))
        subject = decode_subject(pool["subjects"][row])
        target, shown = (pool[name][row].float().transpose(0, 1) for name in ("latents", "shown"))
        return Clip(target, shown, data.caption(subject, rng, float(pool["azimuth"][row, 0])))
    pool = pools["clips"]
    row = int(rng.integers(len(pool["latents"])))
    subject, azimuth = decode_subject(pool["subjects"][row]), float(pool["azimuth"][row, 0])
    caption = data.caption(subject, rng, azimuth, 0.0 if still else 1.0)
    blur = rng.random() if t >= SHARP and rng.random() < SMUDGED else 0.0

    def looks(name: str, blur: float) -> Tensor:
        """A pool's latents [C F h w] of this thing, this far from sharp to smudged."""
        sharp, smudged = (pools[name][key][row].float() for key in ("latents", "smudged"))
        return torch.lerp(sharp, smudged, blur).expand(networks.FRAMES, -1, -1, -1).transpose(0, 1)

    target = looks("frozen" if still else "clips", 0.0)
    if not caption or not (late or blur):
        return Clip(target, target, caption)
    clip, frozen = looks("clips", blur), looks("frozen", blur)
    if still:
        shown = frozen + rng.random() * (clip - frozen) if late and rng.random() < 0.5 else frozen
    elif late:
        shown = worsened(clip, frozen, looks("other", blur) if row < len(pools["other"]["latents"]) else None, rng)
    else:
        shown = clip
    right = blur == 0 and shown is (frozen if still else clip)
    return Clip(target, target if right else shown, caption)


def draw_levels(count: int, rng: np.random.Generator) -> list[int]:
    """Noise levels by LEVELS."""
    parts = rng.choice(len(LEVELS), count, p=[share for share, _, _ in LEVELS])
    return [int(rng.integers(*LEVELS[part][1:])) for part in parts]


def pools_of(folder: Path, vae_folder: Path, plan: Plan, seed: int, device: str = "cpu", report=print) -> dict[str, dict[str, Tensor]]:
    """Clips, what they show before they move, the first quarter of them in another motion, and renders.safetensors if that is there."""
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    pools = {
        "clips": cache(folder / "clips.safetensors", seed, plan.pool, "clip", vae, device, report),
        "frozen": cache(folder / "frozen.safetensors", seed, plan.pool, "frozen", vae, device, report),
        "other": cache(folder / "other.safetensors", seed, plan.pool // 4, "other", vae, device, report),
    }
    saved = folder / "renders.safetensors"
    return pools | ({"renders": load_file(saved)} if saved.exists() else {})


class VideoLoss(nn.Module):
    """Weighted squared error of v over clips [N C F h w] with a caption [N L] each, as a function of tensors."""

    def __init__(self, unet: nn.Module, encoder: CLIPTextModel):
        super().__init__()
        self.unet, self.encoder = unet, encoder

    def forward(self, z_t: Tensor, v: Tensor, weight: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        out = self.unet(z_t, t, words(self.encoder, ids, len(t) * networks.FRAMES)).sample
        return (weight * (out - v).square()).mean()


def train_video(folder: Path, base: Path, vae_folder: Path, plan: Plan, seed: int = 0, device: str = "cpu", report=print) -> None:
    """Train the video UNet and its text encoder on clips of one period.

    Branch distillation asks the model about something no plain training shows it: a thing that stands still, under
    noise, with a prompt that says it jumps. A model trained on clips alone takes the stillness for evidence and keeps
    it. So what is noised is often wrong (`worsened`), and the target is what the caption says. The squared v-error of
    these is weighted by 1 - abar, which makes it the squared x0-error. The noise ends in nothing but noise
    (networks.scheduler), and 3 draws in 10 are from where the clip hardly shows: there the caption is all there is.
    """
    torch.manual_seed(seed)
    encoder, scheduler = attentive(base), networks.scheduler(to_noise=True)
    pools = pools_of(folder, vae_folder, plan, seed, device, report)
    unet = inflate(UNet2DConditionModel.from_pretrained(base / "image_unet")).eval()
    flatten_convolutions(unet)
    fit = Fit("video", {"unet": unet, "text_encoder": encoder}, plan, folder, seed, device, report=report)
    fit.resume()
    abar, captions = scheduler.alphas_cumprod, Captions(CLIPTokenizer.from_pretrained(base / "tokenizer"))

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
        levels = draw_levels(plan.batch, rng)
        clips = [draw_clip(pools, t, rng) for t in levels]
        z, t = torch.stack([c.target for c in clips]), torch.tensor(levels)
        right = torch.tensor([c.right for c in clips])
        return *noised(torch.stack([c.shown for c in clips]), z, right, abar[t], generator), t, captions([c.caption for c in clips])

    fit.run(draw, Recorded(VideoLoss(unet, encoder)))
    unet.save_pretrained(folder / "video_unet")
    encoder.save_pretrained(folder / "video_text_encoder")
    scheduler.save_pretrained(folder / "video_scheduler")

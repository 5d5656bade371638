"""The nano multi-view model, told camera and moment of each view; the image model is inside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from fourdfy_cli.diffusion.models import Unet
from fourdfy_cli.diffusion.multiview import VIEWS, fold_views
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Draw, Fit, Plan, Recorded
from fourdfy_cli.nano.latents import SHARP, SMUDGED, Captions, cache, decode_subject, noised, words
from fourdfy_cli.nano.train_video import LATE
from fourdfy_cli.scene.cameras import moment

GROUPS = 0.7  # of the batches are groups of views; the rest are single pictures
POSED = 600  # noise level below which half of the single pictures' things are caught in motion
NAMED = 5 / 6  # of the single pictures' captions name the view; the twin of Eq. 4 is shown the bare prompt
WRONG = 0.5  # of the groups from noise level LATE on are not as far along as they should be


def train_multiview(folder: Path, vae_folder: Path, plan: Plan, seed: int = 0, device: str = "cpu", report=print) -> None:
    """Train the multi-view UNet and the text encoder together, mean squared error of v; then fold the zero camera away for the image
    UNet."""
    torch.manual_seed(seed)
    tokens = networks.tokenizer(folder / "tokenizer")
    encoder = networks.text_encoder(tokens)
    unet: Unet = networks.unet2d(camera=True)
    unet.to(memory_format=torch.channels_last)
    fit = Fit("multiview", {"unet": unet, "text_encoder": encoder}, plan, folder, seed, device, report=report)
    fit.resume()

    losses = {views: Recorded(MultiviewLoss(unet, encoder, views)) for views in (VIEWS, 1)}
    draw = multiview_draw(folder, vae_folder, plan, seed, Captions(tokens), device, report)
    fit.run(draw, lambda views, *drawn: losses[views](*drawn))
    encoder.save_pretrained(folder / "text_encoder")
    networks.scheduler().save_pretrained(folder / "scheduler")
    fold_views(unet, 1)
    unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "multiview_unet")
    image_half(unet).save_pretrained(folder / "image_unet")


class MultiviewLoss(nn.Module):
    """Weighted squared error of v over pictures [N C h w], N / `views` groups of `views` with a caption [G L] each, as a function of
    tensors."""

    def __init__(self, unet, encoder: CLIPTextModel, views: int):
        super().__init__()
        self.unet, self.encoder, self.views = unet, encoder, views

    def forward(self, z_t: Tensor, v: Tensor, weight: Tensor, t: Tensor, camera: Tensor, ids: Tensor) -> Tensor:
        fold_views(self.unet, self.views)
        z_t = z_t.contiguous(memory_format=torch.channels_last)
        out = self.unet(z_t, t, words(self.encoder, ids, len(t)), class_labels=camera).sample
        return (weight * (out - v).square()).mean()


def multiview_draw(folder: Path, vae_folder: Path, plan: Plan, seed: int, captions: Captions, device: str = "cpu", report=print) -> Draw:
    """As MVDream was trained: 70 % of the batches are groups of 4 views with cameras, the rest single pictures with view words and a zero
    camera. Draws the number of views and what MultiviewLoss takes.

    Groups are told their moment. Half of them are caught at a random time of a motion that their caption names; the others rest: at t = 0
    if their caption names a motion, at any time if it does not. Stage 3 asks about scenes that are not yet as far along as they should
    be, so from LATE on half of what is noised is between the thing at rest and in motion, and the target is what caption and moment say
    (as in train_video.py). Single pictures are not told: above POSED, where a pose cannot be seen, they rest whatever motion the caption
    names. And what a scene looks like before it is sharp has no eyes: from SHARP on, half of all pictures are between sharp and `smudged`,
    and the target is the sharp one. Under no caption the target is always what is shown.
    """
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    rest, posed = (cache(folder / f"{kind}.safetensors", seed, plan.pool, kind, vae, device, report) for kind in ("still", "posed"))
    abar = networks.scheduler().alphas_cumprod

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple:
        together = rng.random() < GROUPS
        views = VIEWS if together else 1
        groups = plan.batch // views
        t = torch.randint(0, 1000, (groups,), generator=generator)
        moves, named = rng.random((2, groups)) < 0.5
        moves &= together | (t.numpy() < POSED)
        named |= moves
        rows = rng.integers(0, len(posed["latents"]), groups)
        subjects = [decode_subject(row) for row in posed["subjects"][rows]]
        if together:
            at = rows, slice(None)
            time = np.where(moves, posed["time"][rows, 0], np.where(named, 0, rng.random(groups)))
            told = moment(torch.from_numpy(time)).float()[:, None].expand(-1, views, -1)
            camera = torch.cat([posed["cameras"][at], told], -1).flatten(0, 1)
            texts = [data.caption(s, rng, motion=float(n)) for s, n in zip(subjects, named, strict=True)]
        else:
            at = rows, rng.integers(0, VIEWS, groups)
            camera = torch.zeros(groups, networks.VIEW)
            drawn = zip(subjects, posed["azimuth"][at].tolist(), named, strict=True)
            texts = [data.caption(s, rng, azimuth, float(n), view=NAMED) for s, azimuth, n in drawn]
        captioned, level = np.array([text != "" for text in texts]), t.numpy()
        damped = together & captioned & (level >= LATE) & (rng.random(groups) < WRONG)
        dull = captioned & (level >= SHARP) & (rng.random(groups) < SMUDGED)
        reach = np.where(damped, rng.uniform(-0.5, 1, groups).clip(0), moves)

        def looks(reach: np.ndarray, name: str) -> Tensor:
            """Latents [G V C h w] of things as far along as this [G], sharp or smudged by name."""
            still, moved = (pool[name][at].float().view(groups, views, *networks.LATENT) for pool in (rest, posed))
            return torch.lerp(still, moved, along(reach))

        shown = torch.lerp(looks(reach, "latents"), looks(reach, "smudged"), along(rng.random(groups) * dull)).flatten(0, 1)
        z = looks(moves, "latents").flatten(0, 1)
        t, right = (x.repeat_interleave(views) for x in (t, torch.from_numpy(~(damped | dull))))
        return views, *noised(shown, z, right, abar[t], generator), t, camera, captions(texts)

    return draw


def along(share: np.ndarray) -> Tensor:
    """[G] as [G 1 1 1 1]."""
    return torch.from_numpy(share).float()[:, None, None, None, None]


def image_half(unet: Unet) -> UNet2DConditionModel:
    """The image UNet inside a multi-view one: the embedding of the zero camera and moment folded into the time embedding."""
    image = networks.unet2d(camera=False)
    with torch.no_grad():
        state = {k: v.clone() for k, v in unet.state_dict().items() if not k.startswith("class_embedding")}
        state["time_embedding.linear_2.bias"] += unet.class_embedding(torch.zeros(1, networks.VIEW))[0]
    image.load_state_dict(state)
    return image

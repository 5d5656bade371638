"""Latents, captions and noise for training the nano diffusion models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.scene.cameras import unit_camera


def cache(path: Path, seed: int, groups: int, kind: data.Kind, vae, report=print) -> dict[str, Tensor]:
    """Latents [N V C h w] (half precision), cameras [N V 16], azimuths [N V] and subjects [N 3] of drawn groups; kept
    in a file, made again from the seed if it is not there.

    Kinds as in `data.draw`: V = 4 sides of "still" and "posed" things, FRAMES frames of a "clip", one picture of a
    "frozen" one, the same draw as the clip.
    """
    turning = kind in ("still", "posed")
    views = 4 if turning else networks.FRAMES
    if path.exists():
        return load_file(path)
    rng, parts = np.random.default_rng((seed, views, kind != "still")), []
    for start in range(0, groups, 64):
        batch = data.draw(rng, 64, views, kind)
        with torch.no_grad():
            z = vae.encode(batch.rgb.flatten(0, 1)).latent.unflatten(0, (64, -1)).half()
        parts.append((z, unit_camera(batch.c2w.flatten(0, 1)).unflatten(0, (64, -1)), batch.azimuth, encode_subjects(batch.subjects)))
        if start % 2048 == 0:
            report(f"drawing {path.stem}: {start}/{groups}")
    names = ("latents", "cameras", "azimuth", "subjects")
    made = {name: torch.cat([p[i] for p in parts]).contiguous() for i, name in enumerate(names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(made, path)
    return made


def encode_subjects(subjects: list[Subject]) -> Tensor:
    """Subjects as indices [N 3] into OBJECTS, COLOURS, MOTIONS (-1: none)."""
    index = lambda names, name: -1 if name is None else list(names).index(name)  # noqa: E731
    return torch.tensor([[index(OBJECTS, s.object), index(COLOURS, s.colour), index(MOTIONS, s.motion)] for s in subjects])


def decode_subject(row: Tensor) -> Subject:
    o, c, m = row.tolist()
    return Subject(list(OBJECTS)[o], list(COLOURS)[c], MOTIONS[m] if m >= 0 else None)


class Captions:
    """Caption embeddings by a text encoder, each distinct caption encoded once a call."""

    def __init__(self, tokens, encoder):
        self.tokens, self.encoder, self.ids = tokens, encoder, {}

    def __call__(self, captions: list[str]) -> Tensor:
        distinct = sorted(set(captions))
        for text in distinct:
            if text not in self.ids:
                self.ids[text] = networks.token_ids(self.tokens, [text])[0]
        states = self.encoder(torch.stack([self.ids[text] for text in distinct])).last_hidden_state
        return states[torch.tensor([distinct.index(text) for text in captions])]


def noised(z: Tensor, t: Tensor, alphas_cumprod: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """z_t and the v-target for timesteps [N]; z [N ...]."""
    abar = alphas_cumprod[t].reshape(-1, *[1] * (z.dim() - 1))
    eps = torch.randn(z.shape, generator=generator)
    return abar.sqrt() * z + (1 - abar).sqrt() * eps, abar.sqrt() * eps - (1 - abar).sqrt() * z

"""Latents, captions and noise for training the nano diffusion models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.scene.cameras import unit_camera
from fourdfy_cli.store import files

CHUNK = 2048  # groups between two saves of what is drawn


def cache(path: Path, seed: int, groups: int, kind: data.Kind, vae, report=print) -> dict[str, Tensor]:
    """Latents [N V C h w] (half precision), cameras [N V 16], azimuths [N V] and subjects [N 3] of drawn groups; kept
    in a file, made again from the seed if it is not there; what was drawn before an interruption is not drawn again.

    Kinds as in `data.draw`: V = 4 sides of "still" and "posed" things, FRAMES frames of a "clip", one picture of a
    "frozen" one, the same draw as the clip.
    """
    turning = kind in ("still", "posed")
    views = 4 if turning else networks.FRAMES
    if path.exists():
        return load_file(path)
    rng, part = np.random.default_rng((seed, views, kind != "still")), path.with_suffix(".part")
    made, start = _resume(part, rng)
    for first in range(start, groups, CHUNK):
        report(f"drawing {path.stem}: {first}/{groups}")
        pieces = [_encoded(data.draw(rng, 64, views, kind), vae) for _ in range(first, min(first + CHUNK, groups), 64)]
        pieces = [made, *pieces] if made else pieces
        made = {name: torch.cat([p[name] for p in pieces]).contiguous() for name in pieces[0]}
        with files.replacing(part) as temporary:
            save_file(made, temporary, {"rng": json.dumps(rng.bit_generator.state)})
    part.replace(path)
    return made


def _resume(part: Path, rng: np.random.Generator) -> tuple[dict[str, Tensor], int]:
    """What an interrupted `cache` has drawn and of how many groups; `rng` goes on where it stopped."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if not part.exists():
        return {}, 0
    with safe_open(part, "pt") as file:
        rng.bit_generator.state = json.loads(file.metadata()["rng"])
        made = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return made, len(made["latents"])


@torch.no_grad()
def _encoded(batch: data.Batch, vae) -> dict[str, Tensor]:
    """What `cache` keeps of drawn groups."""
    groups = len(batch.rgb)
    return {
        "latents": vae.encode(batch.rgb.flatten(0, 1)).latent.unflatten(0, (groups, -1)).half(),
        "cameras": unit_camera(batch.c2w.flatten(0, 1)).unflatten(0, (groups, -1)),
        "azimuth": batch.azimuth,
        "subjects": encode_subjects(batch.subjects),
    }


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

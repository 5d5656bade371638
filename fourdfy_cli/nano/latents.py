"""Latents, captions and noise for training the nano diffusion models."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import ahead
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.scene.cameras import unit_camera
from fourdfy_cli.store import files

GROUP = 64  # groups drawn from one seed
SECONDS = 60.0  # between two saves of what is drawn
SMUDGED, SHARP = 0.5, 100  # share of what is shown that is not sharp, and the noise level from which on


def cache(path: Path, seed: int, groups: int, kind: data.Kind, vae, device: str = "cpu", report=print) -> dict[str, Tensor]:
    """Latents [N V C h w] (half precision) of pictures and of the `smudged` pictures, cameras [N V 16], azimuths [N V], times [N V] and
    subjects [N 3] of drawn groups; kept in a file, made again from the seed if it is not there; what was drawn before an interruption is
    not drawn again.

    Kinds as in `data.draw`: V = 4 sides of "still" and "posed" things; FRAMES frames of a "clip" or an "other", one picture of a "frozen"
    one, the same draw as the clip.
    """
    if kept := _drawn(path):
        return kept
    views, part = 4 if kind in ("still", "posed") else networks.FRAMES, path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces = [kept] if (kept := _drawn(part)) else []
    start = len(pieces[0]["latents"]) if pieces else 0

    def make(number: int) -> data.Batch:
        return data.draw(np.random.default_rng((seed, views, number)), GROUP, views, kind)

    vae.to(device)
    told = time.monotonic() - SECONDS
    for number, batch in enumerate(ahead(make, start // GROUP, -(-groups // GROUP), device), start // GROUP):
        if time.monotonic() - told >= SECONDS:
            if pieces:
                pieces = [_joined(pieces)]
                with files.replacing(part) as temporary:
                    save_file(pieces[0], temporary)
            report(f"drawing {path.stem}: {number * GROUP}/{groups}")
            told = time.monotonic()
        pieces.append(_encoded(batch, vae, device))
    vae.to("cpu")
    made = _joined(pieces)
    with files.replacing(path) as temporary:
        save_file(made, temporary)
    part.unlink(missing_ok=True)
    return made


def _drawn(path: Path) -> dict[str, Tensor] | None:
    """What is in a file of drawn groups; None if there is none, or one from before smudged pictures were kept."""
    kept = load_file(path) if path.exists() else {}
    return kept if "smudged" in kept else None


def _joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([p[name] for p in pieces]).contiguous() for name in pieces[0]}


@torch.no_grad()
def _encoded(batch: data.Batch, vae, device: str) -> dict[str, Tensor]:
    """What `cache` keeps of drawn groups."""
    groups, rgb = len(batch.rgb), batch.rgb.flatten(0, 1).to(device)
    pictures = {"latents": rgb, "smudged": smudged(rgb)}
    return {name: vae.encode(x).latent.unflatten(0, (groups, -1)).half().cpu() for name, x in pictures.items()} | {
        "cameras": unit_camera(batch.c2w.flatten(0, 1)).unflatten(0, (groups, -1)),
        "azimuth": batch.azimuth,
        "time": batch.time,
        "subjects": encode_subjects(batch.subjects),
    }


def smudged(rgb: Tensor) -> Tensor:
    """Pictures [N 3 H W] with the detail of a quarter of their width: eyes and noses are smudges, as in a scene that is not sharp yet."""
    return F.interpolate(F.interpolate(rgb, scale_factor=0.25, mode="area"), rgb.shape[-2:], mode="bilinear")


def encode_subjects(subjects: list[Subject]) -> Tensor:
    """Subjects as indices [N 3] into OBJECTS, COLOURS, MOTIONS (-1: none)."""
    index = lambda names, name: -1 if name is None else list(names).index(name)  # noqa: E731
    return torch.tensor([[index(OBJECTS, s.object), index(COLOURS, s.colour), index(MOTIONS, s.motion)] for s in subjects])


def decode_subject(row: Tensor) -> Subject:
    o, c, m = row.tolist()
    return Subject(list(OBJECTS)[o], list(COLOURS)[c], MOTIONS[m] if m >= 0 else None)


class Captions:
    """Token ids [N L] of captions, each distinct one made once."""

    def __init__(self, tokens):
        self.tokens, self.known = tokens, {}

    def __call__(self, captions: list[str]) -> Tensor:
        for text in {*captions} - self.known.keys():
            self.known[text] = networks.token_ids(self.tokens, [text])[0]
        return torch.stack([self.known[text] for text in captions])


def words(encoder: CLIPTextModel, ids: Tensor, pictures: int) -> Tensor:
    """Hidden states [N L D] of ids [G L] for N pictures, a text for every N / G of them."""
    states = encoder(ids).last_hidden_state
    return states[:, None].expand(-1, pictures // len(ids), -1, -1).flatten(0, 1)


def noised(shown: Tensor, z: Tensor, right: Tensor, abar: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What is shown [N ...], noised to signal shares abar [N]; the v whose clean estimate is z [N ...]; the weight of its squared error: 1
    where `right` [N], else 1 - abar, which makes it the squared error of the clean estimate."""
    signal, is_right = (x.reshape(-1, *[1] * (z.dim() - 1)) for x in (abar, right))
    z_t = signal.sqrt() * shown + (1 - signal).sqrt() * torch.randn(shown.shape, generator=generator)
    return z_t, (signal.sqrt() * z_t - z) / (1 - signal).sqrt(), torch.where(is_right, 1.0, 1 - signal)

"""Small encoders that stand in for a model's autoencoder: TAESD for Stable Diffusion's latents, TAEHV for a video model's.

Their latents are near the autoencoder's, and so are their gradients: `fourdfy bench --encoder` says how near.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import network, sets, taehv
from fourdfy_cli.diffusion.encoders import Encoder, Pictures
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError

TINIES = {"AutoencoderTiny": AutoencoderTiny}


def load(role: str, models: Models, device: torch.device | str, dtype: torch.dtype) -> Encoder:
    """The small encoder of a role, "tiny" or "tiny_video"; raises FourdfyError as `find`, and exit 3 for a file that is damaged."""
    path, seed = find(role, models)
    if role == "tiny_video":
        return taehv.load(path, device, dtype)
    return Pictures(network.network(path, TINIES, device, dtype, seed))


def find(role: str, models: Models) -> tuple[Path, int | None]:
    """Where a small encoder is, fetched if need be, and the seed of weights that are drawn. Raises FourdfyError: exit 2 for the nano
    models, exit 3 where there is none."""
    if role == "tiny_video":
        return _file(models), None
    if models.set == "nano" and not models.tiny:
        raise FourdfyError("the nano models' own encoder is small already", "--set stage3.video.encoder=own", USAGE)
    spec = sets.specs(models, ["tiny"])["tiny"]
    return Path(spec.source), spec.seed


def _file(models: Models) -> Path:
    """TAEHV's file: what models.tiny_video names, or the only one in a folder."""
    hint = "from github.com/madebyollin/taehv, folder safetensors: --set models.tiny_video=taew2_1.safetensors"
    if not models.tiny_video and models.set == "random":
        return sets.random_taehv(models)
    path = Path(models.tiny_video).expanduser()
    found = sorted(path.glob("*.safetensors")) if models.tiny_video and path.is_dir() else [path]
    if not models.tiny_video or len(found) != 1 or not found[0].is_file():
        what = (
            f"there is no small encoder {models.tiny_video!r}" if models.tiny_video else "a video model's small encoder is no part of a set"
        )
        raise FourdfyError(what, hint, ENVIRONMENT)
    return found[0]

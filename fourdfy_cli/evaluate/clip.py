"""CLIP: unit embeddings of prompts and pictures, and 100 times their cosine.

No prefix, no clipping, no 2.5: the scale of 4D-fy's Table 2. Pictures are prepared as OpenAI's CLIP does it: the shorter
side resized (bicubic, antialiased), the middle square cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from torch import Tensor

from fourdfy_cli.diffusion import hub
from fourdfy_cli.diffusion.text import Fitted, fit
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError

NANO_CLIP = Path(__file__).parents[1] / "nano" / "weights" / "clip"
BATCH, BAND = 32, 2**20  # pictures or prompts, pixels of a picture, at once
OFFLINE = "fourdfy clip-score outputs/ --clip nano"  # the toy world's own


@dataclass(frozen=True)
class Clip:
    """An open_clip model with its tokenizer and picture statistics; `size` pixels a side go in."""

    name: str
    model: Any
    tokenize: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fit(self, prompt: str) -> Fitted:
        """A prompt as this CLIP reads it."""
        tokens = self.tokenize
        window = min(tokens.context_length, getattr(self.model, "context_length", None) or tokens.context_length)
        if hasattr(tokens, "encode"):
            return fit(prompt, window, lambda text: len(tokens.encode(text)) + 2)
        marks = int(getattr(tokens, "tokenizer_mode", "") == "clips")  # one more at the end
        return fit(prompt, window - marks, lambda text: len(tokens.tokenizer(tokens.clean_fn(text)).input_ids))

    def ids(self, prompts: list[str]) -> Int[Tensor, "N L"]:
        """Tokens of prompts, cut where they must be: those of two prompts that are the same to this CLIP are equal."""
        return self.tokenize([self.fit(prompt).text for prompt in prompts])

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Float[Tensor, "N C"]:
        """Unit embeddings of prompts."""
        parts = self.ids(prompts).to(self.device).split(BATCH)
        return torch.cat([F.normalize(self.model.encode_text(part), dim=-1) for part in parts])

    @torch.no_grad()
    def pictures(self, rgb: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Unit embeddings of pictures in [0,1]."""
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.mean, self.std))
        ready = ((square(part.to(self.device), self.size) - mean) / std for part in rgb.split(BATCH))
        return torch.cat([F.normalize(self.model.encode_image(part), dim=-1) for part in ready])


def shrunk(picture: UInt8[np.ndarray, "H W 3"], size: int) -> Float[Tensor, "3 S S"]:
    """`square` of one picture of bytes, row by row first, so that no more than `BAND` of its pixels are ever numbers of four bytes."""
    height, width = picture.shape[:2]
    across = size * width // min(height, width)
    bands = []
    for top in range(0, height, rows := max(1, BAND // width)):
        band = torch.from_numpy(picture[top : top + rows].copy()).permute(2, 0, 1)[None] / 255
        if min(height, width) != size:
            band = F.interpolate(band, size=(band.shape[2], across), mode="bicubic", antialias=True, align_corners=False)
        bands.append(band)
    rgb = torch.cat(bands, 2)
    if min(height, width) != size:
        down = size * height // min(height, width)
        rgb = F.interpolate(rgb, size=(down, across), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return square(rgb, size)[0]


def square(rgb: Float[Tensor, "N 3 H W"], size: int) -> Float[Tensor, "N 3 S S"]:
    """The middle square of pictures in [0,1], `size` pixels a side, cut as open_clip cuts it (torchvision's Resize and CenterCrop)."""
    height, width = rgb.shape[-2:]
    if min(height, width) != size:
        height, width = (size * side // min(height, width) for side in (height, width))
        rgb = F.interpolate(rgb, size=(height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in (height, width))
    return rgb[..., top : top + size, left : left + size]


@lru_cache(2)
def load_clip(name: str, device: str = "cpu") -> Clip:
    """ "nano", "local-dir:DIR", "ViT-B-32" (OpenAI's weights as the model table pins them) or another of open_clip's names, with
    OpenAI's weights.

    Raises FourdfyError: exit 2 for an unknown name, 3 for weights that cannot be had.
    """
    source = name
    if name in ("nano", "ViT-B-32"):
        source = f"local-dir:{NANO_CLIP if name == 'nano' else _published()}"
    pretrained = None if source.startswith("local-dir:") else "openai"
    if pretrained and source not in open_clip.list_models():
        message = f"there is no CLIP model {name!r}; there are nano, ViT-B-32, local-dir:FOLDER and open_clip's names"
        raise FourdfyError(message, OFFLINE, USAGE)
    try:
        model: Any = open_clip.create_model(source, pretrained=pretrained, precision="fp32", device=device)
        tokenize = open_clip.get_tokenizer(source)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FourdfyError(f"cannot load CLIP {name}: {line}", OFFLINE, ENVIRONMENT) from None
    size = model.visual.image_size
    about = open_clip.get_model_preprocess_cfg(model)
    return Clip(name, model.eval(), tokenize, size[0] if isinstance(size, tuple) else size, tuple(about["mean"]), tuple(about["std"]))


def _published() -> Path:
    """The folder of OpenAI's ViT-B/32, fetched if need be; raises FourdfyError (exit 3) where it cannot be had."""
    try:
        return hub.locate("clip")
    except FourdfyError as error:
        fetch = error.hint.partition("   ")[0]
        raise FourdfyError(error.message, f"where there is a network (else there is --clip nano): {fetch}", error.code) from None


def cosines(clip: Clip, prompt: str, frames: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
    """100 times the cosine between the prompt and each frame in [0,1]."""
    return 100 * clip.pictures(frames) @ clip.texts([prompt])[0]

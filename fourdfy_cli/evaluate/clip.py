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
from safetensors.torch import load_file
from torch import Tensor

from fourdfy_cli.diffusion import hub, verify
from fourdfy_cli.diffusion.table import CLIP_FILES
from fourdfy_cli.diffusion.text import Fitted, fit
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.store import gate

NANO_CLIP = Path(__file__).parents[1] / "nano" / "weights" / "clip"
BATCH, BAND = 32, 2**20  # pictures or prompts, pixels of a picture, at once
OFFLINE = "fourdfy clip-score outputs/ --clip nano"
VOCABULARY, MOST_NUMBERS = 49_408, 2_000_000_000
SIZES: gate.Limits = {
    "image_size": (int, 8, 1024), "patch_size": (int, 1, 256), "layers": (int, 1, 96), "width": (int, 8, 8192), "head_width": (int, 1, 512),
    "heads": (int, 1, 256), "mlp_ratio": (float, 0.5, 16), "context_length": (int, 4, 1024), "vocab_size": (int, 1, 300_000),
}  # fmt: skip


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
        return fit(prompt, self.tokenize.context_length, lambda text: len(self.tokenize.encode(text)) + 2)

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


def load_clip(name: str, device: str = "cpu") -> Clip:
    """ "nano", "local-dir:DIR", "ViT-B-32" (OpenAI's weights as the model table pins them) or another of open_clip's vision transformers,
    with OpenAI's weights. A folder is read once, and again when its files changed.

    Raises FourdfyError: exit 2 for an unknown name, 3 for weights that cannot be had.
    """
    folder = _folder(name)
    return read_clip(name, folder, device, _state(folder))


def _folder(name: str) -> Path:
    if name == "nano":
        verify.check(NANO_CLIP.parent, [f"{NANO_CLIP.name}/{file}" for file in CLIP_FILES], "pip install --force-reinstall fourdfy")
        return NANO_CLIP
    if name.startswith("local-dir:"):
        return Path(name.removeprefix("local-dir:")).expanduser()
    published = "" if name == "ViT-B-32" else (open_clip.get_pretrained_cfg(name, "openai") or {}).get("hf_hub", "").strip("/")
    if name != "ViT-B-32" and not published:
        raise FourdfyError(f"there is no CLIP model {name!r}; there are nano, ViT-B-32 and local-dir:DIR", OFFLINE, USAGE)
    return _published(published)


def _state(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes with a CLIP's files; empty where they cannot be looked at."""
    try:
        return tuple((about.st_ino, about.st_size, about.st_mtime_ns) for about in ((folder / name).stat() for name in CLIP_FILES))
    except (OSError, ValueError):
        return ()


@lru_cache(2)
def read_clip(name: str, folder: Path, device: str, state: tuple[tuple[int, int, int], ...]) -> Clip:
    """A CLIP from a folder with open_clip's two files. The network is open_clip's own vision transformer, of the sizes that the config
    gives within bounds; the tokenizer is always CLIP's own. Whatever else a folder asks for is refused: open_clip itself would run code
    from it. `state` stands for the files' content in the cache. Raises FourdfyError (exit 3)."""
    try:
        values = gate.read_object(folder / "open_clip_config.json", gate.MB)
        model = _network(values.get("model_cfg"), folder)
        mean, std = _statistics(values.get("preprocess_cfg"), folder)
        path = folder / "open_clip_model.safetensors"
        gate.compare(path, {key: shape for key, (_, shape) in gate.header(path).items()}, _shapes(model))
        model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except (FourdfyError, SafetensorError, OSError) as error:
        raise FourdfyError(f"cannot load CLIP {name}: {(str(error).splitlines() or ['damaged'])[0][:300]}", OFFLINE, ENVIRONMENT) from None
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)
    return Clip(name, model.eval().to(device), tokenize, model.visual.image_size[0], mean, std)


def _network(config: Any, folder: Path) -> Any:
    """The untrained network that a config describes."""
    parts = dict(config) if isinstance(config, dict) else {}
    vision, text = (gate.fields(parts.pop(part, None), SIZES, f"{folder}: {part}") for part in ("vision_cfg", "text_cfg"))
    rest = gate.fields(parts, {"embed_dim": (int, 1, 8192), "quick_gelu": (bool, 0, 1)}, f"{folder}: model_cfg")
    words, made = text.get("vocab_size", VOCABULARY), {"vision_cfg": vision, "text_cfg": text, **rest}
    try:
        with torch.device("meta"):
            numbers = sum(p.numel() for p in open_clip.CLIP(**made).parameters())
        if words < VOCABULARY or numbers > MOST_NUMBERS:
            raise ValueError(f"{numbers} parameters, a vocabulary of {words}")
        return open_clip.CLIP(**made)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise FourdfyError(f"{folder} describes no CLIP: {(str(error).splitlines() or ['sizes'])[0][:200]}", OFFLINE, ENVIRONMENT) from None


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _statistics(config: Any, folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pictures; OpenAI's where a config names none."""
    config = config if isinstance(config, dict) else {}
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    mean, std = (config.get(key) or usual[key] for key in usual)
    for values, least in ((mean, -10.0), (std, 1e-3)):
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(gate.within(v, float, least, 10.0) for v in values):
            raise FourdfyError(f"{folder}: preprocess_cfg has a mean or std of {str(values)[:80]}", OFFLINE, ENVIRONMENT)
    if (config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")) != ("bicubic", "shortest"):
        raise FourdfyError(f"{folder}: pictures are resized bicubic by the shortest side, not as preprocess_cfg says", OFFLINE, ENVIRONMENT)
    return tuple(mean), tuple(std)


def _published(id: str) -> Path:
    """The folder of one of OpenAI's models ("": ViT-B/32), fetched if need be; raises FourdfyError (exit 3) where it cannot be had."""
    try:
        folder = hub.locate("clip", id)
        verify.check(folder, CLIP_FILES, "fourdfy models verify clip")
        return folder
    except FourdfyError as error:
        raise FourdfyError(f"{error.message}; offline: {OFFLINE}", error.hint, error.code) from None


def cosines(clip: Clip, prompt: str, frames: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
    """100 times the cosine between the prompt and each frame in [0,1]."""
    return 100 * clip.pictures(frames) @ clip.texts([prompt])[0]

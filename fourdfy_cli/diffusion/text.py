"""Text embeddings: encoded once, then the encoder is freed; and which prompt a camera is shown.

Embeddings are the text encoder's last hidden state [L C], L tokens, padded to the tokenizer's length. View-dependent prompts as in the
released code of 4D-fy: "<prompt>, front view" if |azimuth| < F, "back view" if |azimuth| > 180 - B, else "side view"; degrees, strictly.
Or the name of one of eight sectors, 45 degrees wide around multiples of 45: left and right are those of a thing that looks along +x (z up),
so a camera at azimuth 90, on +y, sees its left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion import network
from fourdfy_cli.diffusion.models import ModelSpec

VIEW_WORDS = ("front view", "side view", "back view")
SECTORS = tuple(f"{side} view" for side in ("front", "front left", "left", "back left", "back", "back right", "right", "front right"))
PREFIX = "text_model."  # of all keys in files of transformers before 5.x
BUFFER = "embeddings.position_ids"  # 0, 1, 2, ...: a weight in files of transformers before 4.31


@dataclass(frozen=True)
class Texts:
    """A prompt and the embeddings [L C] of every text a guidance may ask for."""

    prompt: str
    table: dict[str, Tensor]

    def __getitem__(self, text: str) -> Float[Tensor, "1 L C"]:
        return self.table[text][None]

    def plain(self, views: int) -> Float[Tensor, "V L C"]:
        """The prompt as it is, for each view."""
        return self[self.prompt].expand(views, -1, -1)

    def facing(self, azimuth: Float[Tensor, " V"], rule: tuple[float, float] | str | None) -> Float[Tensor, "V L C"]:
        """The prompt with the view words of each azimuth (radians): thresholds (front, back) in degrees, "sectors", None for no words."""
        if rule is None:
            return self.plain(len(azimuth))
        name = sector if isinstance(rule, str) else partial(view_word, front=rule[0], back=rule[1])
        return torch.cat([self[worded(self.prompt, name(math.degrees(a)))] for a in azimuth.tolist()])


def worded(prompt: str, words: str) -> str:
    return f"{prompt}, {words}"


def view_word(azimuth: float, front: float, back: float) -> str:
    """The view words of an azimuth; all in degrees."""
    wrapped = abs((azimuth + 180) % 360 - 180)
    return VIEW_WORDS[0] if wrapped < front else VIEW_WORDS[2] if wrapped > 180 - back else VIEW_WORDS[1]


def sector(azimuth: float) -> str:
    """The sector that a camera at an azimuth in degrees looks from."""
    return SECTORS[round(azimuth / 45) % 8]


def sayings(rule: tuple[float, float] | str | None) -> tuple[str, ...]:
    """All view words that a rule of `Texts.facing` can give."""
    return () if rule is None else SECTORS if isinstance(rule, str) else VIEW_WORDS


@torch.no_grad()
def encode(spec: ModelSpec, prompts: list[str], device: torch.device | str) -> Float[Tensor, "N L C"]:
    """Embeddings of the prompts; the encoder runs in float32 and is freed. Raises FourdfyError (exit 3) as `models.load`."""
    tokens = _tokenizer(spec.folder("tokenizer"))
    encoder = load_encoder(spec.folder("text_encoder"), device, spec.seed)
    ids = tokens(prompts, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt").input_ids
    if ids.max() >= encoder.config.vocab_size or ids.shape[1] > encoder.config.max_position_embeddings:
        raise network.broken(f"{spec.folder('tokenizer')} is not the tokenizer of {spec.folder('text_encoder')}")
    return encoder(ids.to(device)).last_hidden_state


def _tokenizer(folder: Path) -> CLIPTokenizer:
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise network.broken(f"{folder} holds no vocab.json and merges.txt")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise network.broken(f"{folder} is not a tokenizer: {network.line(error)}") from error


def load_encoder(folder: Path, device: torch.device | str, seed: int | None = None) -> CLIPTextModel:
    """A frozen text encoder in float32, with the weights of its file or drawn from a seed; raises FourdfyError (exit 3)."""
    encoder = empty_encoder(folder)
    if seed is None:
        path = network.weights_file(folder, "model", torch.float32)
        state = {key.removeprefix(PREFIX): value.float() for key, value in network.read_weights(path).items()}
        state.pop(BUFFER, None)
        if any(key.startswith(PREFIX) for key in encoder.state_dict()):
            state = {PREFIX + key: value for key, value in state.items()}
        network.fill(encoder, state, path)
    else:
        network.draw(encoder, seed, device, torch.float32)
    for module in encoder.modules():
        if hasattr(module, "position_ids"):  # no weight, so it has no storage yet
            module.position_ids = torch.arange(encoder.config.max_position_embeddings)[None]
    return encoder.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]


def empty_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder that a folder's config.json describes, without storage (on the meta device)."""
    path = folder / "config.json"
    config = network.read_json(path)
    if "auto_map" in config or config.get("architectures") != ["CLIPTextModel"]:
        raise network.broken(f"{path}: the class {config.get('auto_map') or config.get('architectures')} is not CLIPTextModel")
    known = set(signature(CLIPTextConfig.__init__).parameters) - {"self", "architectures", "dtype"}
    try:
        with torch.device("meta"):
            return CLIPTextModel(CLIPTextConfig(**{key: value for key, value in config.items() if key in known}))
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise network.broken(f"{path} does not describe a CLIPTextModel: {network.line(error)}") from error

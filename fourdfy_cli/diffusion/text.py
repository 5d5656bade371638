"""Text embeddings: encoded once, then the encoder is freed; and which prompt a camera is shown.

Embeddings are the text encoder's last hidden state [L C], L tokens, padded to the encoder's window. What is longer than that window is
cut by `fit`, which every text encoder and CLIP goes through: at a word, and in front of the view words. View-dependent prompts as in the
released code of 4D-fy: "<prompt>, front view" if |azimuth| < F, "back view" if |azimuth| > 180 - B, else "side view"; degrees, strictly.
Or the name of one of eight sectors, 45 degrees wide around multiples of 45: left and right are those of a thing that looks along +x (z up),
so a camera at azimuth 90, on +y, sees its left.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion import network, t5
from fourdfy_cli.diffusion.models import ModelSpec

VIEW_WORDS = ("front view", "side view", "back view")
SECTORS = tuple(f"{side} view" for side in ("front", "front left", "left", "back left", "back", "back right", "right", "front right"))
PREFIX = "text_model."  # of all keys in files of transformers before 5.x
UNBOUNDED = int(1e30)  # what transformers says of a tokenizer that tells no length
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


@dataclass(frozen=True)
class Fitted:
    """A text as an encoder reads it: `tokens` of the whole text, `room` for them, and the words `lost`, "" if all fit."""

    text: str
    tokens: int
    room: int
    lost: str = ""


def fit(text: str, window: int, count: Callable[[str], int]) -> Fitted:
    """A text cut to `window` tokens: whole words from its beginning (characters, if not even one word fits) and the view words at its
    end. `count` gives a text's tokens, those that a tokenizer puts around every text included."""
    around = count("")
    tokens, room = count(text) - around, window - around
    if tokens <= room:
        return Fitted(text, tokens, room)
    tail = next((f", {words}" for words in (*VIEW_WORDS, *SECTORS) if text.endswith(f", {words}")), "")
    body = text.removesuffix(tail)

    def fitting(ends: list[int]) -> int:
        cut = bisect.bisect_right(ends, room, key=lambda end: count(body[:end] + tail) - around)
        return ends[cut - 1] if cut else 0

    end = fitting([word.end() for word in re.finditer(r"\S+", body)]) or fitting(list(range(1, len(body))))
    return Fitted(body[:end].rstrip(" ,;") + tail, tokens, room, body[end:].strip())


def told(what: str, reader: str, found: Fitted) -> str:
    """What a person must know of a text that was cut."""
    lost = found.lost if len(found.lost) <= 600 else f"{found.lost[:400]} ... {found.lost[-150:]}"
    count = len(found.lost.split())
    return f"{what} has {found.tokens} tokens, {reader} reads {found.room}; left out, {count} word{'s' * (count != 1)}: {lost}"


def fitted(spec: ModelSpec, prompts: list[str]) -> list[Fitted]:
    """The prompts as a model's text encoder reads them, without loading it. Raises FourdfyError (exit 3) as `models.load`."""
    if kind := t5.reader(spec.folder("text_encoder")):
        tokens = t5.tokenizer(spec.folder("tokenizer"))
        return [fit(prompt, kind.window, lambda text: len(tokens(text))) for prompt in prompts]
    config = network.read_json(spec.folder("text_encoder") / "config.json")
    places = config.get("max_position_embeddings")
    return _fitted(spec, _tokenizer(spec.folder("tokenizer")), prompts, places if isinstance(places, int) else 77)


def _fitted(spec: ModelSpec, tokens: CLIPTokenizer, prompts: list[str], places: int) -> list[Fitted]:
    window = places if tokens.model_max_length == UNBOUNDED else tokens.model_max_length
    if type(window) is not int or window > places or window <= len(tokens("").input_ids):
        raise network.broken(f"{spec.folder('tokenizer')} is not the tokenizer of {spec.folder('text_encoder')}")
    return [fit(prompt, window, lambda text: len(tokens(text, verbose=False).input_ids)) for prompt in prompts]


@torch.no_grad()
def encode(spec: ModelSpec, prompts: list[str], device: torch.device | str) -> Float[Tensor, "N L C"]:
    """Embeddings of the prompts; the encoder runs in float32 and is freed. Raises FourdfyError (exit 3) as `models.load`."""
    if t5.reader(spec.folder("text_encoder")):
        texts = [one.text for one in fitted(spec, prompts)]
        return t5.encode(spec.folder("text_encoder"), t5.tokenizer(spec.folder("tokenizer")), texts, device)
    tokens = _tokenizer(spec.folder("tokenizer"))
    encoder = load_encoder(spec.folder("text_encoder"), device, spec.seed)
    texts = _fitted(spec, tokens, prompts, encoder.config.max_position_embeddings)
    window = texts[0].room + len(tokens("").input_ids)
    ids = tokens([one.text for one in texts], padding="max_length", max_length=window, truncation=True, return_tensors="pt").input_ids
    if ids.max() >= encoder.config.vocab_size:
        raise network.broken(f"{spec.folder('tokenizer')} is not the tokenizer of {spec.folder('text_encoder')}")
    return encoder(ids.to(device)).last_hidden_state


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """A folder's tokenizer: vocab.json and merges.txt, or tokenizer.json alone as transformers 5 writes it."""
    if not ((folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))):
        raise network.broken(f"{folder} holds neither vocab.json with merges.txt nor tokenizer.json")
    with network.reading_tokenizer(folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def load_encoder(folder: Path, device: torch.device | str, seed: int | None = None) -> CLIPTextModel:
    """A frozen text encoder in float32, with the weights of its file or drawn from a seed; raises FourdfyError (exit 3)."""
    encoder = empty_encoder(folder)
    if seed is None:
        path = network.weights_file(folder, "model", torch.float32)
        state = {key.removeprefix(PREFIX): value.float() for key, value in network.read_weights(path, encoder).items()}
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

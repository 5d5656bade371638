"""T5 and UMT5 text encoders of video models: sharded weights, tokenizer.json or sentencepiece's spiece.model.

How many tokens a model reads, and whether the padding is hidden from the encoder and set to zero behind it, are as in the pipelines of
diffusers: UMT5 (Wan) 512 and yes, T5 (CogVideoX) 226 and no.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from fourdfy_cli.diffusion import network, shards
from fourdfy_cli.diffusion.limits import bounded
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

PAD, END = 0, 1  # token ids
TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight, in some files beside it
STEM = "model"


@dataclass(frozen=True)
class Reader:
    """A class of text encoder: its configuration's class, the tokens it reads, whether padding is hidden from it."""

    network: type[PreTrainedModel]
    config: type
    window: int
    masked: bool


READERS = {
    "UMT5EncoderModel": Reader(UMT5EncoderModel, UMT5Config, 512, True),
    "T5EncoderModel": Reader(T5EncoderModel, T5Config, 226, False),
}


def reader(folder: Path) -> Reader | None:
    """The kind of a text encoder's folder; None if it is none of these. Raises FourdfyError (exit 3) for a file that is missing."""
    named = network.read_json(folder / "config.json").get("architectures")
    return READERS.get(named[0]) if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else None


def tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """A function from a text to its token ids, the end's included. Raises FourdfyError (exit 3)."""
    if (folder / "tokenizer.json").is_file():
        with network.reading_tokenizer(folder):
            whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
        whole.no_padding()
        whole.no_truncation()
        return lambda text: whole.encode(cleaned(text)).ids
    return _sentencepiece(folder / "spiece.model")


def _sentencepiece(path: Path) -> Callable[[str], list[int]]:
    if not path.is_file():
        raise network.broken(f"{path.parent} holds neither tokenizer.json nor spiece.model")
    try:
        import sentencepiece
    except ImportError:
        raise FourdfyError(f"{path} wants the package sentencepiece", "pip install 'fourdfy[t5]'", ENVIRONMENT) from None
    with network.reading_tokenizer(path):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: [*pieces.encode(cleaned(text)), END]


def cleaned(text: str) -> str:
    """A text without HTML's escapes, its white space single."""
    return " ".join(html.unescape(html.unescape(text)).split())


@torch.no_grad()
def encode(folder: Path, tokens: Callable[[str], list[int]], texts: list[str], device: torch.device | str) -> Float[Tensor, "N L D"]:
    """Embeddings in float32 of texts that fit; the encoder runs in bfloat16 on a GPU, since it is large, and is freed."""
    kind = reader(folder)
    assert kind is not None
    encoder = load(folder, device, torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    ids = [tokens(text) for text in texts]
    if max(map(max, ids)) >= encoder.config.vocab_size:
        raise network.broken(f"{folder.parent} has a tokenizer that is not {folder}'s")
    states = [_one(encoder, row, kind, device) for row in ids]
    return torch.stack(states)


def _one(encoder: PreTrainedModel, ids: list[int], kind: Reader, device: torch.device | str) -> Float[Tensor, "L D"]:
    row = torch.full((1, kind.window), PAD, device=device)
    row[0, : len(ids)] = torch.tensor(ids, device=device)
    mask = (torch.arange(kind.window, device=device) < len(ids))[None].long()
    state = encoder(row, mask if kind.masked else None).last_hidden_state[0].float()
    return state * mask[0][:, None] if kind.masked else state


def load(folder: Path, device: torch.device | str, dtype: torch.dtype, seed: int | None = None) -> PreTrainedModel:
    """A frozen text encoder with the weights of its file or shards, or drawn from a seed; raises FourdfyError (exit 3)."""
    encoder = empty(folder)
    if seed is not None:
        network.draw(encoder, seed, device, dtype)
    else:
        path = shards.index(folder, STEM)
        paths = [network.weights_file(folder, STEM, dtype)] if path is None else shards.files(path)
        expected = {name: tuple(value.shape) for name, value in encoder.state_dict().items() if name != TIED}
        state = shards.read(paths, expected, TIED.replace(".", r"\."))
        state = {name: value.to(dtype) for name, value in state.items()}
        network.fill(encoder, state | {TIED: state["shared.weight"]}, paths[0])
    encoder.set_input_embeddings(encoder.get_input_embeddings())  # one table for both names
    return encoder.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]


def empty(folder: Path) -> PreTrainedModel:
    """The text encoder that a folder's config.json describes, without storage (on the meta device)."""
    path, kind = folder / "config.json", reader(folder)
    config = network.read_json(path)
    if "auto_map" in config or kind is None:
        raise network.broken(f"{path}: the class {str(config.get('auto_map') or config.get('architectures'))[:80]} is not one of T5's")
    values = bounded(kind.network.__name__, config, path)
    try:
        with torch.device("meta"):
            return kind.network(kind.config(**values))
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise network.broken(f"{path} does not describe a {kind.network.__name__}: {network.line(error)}") from error

"""Text embeddings kept on disk, so that a second run needs no text encoder.

One safetensors file a text, named by the sha256 of model, revision and text (store/cache.py says where). Files appear whole or not at
all; a damaged one is made again, and a folder that cannot be written is no error. Models without a revision (nano, random) are not cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fourdfy_cli.diffusion import text
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.store.cache import cache_folder

CUT = "whole words, view words kept"  # how `text.fit` cuts what is too long: kept embeddings of another way are not ours


def embed(spec: ModelSpec, prompts: list[str], device: torch.device | str) -> dict[str, Float[Tensor, "L C"]]:
    """The prompts' embeddings, from disk where they are there, else encoded all at once and kept; raises FourdfyError as `text.encode`."""
    files = {prompt: file(spec, prompt) for prompt in prompts} if spec.revision else {}
    table = {prompt: kept for prompt, path in files.items() if (kept := read(path)) is not None}
    missing = [prompt for prompt in prompts if prompt not in table]
    if missing:
        table |= zip(missing, text.encode(spec, missing, device), strict=True)
    for prompt in files.keys() & missing:
        write(files[prompt], table[prompt])
    return {prompt: table[prompt].to(device) for prompt in prompts}


def file(spec: ModelSpec, prompt: str) -> Path:
    """The file of one text's embedding."""
    key = json.dumps([CUT, str(spec.folder("text_encoder")), str(spec.folder("tokenizer")), spec.revision, prompt])
    return cache_folder() / "text" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def read(path: Path) -> Tensor | None:
    """An embedding [L C] on the CPU, None if there is none or it is damaged."""
    try:
        kept = load(path.read_bytes())["embedding"]
    except (OSError, SafetensorError, KeyError):
        return None
    return kept if kept.dim() == 2 and kept.dtype == torch.float32 and kept.isfinite().all() else None


def write(path: Path, embedding: Float[Tensor, "L C"]) -> None:
    """Keep an embedding; if that cannot be done it is merely computed again next time."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(save({"embedding": embedding.cpu().contiguous()}))
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()

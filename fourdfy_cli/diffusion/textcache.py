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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fourdfy_cli.diffusion import text
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.diffusion.network import broken, line
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError, typed
from fourdfy_cli.store.cache import cache_folder
from fourdfy_cli.store.files import replacing

CUT = "whole words, view words kept"  # how `text.fit` cuts what is too long: kept embeddings of another way are not ours


def embed(spec: ModelSpec, prompts: list[str], device: torch.device | str) -> dict[str, Float[Tensor, "L C"]]:
    """The prompts' embeddings, from disk where they are there, else encoded all at once and kept; raises FourdfyError as `text.encode`.
    Of a model that comes with a folder of ready embeddings, from there alone: exit 3 for a text that is not among them."""
    if spec.embeddings:
        table = ready(Path(spec.embeddings).expanduser())
        if lacking := [prompt for prompt in prompts if prompt not in table]:
            what = f"{spec.embeddings} has no embedding of {lacking[0]!r} ({len(lacking)} are missing)"
            raise FourdfyError(what, typed("fourdfy", "models", "embed", prompts[0], "--out", spec.embeddings), ENVIRONMENT)
        return {prompt: table[prompt].to(device) for prompt in prompts}
    files = {prompt: file(spec, prompt) for prompt in prompts} if spec.revision else {}
    table = {prompt: kept for prompt, path in files.items() if (kept := read(path)) is not None}
    missing = [prompt for prompt in prompts if prompt not in table]
    if missing:
        table |= zip(missing, text.encode(spec, missing, device), strict=True)
    for prompt in files.keys() & missing:
        write(files[prompt], table[prompt])
    return {prompt: table[prompt].to(device) for prompt in prompts}


def ready(folder: Path) -> dict[str, Float[Tensor, "L C"]]:
    """The texts of a folder of ready embeddings: in each safetensors file a tensor "embedding" [L C] and, in its metadata, its "text".
    Raises FourdfyError (exit 3) for a folder or a file that is none."""
    table = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                words, embedding = (file.metadata() or {})["text"], file.get_tensor("embedding").float()
        except (OSError, SafetensorError, KeyError) as error:
            raise broken(f"{path} holds no text with its embedding: {line(error)}") from error
        if embedding.dim() != 2 or not embedding.isfinite().all():
            raise broken(f"{path}: an embedding is [tokens, channels], not {list(embedding.shape)}")
        table[words] = embedding
    if not table:
        raise broken(f"{folder} holds no embeddings")
    return table


def keep_ready(folder: Path, table: dict[str, Float[Tensor, "L C"]]) -> list[Path]:
    """Write what `ready` reads: a file for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for words, embedding in table.items():
        paths.append(folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.safetensors")
        with replacing(paths[-1]) as part:
            part.write_bytes(save({"embedding": embedding.cpu().contiguous()}, metadata={"text": words}))
    return paths


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

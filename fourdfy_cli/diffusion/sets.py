"""Which models a recipe means: the sets "paper", "nano" and "random", and a folder or Hub id for any role instead.

All sets go through one loader. The random set has the structure of the paper's models and weights that mean nothing: at full size only
config.json files are written and the weights are drawn on the device; at size "tiny" everything is written as it is published, half
precision, old parameter names and all. Both are made anew in each process, from fixed seeds.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fourdfy_cli.config import Models, Recipe, Vsd
from fourdfy_cli.diffusion import hub, mvdream, network, priors, randoms, sizes, sizes_video, table, text, verify
from fourdfy_cli.diffusion.models import NANO, WEIGHTS, ModelSpec
from fourdfy_cli.diffusion.prior import TINY_COSTS, Cost, VideoPrior
from fourdfy_cli.errors import USAGE, FourdfyError, typed


def specs(models: Models, roles: Iterable[str]) -> dict[str, ModelSpec]:
    """The model for each role ("multiview", "image", "lora", "video"); what is not on this machine is fetched (hub.py).

    Raises FourdfyError: exit 2 for a set or size that does not exist, exit 3 for a model that cannot be had.
    """
    own = _own(models)
    found = {role: _spec(models, own, role) for role in roles}
    if models.embeddings and "video" in found:
        found["video"] = replace(found["video"], embeddings=models.embeddings)
    return found


def _spec(models: Models, own: dict[str, ModelSpec], role: str) -> ModelSpec:
    """A role's model; of the random set, a published video model's id stands for its structure."""
    named = getattr(models, role)
    if models.set == "random" and role == "tiny" and not named:
        return random_tiny(models.size)
    if models.set == "random" and role == "video" and (id := randoms.named(named)):
        return random_video(id, models.size)
    skip = hub.skipped(role, models)
    return located(role, named, skip) if named else own.get(role) or located(role, "", skip)


def drawn(recipe: Recipe, stages: Iterable[int] = (1, 2, 3)) -> list[str]:
    """Every branch that some of the stages draws."""
    return list(dict.fromkeys(branch for number in stages for branch in recipe.stage(number).chances()))


def roles(branches: Iterable[str], vsd: Vsd) -> tuple[str, ...]:
    """The roles that the guidances of `branches` need: theirs, and the LoRA's unless it is put on the image model."""
    branches = tuple(branches)
    return (*branches, "lora") if "image" in branches and not vsd.share_base else branches


def small(recipe: Recipe, branches: Iterable[str]) -> tuple[str, ...]:
    """The roles of the small encoders ("tiny", "tiny_video") that branches ask for in some stage."""
    asking = [name for name in branches if any(getattr(recipe.stage(number), name).encoder == "tiny" for number in (1, 2, 3))]
    return tuple(dict.fromkeys(video_kind(recipe.models).TINY if name == "video" else "tiny" for name in asking))


def _own(models: Models) -> dict[str, ModelSpec]:
    """What a set brings along without files to fetch; the nano LoRA is put on the nano image model."""
    if models.set == "nano":
        check_nano(NANO.values())
        return NANO | {"lora": replace(NANO["image"], role="lora")}
    return random_set(models.size) if models.set == "random" else {}


def check_nano(specs: Iterable[ModelSpec]) -> None:
    """Raises FourdfyError (exit 3) if a file that ships is not what was shipped."""
    folders = {spec.folder(part) for spec in specs for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    names = sorted(path.relative_to(WEIGHTS).as_posix() for folder in folders for path in folder.iterdir())
    verify.check(Path(WEIGHTS), names, "pip install --force-reinstall fourdfy")


def located(role: str, named: str = "", skip: tuple[str, ...] = ()) -> ModelSpec:
    """A model of the table, or the folder or Hub id[@revision] `named`, on this machine's disk, without the parts to `skip`; raises
    FourdfyError (exit 3) where it cannot be had, or is not what was published."""
    folder, row = hub.locate(role, named, skip), hub.described(role, named)
    again = ["--set", f"models.{role}={named}"] if named else []
    verify.check(folder, hub.files(role, folder, skip), typed("fourdfy", "models", "verify", role, *again))
    known = {} if row is None else {"licence": row.licence, "prediction": row.prediction}
    return ModelSpec(role, str(folder), unet=network_folder(folder), revision=revision(folder), **known)


def network_folder(folder: Path) -> str:
    """The subfolder of a model's network: "transformer" where there is no "unet"."""
    return "transformer" if (folder / "transformer").is_dir() and not (folder / "unet").is_dir() else "unet"


def revision(folder: Path) -> str:
    """What stands for a folder's content: the commit of a snapshot in the Hub's cache, else size and time of its text encoder's files."""
    if folder.parent.name == "snapshots":
        return folder.name
    files = sorted((folder / "text_encoder").glob("*.safetensors"))
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def random_set(size: str) -> dict[str, ModelSpec]:
    """The random set; its folder goes when the process ends. Raises FourdfyError (exit 2) for a size that is not "full" or "tiny"."""
    if size not in sizes.SIZES:
        raise FourdfyError(f"the random models come in sizes {' and '.join(sizes.SIZES)}, not {size!r}", "--size tiny", USAGE)
    root = Path(_made(size).name)
    licence = "none needed"
    return {
        role: ModelSpec(role, str(root / role), licence=licence, seed=seed if size == "full" else None)
        for seed, role in enumerate(sizes.ROLES)
    }


@functools.cache
def random_video(id: str, size: str) -> ModelSpec:
    """A published video model's structure with random weights; at size "tiny" in its layout, weights and all."""
    folder = Path(_scratch().name) / f"{size}-{id.rpartition('/')[2]}"
    randoms.write_video(folder, id, size, seed=7)
    return ModelSpec("video", str(folder), unet="transformer", licence="none needed", seed=7 if size == "full" else None)


def random_tiny(size: str) -> ModelSpec:
    """A random small encoder of Stable Diffusion's latents; it is drawn when it is loaded."""
    folder = Path(_scratch().name) / f"tiny-{size}"
    randoms.write_json(folder / "config.json", sizes.tiny_encoder(size))
    return ModelSpec("tiny", str(folder), licence="none needed", seed=9)


def random_taehv(models: Models) -> Path:
    """A random small encoder for the latents of the random set's video model."""
    id = randoms.named(models.video) or sizes_video.WAN
    channels = sizes_video.configs(id, models.size)["transformer"]["in_channels"]
    path = Path(_scratch().name) / f"taehv-{channels}.safetensors"
    if not path.exists():
        randoms.write_taehv(path, channels, seed=8)
    return path


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    """A folder of this process for what is made on demand."""
    return tempfile.TemporaryDirectory(prefix="fourdfy-random-")


@functools.cache
def _made(size: str) -> tempfile.TemporaryDirectory:
    """The random set's folder in this process."""
    made = tempfile.TemporaryDirectory(prefix="fourdfy-random-")
    vocabulary = clip_vocabulary()
    for seed, role in enumerate(sizes.ROLES):
        folder, parts = Path(made.name) / role, sizes.configs(role, size)
        for part in table.PARTS[role]:
            if part == "tokenizer":
                write_tokenizer(folder / part, *vocabulary)
            else:
                randoms.write_json(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), parts[part])
            if size == "tiny" and part in WRITERS:
                WRITERS[part](folder / part, seed)
    return made


def write_unet(folder: Path, seed: int) -> None:
    """Random weights for a UNet's config.json; MVDream's as ashawkey publishes it, the others as Stability AI and cerspense did."""
    state = network.network(folder, network.UNETS, "cpu", torch.float16, seed).state_dict()
    if network.read_json(folder / "config.json")["_class_name"] in mvdream.LDM_CLASSES:
        names = mvdream.ldm_names(state)
        save_file({names[key]: value for key, value in state.items()}, folder / f"{network.STEM}.safetensors")
    else:
        save_file(state, folder / f"{network.STEM}.fp16.safetensors")


def write_vae(folder: Path, seed: int) -> None:
    """Random weights for an autoencoder's config.json, under the names of before 2023."""
    state = network.network(folder, network.VAES, "cpu", torch.float16, seed).state_dict()
    save_file({network.old_name(key): value for key, value in state.items()}, folder / f"{network.STEM}.fp16.safetensors")


def write_text_encoder(folder: Path, seed: int) -> None:
    """Random weights for a text encoder's config.json, under the names of before 2024 and with the positions once counted as one."""
    state = text.load_encoder(folder, "cpu", seed).half().state_dict()
    named = {text.PREFIX + key.removeprefix(text.PREFIX): value for key, value in state.items()}
    save_file(named | {text.PREFIX + text.BUFFER: torch.arange(77)[None]}, folder / "model.fp16.safetensors")


WRITERS = {"unet": write_unet, "vae": write_vae, "text_encoder": write_text_encoder}


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """CLIP's real tokens and merges, from open_clip's copy of them."""
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer()
    tokens = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i
        for token, i in theirs.encoder.items()
    }
    return tokens, list(theirs.bpe_ranks)


def write_tokenizer(folder: Path, tokens: dict[str, int], merges: list[tuple[str, ...]]) -> None:
    """A CLIP tokenizer as Stable Diffusion 2 publishes it: 77 tokens, padded with token 0, "!"."""
    randoms.write_json(folder / "vocab.json", tokens)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "!"}
    randoms.write_json(folder / "special_tokens_map.json", special)
    randoms.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})


@functools.cache
def counts(models: Models, role: str) -> dict[str, int]:
    """Numbers in a role's network ("unet") and, but for the LoRA's, which it shares, in its autoencoder ("vae")."""
    made = _empty(models, role)
    return {part: sum(parameter.numel() for parameter in network.parameters()) for part, network in made.items()}


def _empty(models: Models, role: str) -> dict[str, nn.Module]:
    """A role's networks without storage: as the folder on this machine describes them, else as they are published."""
    configs: dict[str, tuple[dict[str, Any], Path | str]] = {}
    if (spec := _folders(models, role)) is not None:
        for part in ("unet", "vae") if role != "lora" else ("unet",):
            path = spec.folder(part) / "config.json"
            configs[part] = network.read_json(path), path
    else:
        size = models.size if models.set == "random" else "full"
        id = randoms.named(models.video) if role == "video" else None
        published = sizes.configs(role, size) if id is None else sizes_video.configs(id, size)
        first = "unet" if id is None else "transformer"
        configs["unet"] = published[first], first
        if role != "lora":
            configs["vae"] = published["vae"], "vae"
    kind = priors.named(str(configs["unet"][0].get("_class_name"))) if role == "video" else None
    classes = {"unet": kind.NETWORKS, "vae": kind.VAES} if kind else {"unet": network.UNETS, "vae": network.VAES}
    return {part: network.described(config, classes[part], path) for part, (config, path) in configs.items()}


@functools.cache
def video_cost(models: Models) -> tuple[Cost, Cost]:
    """What a step of the video model that would be used takes, and of the small encoder that goes with it."""
    kind = video_kind(models)
    return kind.cost(_empty(models, "video")["vae"]), TINY_COSTS[kind.TINY]


def video_kind(models: Models) -> type[VideoPrior]:
    """The kind of the video model that would be used: by its config, or as it is published."""
    made = _empty(models, "video")["unet"]
    return next(kind for kind in priors.KINDS if isinstance(made, tuple(kind.NETWORKS.values())))


def _folders(models: Models, role: str) -> ModelSpec | None:
    """Where a role's config.json files are on this machine, if they are."""
    named = getattr(models, role)
    if (not named and models.set != "paper") or (models.set == "random" and randoms.named(named)):
        return _own(models)[role] if models.set == "nano" else None
    folder = hub.cached(role, named, hub.skipped(role, models))
    return None if folder is None else ModelSpec(role, str(folder), unet=network_folder(folder))

"""Folders of the newer video models and small encoders with random weights, laid out as published: shards, T5 tokenizer and all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fourdfy_cli.diffusion import network, priors, sizes_video, t5, taehv

SHARD_NUMBERS = 150_000  # numbers in a shard of a tiny network


def write_video(folder: Path, id: str, size: str, seed: int) -> None:
    """The folder of a published video model (sizes_video.IDS): at full size config.json files alone, at size "tiny" weights too."""
    parts = sizes_video.configs(id, size)
    kind = priors.named(parts["transformer"]["_class_name"])
    assert kind is not None
    for part, config in parts.items():
        names = {"scheduler": f"{part}/scheduler_config.json", "model_index": "model_index.json"}
        write_json(folder / names.get(part, f"{part}/config.json"), config)
    write_tokenizer(folder / "tokenizer")
    if size == "tiny":
        for part, classes in (("transformer", kind.NETWORKS), ("vae", kind.VAES)):
            made = network.empty(folder / part, classes)
            network.draw(made, seed, "cpu", torch.float32)
            write_shards(folder / part, network.STEM, made.state_dict())
        encoder = t5.load(folder / "text_encoder", "cpu", torch.float32, seed)
        write_shards(folder / "text_encoder", t5.STEM, {key: value for key, value in encoder.state_dict().items() if key != t5.TIED})


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_shards(folder: Path, stem: str, state: dict[str, torch.Tensor]) -> None:
    """Weights in one file, or, if they are many, in numbered ones with an index beside them."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    for name, value in state.items():
        if groups[-1] and sum(one.numel() for one in groups[-1].values()) + value.numel() > SHARD_NUMBERS:
            groups.append({})
        groups[-1][name] = value.contiguous()
    if len(groups) == 1:
        return save_file(groups[0], folder / f"{stem}.safetensors")
    names = [f"{stem}-{k + 1:05}-of-{len(groups):05}.safetensors" for k in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        save_file(group, folder / name)
    where = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": where})


def write_tokenizer(folder: Path) -> None:
    """A T5 tokenizer of letters: <pad>, </s>, <unk>, then what English is written with."""
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(k), -3.0) for k in range(ord("a"), ord("z") + 1))]
    made = Tokenizer(models.Unigram(letters, 2, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", t5.END)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


def write_taehv(path: Path, channels: int, seed: int) -> None:
    """A random encoder in TAEHV's layout."""
    with torch.device("meta"):
        made = taehv.Taehv(channels, 1)
    network.draw(made, seed, "cpu", torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)


def named(id: str) -> str | None:
    """The published video model that a Hub id[@revision] is, if it is one that can be made here."""
    return next((one for one in sizes_video.IDS if re.fullmatch(rf"{re.escape(one)}(@.*)?", id)), None)

"""Load what the stages draw, and nothing else: texts are encoded once, networks and autoencoders shared where they are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from fourdfy_cli.config import Branch, Recipe
from fourdfy_cli.diffusion import lora, models, priors, sets, text, textcache, tiny
from fourdfy_cli.diffusion.encoders import Encoder
from fourdfy_cli.diffusion.models import Diffusion, ModelSpec, Vae
from fourdfy_cli.diffusion.prior import VideoPrior
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.multiview import MultiviewGuidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.guidance.video import VideoGuidance


def build(
    recipe: Recipe,
    prompt: str,
    specs: Mapping[str, ModelSpec],
    device: torch.device | str,
    dtype: torch.dtype,
    branches: Iterable[str],
    seed: int = 0,
) -> dict[str, Guidance]:
    """The guidances of `branches` ("multiview", "image", "video") by name; `seed` starts the LoRA.

    `specs` has a model per branch, and may have one named "lora" to put the LoRA on (default: the image model; text encoder and
    autoencoder are the image model's in any case). Raises FourdfyError: exit 3 if a model is missing or damaged, exit 2 if the LoRA's
    network does not go with the image model.
    """
    branches = list(branches)
    wanted = {name: wanted_texts(prompt, recipe, name) for name in branches}
    texts = {name: Texts(prompt, table) for name, table in encode_texts(wanted, specs, device).items()}
    loaded = load_models({name: specs[name] for name in branches}, device, dtype)
    small = load_tiny(recipe, branches, specs, device, dtype)
    guidances: dict[str, Guidance] = {}
    for name in branches:
        if name == "multiview":
            guidances[name] = MultiviewGuidance(loaded[name], texts[name], small.get(name))
        elif name == "video":
            guidances[name] = VideoGuidance(fitting(loaded[name], texts[name]), texts[name], small.get(name))
        else:
            network = load_lora(loaded[name], specs.get("lora", specs[name]), recipe, device, dtype, seed)
            guidances[name] = VariationalGuidance(loaded[name], network, texts[name], recipe.vsd.drop_camera, small.get(name))
    return guidances


def wanted_texts(prompt: str, recipe: Recipe, name: str) -> list[str]:
    """Every text a branch may ask for: the prompt, with view words if any stage uses them, and the negative prompts."""
    branches: list[Branch] = [getattr(recipe.stage(number), name) for number in (1, 2, 3)]
    worded = [text.worded(prompt, words) for branch in branches for words in text.sayings(branch.view_words)]
    return list(dict.fromkeys([prompt, *worded, *(branch.negative for branch in branches)]))


def cut_texts(recipe: Recipe, prompt: str, specs: Mapping[str, ModelSpec], branches: Iterable[str]) -> list[str]:
    """A line for each text that is longer than a text encoder of `branches` reads: how many tokens it has, and which words are left out.
    Only tokenizers are loaded: for before the first step. Raises FourdfyError (exit 3) if one is missing or damaged."""
    readers: dict[tuple[str, ...], list[str]] = {}
    for name in branches:
        readers.setdefault(specs[name].reader, []).append(name)
    lines = []
    for names in readers.values():
        if specs[names[0]].embeddings:  # whoever made them has seen to it
            continue
        wanted = list(dict.fromkeys(one for name in names for one in wanted_texts(prompt, recipe, name)))
        found = dict(zip(wanted, text.fitted(specs[names[0]], wanted), strict=True))
        worded = [one for one in wanted if one.startswith(prompt)]
        longest = max(worded, key=lambda one: len(found[one].lost))
        what = "the prompt" if longest == prompt else f"the prompt ({found[prompt].tokens} tokens) with its view words"
        cut = [(what, found[longest]), *(("the negative prompt", found[one]) for one in wanted if one not in worded)]
        lines += [text.told(what, f"the text encoder for {', '.join(names)}", one) for what, one in cut if one.lost]
    return lines


def encode_texts(
    wanted: Mapping[str, list[str]], specs: Mapping[str, ModelSpec], device: torch.device | str
) -> dict[str, dict[str, torch.Tensor]]:
    """Embeddings by branch and text; each distinct text encoder is loaded once."""
    encoders: dict[tuple[str, ...], list[str]] = {}
    for name in wanted:
        encoders.setdefault(specs[name].reader, []).append(name)
    tables = {}
    for names in encoders.values():
        every = list(dict.fromkeys(one for name in names for one in wanted[name]))
        table = textcache.embed(specs[names[0]], every, device)
        tables.update({name: table for name in names})
    return tables


def load_models(specs: Mapping[str, ModelSpec], device: torch.device | str, dtype: torch.dtype) -> dict[str, Diffusion]:
    """A model per branch; models whose autoencoder is the same folder share it."""
    vaes: dict[tuple[str, str], Vae] = {}
    loaded = {}
    for name, spec in specs.items():
        key = (spec.source, spec.vae)
        load = priors.load if spec.role == "video" else models.load
        loaded[name] = load(spec, device, dtype, vaes.get(key))
        vaes[key] = loaded[name].vae
    return loaded


def fitting(prior: Diffusion, texts: Texts) -> VideoPrior:
    """A video model whose text embeddings are as wide as it wants; raises FourdfyError (exit 3) if they are not."""
    assert isinstance(prior, VideoPrior)
    width, wanted = texts[texts.prompt].shape[-1], prior.text_width
    if width != wanted:
        where = prior.spec.embeddings or prior.spec.folder("text_encoder")
        raise models.broken(f"{where} gives embeddings of {width} numbers, {prior.spec.source} wants {wanted}")
    return prior


def check_clips(recipe: Recipe, specs: Mapping[str, ModelSpec]) -> None:
    """Whether the video model can judge the recipe's clips, from its configs alone, and whether the small encoders are here: for before
    the first step. Raises FourdfyError: exit 2 for number or size of frames, exit 3 for a model that is no video model, a text encoder of
    another class, or a small encoder that is missing."""
    if (spec := specs.get("video")) is not None:
        kind, branch = priors.kind(spec), recipe.stage3.video
        kind.check(spec, recipe.frames, branch.model_size, branch.clean_first)
        if not spec.embeddings:
            priors.check_texts(spec)
    for role in sets.small(recipe, specs.keys() & {"multiview", "image", "video"}):
        tiny.find(role, recipe.models)


def load_tiny(
    recipe: Recipe, branches: list[str], specs: Mapping[str, ModelSpec], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Encoder]:
    """The small encoder of each branch that asks for one in some stage. Raises FourdfyError (exit 3)."""
    found: dict[str, Encoder] = {}
    for name in branches:
        if any(getattr(recipe.stage(number), name).encoder == "tiny" for number in (1, 2, 3)):
            role = priors.kind(specs[name]).TINY if name == "video" else "tiny"
            found[name] = tiny.load(role, recipe.models, device, dtype)
    return found


def load_lora(image: Diffusion, spec: ModelSpec, recipe: Recipe, device: torch.device | str, dtype: torch.dtype, seed: int) -> Diffusion:
    """The LoRA network of Eq. 4 and 5: on the image model itself, sharing its weights, if the recipe says so or `spec` is that model;
    else on another network, which predicts what that one predicts."""
    generator = torch.Generator().manual_seed(seed)
    own = image.spec
    if recipe.vsd.share_base or (spec.folder("unet"), spec.seed) == (own.folder("unet"), own.seed):
        return replace(image, unet=lora.shared_lora_unet(image.unet, recipe.vsd.rank, generator))
    unet = lora.lora_unet(spec, recipe.vsd.rank, device, dtype, generator)
    for key in ("in_channels", "out_channels", "cross_attention_dim"):
        if unet.config[key] != image.unet.config[key]:
            message = f"{spec.source} cannot carry the LoRA of {own.source}: {key} {unet.config[key]}, not {image.unet.config[key]}"
            raise FourdfyError(message, "--set vsd.share_base=true", USAGE)
    return replace(image, unet=unet, schedule=models.schedule(spec), spec=spec)

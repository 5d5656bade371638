"""The LoRA network that follows the distribution of renderings (ProlificDreamer; Eq. 4 and 5 of 4D-fy).

Trained are two things: rank-r updates of q, k, v and output in every attention (A ~ N(0, (1/r)^2), B = 0, no extra scale), and an
embedding of the camera (raw c2w, 16 numbers) added to the time embedding, where stock UNets take a class embedding. Unlike the released
code, the camera embedding's last layer starts at zero: with B = 0 the LoRA network then equals the one it adapts exactly at the start.
That one is a second model (the paper's: Stable Diffusion 2.1) or the image model itself, whose weights are then shared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from diffusers.models.embeddings import TimestepEmbedding
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from fourdfy_cli.diffusion import models
from fourdfy_cli.diffusion.models import ModelSpec, Unet
from fourdfy_cli.diffusion.mvdream import CAMERA
from fourdfy_cli.errors import DAMAGED, FourdfyError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CAMERA_KEYS = tuple(f"class_embedding.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias"))


def lora_unet(spec: ModelSpec, rank: int, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> Unet:
    """The UNet of a model's folder, adapted; raises FourdfyError (exit 3) as `models.load`."""
    return adapt(models.load_unet(spec, device, dtype), rank, generator)


def shared_lora_unet(unet: Unet, rank: int, generator: torch.Generator) -> Unet:
    """A second network of the same frozen parameters (one copy in memory), adapted; the given one stays as it is."""
    parameters = {id(parameter): parameter for parameter in unet.parameters()}
    return adapt(copy.deepcopy(unet, parameters), rank, generator)


def adapt(unet: Unet, rank: int, generator: torch.Generator) -> Unet:
    """The UNet with a camera embedding and LoRA; raises FourdfyError (exit 3) if it takes class labels already."""
    if unet.class_embedding is not None:
        raise models.broken("the image model already has a class embedding, so its LoRA cannot take a camera")
    with torch.device("meta"):
        embedding = TimestepEmbedding(CAMERA, unet.time_embedding.linear_1.out_features)
    unet.class_embedding = embedding.to_empty(device=unet.device)
    add_lora(unet, rank, generator)
    return unet


def add_lora(unet: Unet, rank: int, generator: torch.Generator) -> None:
    """Add LoRA to every attention, freeze all but it and the camera embedding, and start both as the module says.

    What is trained is kept in float32 at least, whatever the frozen network's dtype.
    """
    unet.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=True), unet)
    unet.class_embedding.requires_grad_(True)
    wide = torch.promote_types(unet.dtype, torch.float32)
    for name, parameter in trainable(unet):
        parameter.data = _start(name, parameter, rank, generator).to(parameter.device, wide)


def _start(name: str, parameter: nn.Parameter, rank: int, generator: torch.Generator) -> Tensor:
    """Starting value of one trained parameter; drawn in float32 so that it does not depend on the network's dtype."""
    drawn = torch.empty(parameter.shape, device=generator.device)
    if "lora_A" in name:
        return drawn.normal_(0, 1 / rank, generator=generator)
    if "class_embedding.linear_1" in name:
        bound = 1 / math.sqrt(CAMERA)
        return drawn.uniform_(-bound, bound, generator=generator)
    return drawn.zero_()


def trainable(unet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, by name, in the network's own order."""
    return ((name, parameter) for name, parameter in unet.named_parameters() if parameter.requires_grad)


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """What is trained, detached copies on the CPU, for a checkpoint."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trainable(unet)}


def load_lora_state(unet: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `lora_state`; raises FourdfyError (exit 6) unless names and shapes are exactly this network's."""
    own = dict(trainable(unet))
    wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise FourdfyError(f"the checkpoint's LoRA does not fit the image model: {wrong[0]}", "fourdfy info CHECKPOINT", DAMAGED)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])

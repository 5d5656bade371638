"""MVDream's UNet under the names of its own code, as a stock diffusers `UNet2DConditionModel`.

MVDream (Shi et al. 2023) is Stable Diffusion 2.1 base with two changes: a camera embedding 16 - 1280 - 1280 added to the time embedding,
which is diffusers' projection class embedding, and self-attention across views (multiview.py), which adds no weights. Its published files
differ in how they name the 690 tensors: the names of latent-diffusion (LDM) code, bare or under a prefix; or diffusers' own names, with
the camera embedding in a folder of its own. The correspondence follows from the two codes' order of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fourdfy_cli.diffusion.table import LDM_PREFIXES

CAMERA = 16  # numbers in a flattened c2w
CAMERA_EMBEDDING = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA}
LDM_CLASSES = ("MultiViewUNetModel", "MultiViewUNetWrapperModel")  # the class in ashawkey's and KokeCacao's config.json
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
INNER = {  # of a residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def stock_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in diffusers' terms; one that is not in the terms of MVDream's own classes is returned as it is."""
    nameless = "_class_name" not in config and "model_channels" in config
    if not nameless and config.get("_class_name") not in LDM_CLASSES:
        return dict(config)
    if config["camera_dim"] != CAMERA:
        raise ValueError(f"camera_dim is {config['camera_dim']!r}, not {CAMERA}")
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    attends = [2**level in config["attention_resolutions"] for level in range(len(widths))]
    heads = [width // config["num_head_channels"] if config.get("num_head_channels", -1) > 0 else config["num_heads"] for width in widths]
    return CAMERA_EMBEDDING | {
        "_class_name": "UNet2DConditionModel",
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "transformer_layers_per_block": config["transformer_depth"],
        "cross_attention_dim": config["context_dim"],
        "attention_head_dim": heads,  # here diffusers means the number of heads
        "use_linear_projection": config.get("use_linear_in_transformer", True),
    }


def is_ldm(state: Mapping[str, Tensor]) -> bool:
    """Whether weights go by LDM names, bare or under a prefix."""
    return any(key.removeprefix(prefix).startswith("input_blocks.") for key in state for prefix in ("", *LDM_PREFIXES))


def stock_state(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights under LDM names as weights under the diffusers `names`, strictly; raises KeyError with what is missing or too much."""
    prefix = next((prefix for prefix in LDM_PREFIXES if all(key.startswith(prefix) for key in state)), "")
    theirs = ldm_names(names)
    if wrong := sorted({prefix + name for name in theirs.values()} ^ set(state)):
        raise KeyError(f"{'unexpected' if wrong[0] in state else 'missing'} {wrong[0]}")
    return {name: state[prefix + ldm] for name, ldm in theirs.items()}


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """The LDM name of every parameter of a `UNet2DConditionModel`, in its own order."""
    names = list(names)
    blocks = OUTER | _numbered(names)
    return {name: _ldm_name(name, blocks) for name in names}


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """LDM's names of diffusers' numbered blocks, "down_blocks.1.resnets.0" to "input_blocks.4.0". LDM gives every residual block and every
    downsampler a number of its own; attention and upsampler come behind a residual block under its number."""
    found = dict.fromkeys(match[0] for name in names if (match := re.match(r"(down|up)_blocks\.\d+\.\w+\.\d+", name)))
    layers = sum(block.startswith("down_blocks.0.resnets.") for block in found)
    numbers = {}
    for block in found:
        side, level, kind, at = block.split(".")
        first = int(level) * (layers + 1) + (side == "down_blocks")
        attends = f"up_blocks.{level}.attentions.0" in found
        number = first + (int(at) if kind in ("resnets", "attentions") else layers)
        part = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 1 + attends}[kind]
        numbers[block] = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{number}.{part}"
    return numbers


def _ldm_name(name: str, blocks: Mapping[str, str]) -> str:
    """One parameter's LDM name; a name that MVDream has no use for stays as it is."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        block, rest = ".".join(parts[:depth]), parts[depth:]
        if block in blocks:
            if "resnets" in block:
                rest[0] = INNER.get(rest[0], rest[0])
            if "downsamplers" in block:
                rest[0] = "op"
            return ".".join([blocks[block], *rest])
    return name

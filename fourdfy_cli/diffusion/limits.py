"""Which sizes a folder may ask for: the allowed numbers of each network's config.json, checked before anything is built.

Keys that a class's constructor does not know are left out (diffusers' files carry some); a value that is no number, or out of bounds, is
refused. Lists hold at most 64 values, each within the bounds of its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.store.gate import Limits, within

FLAG = (bool, 0, 1)
WORD = (str, 0, 40)
SMALL = (float, 0, 1)

WAN: Limits = {
    "patch_size": (int, 1, 8), "num_attention_heads": (int, 1, 128), "attention_head_dim": (int, 2, 512), "in_channels": (int, 1, 256),
    "out_channels": (int, 1, 256), "text_dim": (int, 1, 16384), "freq_dim": (int, 2, 4096), "ffn_dim": (int, 1, 65536),
    "num_layers": (int, 1, 96), "cross_attn_norm": FLAG, "qk_norm": WORD, "eps": SMALL, "rope_max_seq_len": (int, 1, 16384),
}  # fmt: skip
COGVIDEOX: Limits = {
    "num_attention_heads": (int, 1, 128), "attention_head_dim": (int, 2, 512), "in_channels": (int, 1, 256), "out_channels": (int, 1, 256),
    "flip_sin_to_cos": FLAG, "freq_shift": (int, 0, 1), "time_embed_dim": (int, 1, 16384), "text_embed_dim": (int, 1, 16384),
    "num_layers": (int, 1, 96), "dropout": SMALL, "attention_bias": FLAG, "sample_width": (int, 1, 1024), "sample_height": (int, 1, 1024),
    "sample_frames": (int, 1, 1024), "patch_size": (int, 1, 8), "temporal_compression_ratio": (int, 1, 16),
    "max_text_seq_length": (int, 1, 4096), "activation_fn": WORD, "timestep_activation_fn": WORD, "norm_elementwise_affine": FLAG,
    "norm_eps": SMALL, "spatial_interpolation_scale": (float, 0.01, 100), "temporal_interpolation_scale": (float, 0.01, 100),
    "use_rotary_positional_embeddings": FLAG, "use_learned_positional_embeddings": FLAG, "patch_bias": FLAG,
}  # fmt: skip
WAN_VAE: Limits = {
    "base_dim": (int, 1, 1024), "decoder_base_dim": (int, 1, 1024), "z_dim": (int, 1, 256), "dim_mult": (int, 1, 16),
    "num_res_blocks": (int, 1, 8), "attn_scales": (float, 0, 64), "temperal_downsample": FLAG, "dropout": SMALL,
    "latents_mean": (float, -100, 100), "latents_std": (float, 1e-3, 1000), "is_residual": FLAG, "in_channels": (int, 1, 64),
    "out_channels": (int, 1, 64), "patch_size": (int, 1, 8), "scale_factor_temporal": (int, 1, 16), "scale_factor_spatial": (int, 1, 64),
}  # fmt: skip
COGVIDEOX_VAE: Limits = {
    "in_channels": (int, 1, 64), "out_channels": (int, 1, 64), "down_block_types": WORD, "up_block_types": WORD,
    "block_out_channels": (int, 1, 4096), "latent_channels": (int, 1, 256), "layers_per_block": (int, 1, 8), "act_fn": WORD,
    "norm_eps": SMALL, "norm_num_groups": (int, 1, 256), "temporal_compression_ratio": (float, 1, 16), "sample_height": (int, 1, 8192),
    "sample_width": (int, 1, 8192), "scaling_factor": (float, 1e-3, 1000), "force_upcast": FLAG, "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG, "invert_scale_latents": FLAG,
}  # fmt: skip
TINY: Limits = {
    "in_channels": (int, 1, 64), "out_channels": (int, 1, 64), "encoder_block_out_channels": (int, 1, 1024),
    "decoder_block_out_channels": (int, 1, 1024), "act_fn": WORD, "upsample_fn": WORD, "latent_channels": (int, 1, 256),
    "upsampling_scaling_factor": (int, 1, 8), "num_encoder_blocks": (int, 1, 16), "num_decoder_blocks": (int, 1, 16),
    "latent_magnitude": (int, 1, 100), "latent_shift": SMALL, "force_upcast": FLAG, "scaling_factor": (float, 1e-3, 1000),
    "shift_factor": (float, -100, 100),
}  # fmt: skip
T5: Limits = {
    "vocab_size": (int, 8, 1_000_000), "d_model": (int, 1, 16384), "d_kv": (int, 1, 1024), "d_ff": (int, 1, 131072),
    "num_layers": (int, 1, 96), "num_heads": (int, 1, 256), "relative_attention_num_buckets": (int, 4, 1024),
    "relative_attention_max_distance": (int, 4, 16384), "layer_norm_epsilon": SMALL, "feed_forward_proj": WORD,
}  # fmt: skip
LIMITS = {
    "WanTransformer3DModel": WAN, "CogVideoXTransformer3DModel": COGVIDEOX, "AutoencoderKLWan": WAN_VAE,
    "AutoencoderKLCogVideoX": COGVIDEOX_VAE, "AutoencoderTiny": TINY, "T5EncoderModel": T5, "UMT5EncoderModel": T5,
}  # fmt: skip
MOST_VALUES = 64  # of a list
MOST_NUMBERS = 20_000_000_000  # parameters of a network


def bounded(name: str, config: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """What the class `name` is built with: the keys of LIMITS, their values within bounds; None stands for the class's own default.
    Raises FourdfyError (exit 3)."""
    found = {key: config[key] for key in LIMITS[name] if config.get(key) is not None}
    for key, value in found.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > MOST_VALUES or not all(within(one, *LIMITS[name][key]) for one in values):
            raise FourdfyError(f"{path}: {key} cannot be {repr(value)[:80]}", "fourdfy models verify", ENVIRONMENT)
    return found

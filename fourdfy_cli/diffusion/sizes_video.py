"""The config.json of every network of the newer video models, by the id they are published under, and of tiny ones of the same classes.

From the published configs (read through diffusers 0.42 and the models' pages, 2026). On the meta device Wan 2.1's 1.3B has 1,418,996,800
parameters, CogVideoX 2b 1,693,783,872. The means and deviations of Wan's latents are not the published numbers.
"""

from __future__ import annotations

from typing import Any

from fourdfy_cli.diffusion.table import COGVIDEOX, WAN, WAN_5B

IDS = (WAN, WAN_5B, COGVIDEOX)


def configs(id: str, size: str) -> dict[str, dict[str, Any]]:
    """The config.json of each part, by its subfolder; "model_index" is the file of that name."""
    full = size == "full"
    text = {"T5EncoderModel": 32128, "UMT5EncoderModel": 256384}
    name = "T5EncoderModel" if id == COGVIDEOX else "UMT5EncoderModel"
    return {
        "transformer": _cogvideox(full) if id == COGVIDEOX else _wan(full, id == WAN_5B),
        "vae": _cogvideox_vae(full) if id == COGVIDEOX else _wan_vae(full, id == WAN_5B),
        "text_encoder": _t5(full, name, text[name]),
        "scheduler": _cogvideox_scheduler() if id == COGVIDEOX else _wan_scheduler(5.0 if id == WAN_5B else 3.0),
        "model_index": {"_class_name": "CogVideoXPipeline"} if id == COGVIDEOX else _wan_index(id == WAN_5B),
    }


def _wan(full: bool, large: bool) -> dict[str, Any]:
    heads, layers, ffn = (24, 30, 14336) if large else (12, 30, 8960)
    channels = (48 if full else 8) if large else (16 if full else 4)
    return {
        "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": None, "attention_head_dim": 128 if full else 12,
        "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": ffn if full else 32, "freq_dim": 256 if full else 16, "image_dim": None,
        "in_channels": channels, "num_attention_heads": heads if full else 2, "num_layers": layers if full else 2,
        "out_channels": channels, "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
        "text_dim": 4096 if full else 16,
    }  # fmt: skip


def _wan_vae(full: bool, large: bool) -> dict[str, Any]:
    channels = (48 if full else 8) if large else (16 if full else 4)
    shared = {
        "_class_name": "AutoencoderKLWan", "attn_scales": [], "base_dim": (160 if large else 96) if full else 8, "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0, "num_res_blocks": 2 if full else 1, "temperal_downsample": [False, True, True], "z_dim": channels,
        "latents_mean": [round(0.1 * (k % 5) - 0.2, 2) for k in range(channels)],
        "latents_std": [1.0 + 0.25 * (k % 4) for k in range(channels)],
    }  # fmt: skip
    if not large:
        return shared
    return shared | {
        "is_residual": True, "decoder_base_dim": 256 if full else 8, "in_channels": 12, "out_channels": 12, "patch_size": 2,
        "scale_factor_spatial": 16, "scale_factor_temporal": 4,
    }  # fmt: skip


def _wan_scheduler(shift: float) -> dict[str, Any]:
    return {
        "_class_name": "UniPCMultistepScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "flow_shift": shift,
        "num_train_timesteps": 1000, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2,
    }  # fmt: skip


def _wan_index(large: bool) -> dict[str, Any]:
    return {"_class_name": "WanPipeline", "expand_timesteps": True} if large else {"_class_name": "WanPipeline"}


def _cogvideox(full: bool) -> dict[str, Any]:
    return {
        "_class_name": "CogVideoXTransformer3DModel", "activation_fn": "gelu-approximate", "attention_bias": True,
        "attention_head_dim": 64 if full else 16, "dropout": 0.0, "flip_sin_to_cos": True, "freq_shift": 0,
        "in_channels": 16 if full else 4, "max_text_seq_length": 226, "norm_elementwise_affine": True, "norm_eps": 1e-05,
        "num_attention_heads": 30 if full else 2, "num_layers": 30 if full else 2, "out_channels": 16 if full else 4, "patch_size": 2,
        "sample_frames": 49, "sample_height": 60 if full else 8, "sample_width": 90 if full else 8, "spatial_interpolation_scale": 1.875,
        "temporal_compression_ratio": 4, "temporal_interpolation_scale": 1.0, "text_embed_dim": 4096 if full else 16,
        "time_embed_dim": 512 if full else 16, "timestep_activation_fn": "silu", "use_rotary_positional_embeddings": False,
    }  # fmt: skip


def _cogvideox_vae(full: bool) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLCogVideoX", "act_fn": "silu", "block_out_channels": [128, 256, 256, 512] if full else [8, 8, 8, 8],
        "down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4, "force_upcast": True,
        "in_channels": 3, "latent_channels": 16 if full else 4, "layers_per_block": 3 if full else 1, "norm_eps": 1e-06,
        "norm_num_groups": 32 if full else 4, "out_channels": 3, "sample_height": 480, "sample_width": 720, "scaling_factor": 1.15258426,
        "temporal_compression_ratio": 4,
    }  # fmt: skip


def _cogvideox_scheduler() -> dict[str, Any]:
    return {
        "_class_name": "CogVideoXDDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True, "snr_shift_scale": 3.0, "steps_offset": 0, "timestep_spacing": "trailing",
    }  # fmt: skip


def _t5(full: bool, name: str, words: int) -> dict[str, Any]:
    return {
        "architectures": [name], "d_ff": 10240 if full else 32, "d_kv": 64 if full else 8, "d_model": 4096 if full else 16,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-06, "model_type": "umt5" if name.startswith("U") else "t5",
        "num_heads": 64 if full else 2, "num_layers": 24 if full else 2, "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32, "vocab_size": words if full else 64,
    }  # fmt: skip

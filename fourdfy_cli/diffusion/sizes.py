"""The config.json of every network of the paper's models, and of networks of the same structure that a laptop can run.

Full size: Stable Diffusion 2.1 (865,910,724 parameters in the UNet), MVDream (867,572,164), Zeroscope and ModelScope (1,411,233,860), their
autoencoder (83,653,863) and text encoder (340,387,840). Tiny: the same classes, levels and block types in a few megabytes.
"""

from __future__ import annotations

from typing import Any

SIZES = ("full", "tiny")
ROLES = ("multiview", "image", "lora", "video")
WIDTHS = {"full": [320, 640, 1280, 1280], "tiny": [32, 32, 64, 64]}
HEAD = {"full": 64, "tiny": 16}  # channels of an attention head
TEXT = {"full": 1024, "tiny": 16}
LATENT = {"multiview": 32, "image": 64, "lora": 96, "video": 32}  # pixels of a square latent the UNet was trained at; only informative


def configs(role: str, size: str) -> dict[str, dict[str, Any]]:
    """The config.json of each part of a role's model, by its subfolder ("unet", "vae", "text_encoder", "scheduler")."""
    return {"unet": unet(role, size), "vae": vae(size), "text_encoder": text_encoder(size), "scheduler": scheduler(role)}


def unet(role: str, size: str) -> dict[str, Any]:
    """A UNet's config.json; the multi-view one in the terms of MVDream's own code."""
    widths, head = WIDTHS[size], HEAD[size]
    if role == "multiview":
        return {
            "_class_name": "MultiViewUNetModel",
            "image_size": LATENT[role],
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": widths[0],
            "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2,
            "channel_mult": [width // widths[0] for width in widths],
            "num_head_channels": head,
            "transformer_depth": 1,
            "context_dim": TEXT[size],
            "camera_dim": 16,
        }
    D = "3D" if role == "video" else "2D"
    shared = {
        "_class_name": f"UNet{D}ConditionModel",
        "sample_size": LATENT[role],
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [*[f"CrossAttnDownBlock{D}"] * 3, f"DownBlock{D}"],
        "up_block_types": [f"UpBlock{D}", *[f"CrossAttnUpBlock{D}"] * 3],
        "block_out_channels": widths,
        "layers_per_block": 2,
        "cross_attention_dim": TEXT[size],
    }
    if role == "video":
        return shared | {"attention_head_dim": head}
    return shared | {
        "attention_head_dim": [width // head for width in widths],
        "use_linear_projection": True,
    }  # heads, in spite of its name


def vae(size: str) -> dict[str, Any]:
    """The autoencoder's config.json: 8 x 8 pixels to one of 4 channels."""
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512] if size == "full" else [8, 8, 16, 16],
        "layers_per_block": 2 if size == "full" else 1,
        "norm_num_groups": 32 if size == "full" else 4,
        "scaling_factor": 0.18215,
    }


def tiny_encoder(size: str) -> dict[str, Any]:
    """TAESD's config.json: latents of the same size and channels as the autoencoder's."""
    widths = [64 if size == "full" else 8] * 4
    return {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": [1, 3, 3, 3],
        "num_decoder_blocks": [3, 3, 3, 1],
        "latent_channels": 4,
        "scaling_factor": 1.0,
    }


def text_encoder(size: str) -> dict[str, Any]:
    """The text tower of OpenCLIP's ViT-H-14 without its last layer, as Stable Diffusion 2 publishes it."""
    full = size == "full"
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "hidden_size": TEXT[size],
        "num_hidden_layers": 23 if full else 2,
        "num_attention_heads": 16 if full else 2,
        "intermediate_size": 4096 if full else 64,
    }


def scheduler(role: str) -> dict[str, Any]:
    """The noise schedule that all four were trained with; the LoRA's network predicts v, the others eps."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction" if role == "lora" else "epsilon",
    }

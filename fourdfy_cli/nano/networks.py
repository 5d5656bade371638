"""Sizes of the nano models: stock diffusers and transformers classes, only smaller.

Measured on 2 cores (AMD EPYC, AVX2): see CHANGELOG.md for what was tried and dropped.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fourdfy_cli.diffusion.models import MOMENT
from fourdfy_cli.diffusion.mvdream import CAMERA
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS

IMAGE_SIZE, LATENT_SIZE, LATENT_CHANNELS, FRAMES = 64, 8, 12, 8
LATENT = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
TEXT_WIDTH, TEXT_LENGTH = 64, 12
VIEW = CAMERA + MOMENT  # numbers that the multi-view model is told of each view
CHANNELS, HEAD_WIDTH = (64, 128), 16
WORDS = ("a", "an", ",", "front", "side", "back", "view", *COLOURS, *OBJECTS, *MOTIONS, "left", "right")


def vae() -> AutoencoderDC:
    """64x64 rgb to 8x8x12 latents and back: pixel-unshuffle convolutions, no convolution above 32x32."""
    widths = (8, 16, 64, 128)
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 2),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def _shared(heads: int | tuple[int, ...]) -> dict:
    return {
        "sample_size": LATENT_SIZE,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": heads,
    }


def unet2d(camera: bool) -> UNet2DConditionModel:
    """Image UNet; with `camera`, the multi-view one, whose class label is a camera (16 numbers) and a moment (2)."""
    levels = len(CHANNELS)
    heads = tuple(width // HEAD_WIDTH for width in CHANNELS)  # diffusers' attention_head_dim means their number here
    extra = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": VIEW} if camera else {}
    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        use_linear_projection=True,
        **_shared(heads),
        **extra,
    )


def video_unet() -> UNetMotionModel:
    """Video UNet over FRAMES frames: between the layers of the image UNet, each with its name and shape there, frames attend to each other
    and know their place (UNet3DConditionModel's do not: it cannot tell the first half of a motion from the second)."""
    levels = len(CHANNELS)
    heads = tuple(width // HEAD_WIDTH for width in CHANNELS)
    shared = {key: value for key, value in _shared(heads).items() if key != "attention_head_dim"}
    return UNetMotionModel(
        down_block_types=("CrossAttnDownBlockMotion",) * levels,
        up_block_types=("CrossAttnUpBlockMotion",) * levels,
        use_linear_projection=True,
        num_attention_heads=heads,
        motion_num_attention_heads=heads,
        motion_max_seq_length=FRAMES,
        **shared,
    )


def scheduler(to_noise: bool = False) -> DDIMScheduler:
    """Stable Diffusion's noise schedule, v-prediction; `to_noise`: stretched so that nothing is left of a clip at its end (the video
    model's)."""
    return DDIMScheduler(
        rescale_betas_zero_snr=to_noise,
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer that gives every word of the toy world one token; written to `folder`."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    vocabulary = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            known = next(((i, m) for m in merges for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == m), None)
            at, merge = known or (0, (pieces[0], pieces[1]))
            merges[merge] = None
            vocabulary["".join(merge)] = None
            pieces[at : at + 2] = ["".join(merge)]
    ids = {token: i for i, token in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    made = CLIPTokenizer(vocab=ids, merges=list(merges), model_max_length=TEXT_LENGTH)  # pyright: ignore[reportArgumentType]
    made.save_pretrained(folder)
    return made


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            **{key: getattr(tokens, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    )


def token_ids(tokens: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded token ids [N TEXT_LENGTH]."""
    return tokens(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").input_ids

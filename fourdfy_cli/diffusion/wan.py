"""Wan 2.1 and Wan 2.2 TI2V (Alibaba, Apache-2.0): a transformer that predicts the flow of latents that are causal in time.

From diffusers' WanPipeline and WanImageToVideoPipeline, and the published configs: latents are (mean - latents_mean) / latents_std, no
sample drawn; frames are encoded 1, 4, 4, ... at a time, each convolution keeping its last two frames; text is UMT5's. The 5B model hears
a time for each token (model_index.json: expand_timesteps), 0 for those of a first frame that is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.diffusion.encoders import Encoder, State, merged, whole_clips_only
from fourdfy_cli.diffusion.models import ModelSpec, Unet, Vae, schedule
from fourdfy_cli.diffusion.network import broken, network, read_json
from fourdfy_cli.diffusion.prior import Cost, VideoPrior, check_clip, moments, refuse_clean_first

STRIDE = 4  # frames to a latent frame


@dataclass(frozen=True)
class WanPrior(VideoPrior):
    """`per_token`: the network hears a time for each token."""

    per_token: bool = False

    NETWORKS = {"WanTransformer3DModel": WanTransformer3DModel}
    VAES = {"AutoencoderKLWan": AutoencoderKLWan}
    TEXTS = "UMT5EncoderModel"
    TINY = "tiny_video"

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> WanPrior:
        transformer = network(spec.folder("unet"), cls.NETWORKS, device, dtype, spec.seed, restore=_restore)
        vae = vae if vae is not None else _autoencoder(spec, device, dtype)
        _check_channels(spec, transformer, vae)
        return cls(transformer, vae, schedule(spec), spec, per_token=_per_token(spec))

    @classmethod
    def check(cls, spec: ModelSpec, frames: int, size: tuple[int, int], clean_first: bool) -> None:
        shrink = read_json(spec.folder("vae") / "config.json").get("scale_factor_spatial", 8)
        check_clip(spec, frames, size, 2 * (shrink if shrink in (8, 16, 32) else 8), STRIDE)
        if not _per_token(spec):
            refuse_clean_first(spec, clean_first)

    @classmethod
    def cost(cls, vae: Vae) -> Cost:
        if vae.config["is_residual"]:
            return Cost(25_300, 1_420, (5.0e9, 705e6), (STRIDE, 16), STRIDE, 721)
        return Cost(6_110, 3_390, (1419e6, 127e6), (STRIDE, 8), STRIDE, 1_566)

    @property
    def encoder(self) -> Encoder:
        return WanEncoder(self.vae)

    @property
    def text_width(self) -> int:
        return self.unet.config["text_dim"]

    def output(self, z_t: Float[Tensor, "B C T h w"], t: int, text: Float[Tensor, "B L D"], camera: Tensor | None = None) -> Tensor:
        dtype = self.unet.patch_embedding.weight.dtype
        times = self.times(t, z_t)
        return self.unet(z_t.to(dtype), times, encoder_hidden_states=text.to(z_t.device, dtype)).sample.to(z_t.dtype)

    def times(self, t: int, z_t: Float[Tensor, "B C T h w"]) -> Tensor:
        """What the network hears: [B], or [B tokens]."""
        heard = torch.tensor(self.schedule.time(t), device=z_t.device)
        if not self.per_token:
            return heard.expand(len(z_t))
        frames, height, width = (side // patch for side, patch in zip(z_t.shape[2:], self.unet.config["patch_size"], strict=True))
        mask = torch.ones(frames, height * width, device=z_t.device)
        if self.clean_first:
            mask[0] = 0
        return (mask * heard).flatten().expand(len(z_t), -1)


@dataclass(frozen=True)
class WanEncoder:
    """Frames 1, 4, 4, ... at a time through the caches of AutoencoderKLWan's encoder: exact in pieces, gradient included."""

    vae: Vae

    def pieces(self, pictures: int, most: int | None) -> list[int]:
        return merged([1, *[STRIDE] * ((pictures - 1) // STRIDE)], most)

    def step(self, rgb: Float[Tensor, "N 3 H W"], state: State) -> tuple[Tensor, Tensor | None, State]:
        x = (rgb * 2 - 1).to(self.vae.dtype).transpose(0, 1)[None]
        if self.vae.config["patch_size"] is not None:
            x = patchify(x, patch_size=self.vae.config["patch_size"])
        first = [] if state else [1]
        coded = []
        for part in x.split([*first, *[STRIDE] * ((len(rgb) - len(first)) // STRIDE)], 2):
            caches = list(state) if state else [None] * sum(isinstance(module, WanCausalConv3d) for module in self.vae.encoder.modules())
            coded.append(self.vae.encoder(part, feat_cache=caches, feat_idx=[0]))
            state = caches
        mean, _ = moments(self.vae.quant_conv(torch.cat(coded, 2)))
        shift, scale = (mean.new_tensor(self.vae.config[key])[:, None, None] for key in ("latents_mean", "latents_std"))
        return ((mean - shift) / scale).to(rgb.dtype), None, state

    def decode(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        raise whole_clips_only()


def _restore(transformer: Unet) -> None:
    """The tables of rotary positions, which are in no file."""
    config = transformer.config
    transformer.rope = WanRotaryPosEmbed(config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"])


def _autoencoder(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype) -> Vae:
    path = spec.folder("vae") / "config.json"
    stated = read_json(path)
    vae: Vae = network(spec.folder("vae"), WanPrior.VAES, device, dtype, spec.seed)
    for key in ("latents_mean", "latents_std"):
        if not isinstance(stated.get(key), list) or len(stated[key]) != vae.config["z_dim"]:
            raise broken(f"{path} has no {key} of {vae.config['z_dim']} numbers, by which latents are scaled")
    return vae


def _check_channels(spec: ModelSpec, transformer: Unet, vae: Vae) -> None:
    taken, given = transformer.config["in_channels"], vae.config["z_dim"]
    if taken != given:
        raise broken(f"{spec.source}: the network takes {taken} channels, the autoencoder gives {given}")


def _per_token(spec: ModelSpec) -> bool:
    path = spec.folder("unet").parent / "model_index.json"
    return path.is_file() and read_json(path).get("expand_timesteps") is True

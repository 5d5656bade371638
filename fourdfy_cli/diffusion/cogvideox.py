"""CogVideoX 2b (Zhipu AI, Apache-2.0): a transformer that predicts v of latents that are causal in time, time before channels.

From diffusers' CogVideoXPipeline and the published configs: latents are a sample of the posterior times scaling_factor; frames are
encoded 8 at a time, what is left over with the first 8; text is T5's. The 5b models, which turn by position, are another matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.diffusion.encoders import Encoder, State, merged, whole_clips_only
from fourdfy_cli.diffusion.models import ModelSpec, Unet, Vae, schedule
from fourdfy_cli.diffusion.network import broken, network, read_json
from fourdfy_cli.diffusion.prior import Cost, VideoPrior, check_clip, moments, refuse_clean_first

BATCH = 8  # frames that are encoded at once


@dataclass(frozen=True)
class CogVideoXPrior(VideoPrior):
    """A CogVideoX model with fixed sine positions."""

    NETWORKS = {"CogVideoXTransformer3DModel": CogVideoXTransformer3DModel}
    VAES = {"AutoencoderKLCogVideoX": AutoencoderKLCogVideoX}
    TEXTS = "T5EncoderModel"
    TINY = "tiny_video"

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> CogVideoXPrior:
        path = spec.folder("unet") / "config.json"
        stated = read_json(path)
        for key in ("use_rotary_positional_embeddings", "use_learned_positional_embeddings", "patch_size_t", "ofs_embed_dim"):
            if stated.get(key):
                raise broken(f"{path}: {key} {str(stated[key])[:40]!r} is not supported (CogVideoX 2b has none)")
        transformer = network(spec.folder("unet"), cls.NETWORKS, device, dtype, spec.seed, restore=_restore)
        vae = vae if vae is not None else network(spec.folder("vae"), cls.VAES, device, dtype, spec.seed)
        if "scaling_factor" not in read_json(spec.folder("vae") / "config.json"):
            raise broken(f"{spec.folder('vae') / 'config.json'} has no scaling_factor, by which latents are scaled")
        return cls(transformer, vae, schedule(spec), spec)

    @classmethod
    def check(cls, spec: ModelSpec, frames: int, size: tuple[int, int], clean_first: bool) -> None:
        check_clip(spec, frames, size, 16)
        refuse_clean_first(spec, clean_first)

    @classmethod
    def cost(cls, vae: Vae) -> Cost:
        return Cost(6_160, 3_930, (1694e6, 216e6), (4, 8), BATCH + 5, 1_910)  # 4k + 1 frames: 1 or 5 are left over

    @property
    def encoder(self) -> Encoder:
        return CogVideoXEncoder(self.vae)

    @property
    def text_width(self) -> int:
        return self.unet.config["text_embed_dim"]

    def output(self, z_t: Float[Tensor, "B C T h w"], t: int, text: Float[Tensor, "B L D"], camera: Tensor | None = None) -> Tensor:
        dtype = self.unet.dtype
        times = torch.tensor(self.schedule.time(t), device=z_t.device).expand(len(z_t))
        made = self.unet(z_t.transpose(1, 2).to(dtype), text.to(z_t.device, dtype), times).sample
        return made.transpose(1, 2).to(z_t.dtype)


@dataclass(frozen=True)
class CogVideoXEncoder:
    """Frames 8 + what is left over, then 8 at a time through the caches of AutoencoderKLCogVideoX's encoder: exact in these pieces,
    gradient included. Its normalisation is over the frames of a batch, so no other cut gives the same latents."""

    vae: Vae

    def pieces(self, pictures: int, most: int | None) -> list[int]:
        return merged(batches(pictures), most)

    def step(self, rgb: Float[Tensor, "N 3 H W"], state: State) -> tuple[Tensor, Tensor | None, State]:
        x = (rgb * 2 - 1).to(self.vae.dtype).transpose(0, 1)[None]
        coded = []
        for part in x.split(batches(len(rgb)), 2):
            made, state = self.vae.encoder(part, conv_cache=state)
            coded.append(made if self.vae.quant_conv is None else self.vae.quant_conv(made))
        mean, std = moments(torch.cat(coded, 2))
        scale = self.vae.config["scaling_factor"]
        return (mean * scale).to(rgb.dtype), (std * scale).to(rgb.dtype), state

    def decode(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        raise whole_clips_only()


def batches(frames: int) -> list[int]:
    """How diffusers cuts a clip for this encoder."""
    return [min(frames, BATCH + frames % BATCH), *[BATCH] * (frames // BATCH - 1)]


def _restore(transformer: Unet) -> None:
    """The table of positions at the published size, which is in no file."""
    patch = transformer.patch_embed
    patch.pos_embedding = patch._get_positional_embeddings(patch.sample_height, patch.sample_width, patch.sample_frames)

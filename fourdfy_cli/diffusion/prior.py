"""What the video branch asks of a video model, whatever its kind.

Clips of latents are [1 C T h w] here, T latent frames, and a network's output has the same layout; a kind turns them as its network wants.
A kind says which classes of networks it is made of, which text encoder it reads, how pictures become latents (`encoder`), what clips it
takes (`check`) and how its network is called (`output`). Each kind is a file; priors.py lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli.diffusion import models
from fourdfy_cli.diffusion.encoders import Encoder, Pictures
from fourdfy_cli.diffusion.models import Diffusion, ModelSpec, Vae
from fourdfy_cli.diffusion.network import VAES, read_json
from fourdfy_cli.errors import USAGE, FourdfyError


@dataclass(frozen=True)
class Cost:
    """Numbers alive at the peak of a step, counted on the meta device with full-size networks, 17 frames of 320 x 576, attention that
    keeps no matrix: of the network without a graph per latent pixel; of the encoder with one per pixel of a picture. An encoder that
    goes clip piece by piece has `piece` pictures in its largest, and keeps so many numbers per pixel and latent frame between them."""

    network: float
    encoder: float
    parameters: tuple[float, float]  # of the full-size network and autoencoder that were counted
    shrink: tuple[int, int] = (1, 8)  # frames, and pixels a side, to a latent pixel
    piece: int = 1
    kept: float = 0.0

    def latents(self, frames: int, pixels: int) -> float:
        """Latent pixels of a clip."""
        return ((frames - 1) // self.shrink[0] + 1) * pixels / self.shrink[1] ** 2

    def encoding(self, frames: int, pixels: int, most: int | None) -> float:
        """Numbers that encoding takes, `most` pictures with a graph at a time as far as that can be."""
        if most is None or most >= frames:
            return self.encoder * frames * pixels
        kept = self.kept * ((frames - 1) // self.shrink[0] + 1)
        return (self.encoder * min(max(most, self.piece), frames) + kept) * pixels


TINY_COSTS = {"tiny": Cost(0, 470, (1, 2.4e6)), "tiny_video": Cost(0, 300, (1, 1.5e6), (4, 8), 4, 63)}  # TAESD, TAEHV


@dataclass(frozen=True)
class VideoPrior(Diffusion):
    """A frozen video model on its device. With `clean_first` the first latent frame of every clip is shown to it without noise."""

    clean_first: bool = False

    NETWORKS: ClassVar[Mapping[str, type[nn.Module]]]
    VAES: ClassVar[Mapping[str, type[nn.Module]]]
    TEXTS: ClassVar[str] = "CLIPTextModel"  # class of the text encoder
    TINY: ClassVar[str] = "tiny"  # role of the small encoder that goes with its latents

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> VideoPrior:
        """The model of a folder; with `vae`, share that one. Raises FourdfyError (exit 3) as `models.load`."""
        raise NotImplementedError

    @classmethod
    def check(cls, spec: ModelSpec, frames: int, size: tuple[int, int], clean_first: bool) -> None:
        """Raises FourdfyError (exit 2) unless clips of so many frames of this size (height, width) can be judged."""
        raise NotImplementedError

    @classmethod
    def cost(cls, vae: Vae) -> Cost:
        """What a step takes, with this autoencoder (that may have no storage)."""
        raise NotImplementedError

    @property
    def encoder(self) -> Encoder:
        """How a clip becomes latents."""
        raise NotImplementedError

    @property
    def text_width(self) -> int:
        """Channels of the text embeddings that the network takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class UnetPrior(VideoPrior):
    """Zeroscope, ModelScope, AnimateDiff, nano: a UNet over the frames' latents, each frame encoded by itself."""

    NETWORKS = {kind.__name__: kind for kind in (UNet3DConditionModel, UNetMotionModel)}
    VAES = VAES

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> UnetPrior:
        return cls(**vars(models.load(spec, device, dtype, vae)))

    @classmethod
    def check(cls, spec: ModelSpec, frames: int, size: tuple[int, int], clean_first: bool) -> None:
        refuse_clean_first(spec, clean_first)
        most = read_json(spec.folder("unet") / "config.json").get("motion_max_seq_length")
        if type(most) is int and frames > most:  # UNetMotionModel's frames know their place
            raise FourdfyError(f"{spec.source} takes at most {most} frames, not {frames}", f"--set frames={most}", USAGE)

    @classmethod
    def cost(cls, vae: Vae) -> Cost:
        return Cost(10_600, 3_000, (1411e6, 83.7e6))

    @property
    def encoder(self) -> Encoder:
        return Pictures(self.vae)

    @property
    def text_width(self) -> int:
        return self.unet.config["cross_attention_dim"]


def refuse_clean_first(spec: ModelSpec, clean_first: bool) -> None:
    """Raises FourdfyError (exit 2) if a model that knows no clean first frame is to be given one."""
    if clean_first:
        raise FourdfyError(f"{spec.source} makes videos from text alone", "--set stage3.video.clean_first=false", USAGE)


def check_clip(spec: ModelSpec, frames: int, size: tuple[int, int], step: int, every: int = 4) -> None:
    """Raises FourdfyError (exit 2) unless there are every * k + 1 frames, their sides multiples of `step` pixels."""
    if (frames - 1) % every:
        near = max(round((frames - 1) / every), 1) * every + 1
        raise FourdfyError(f"{spec.source} takes {every}k+1 frames, not {frames}", f"--set frames={near}", USAGE)
    for side, pixels in enumerate(size):
        if pixels % step:
            near = max(round(pixels / step), 1) * step
            message = f"{spec.source} takes pictures whose sides are multiples of {step} pixels, not {size[0]} x {size[1]}"
            raise FourdfyError(message, f"--set stage3.video.model_size.{side}={near}", USAGE)


def moments(sums: Float[Tensor, "1 D T h w"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [T C h w] from what an encoder of diffusers gives out: means, then log variances within -30 and 20."""
    mean, logvar = (part[0].transpose(0, 1) for part in sums.chunk(2, dim=1))
    return mean, torch.exp(0.5 * logvar.clamp(-30, 20))

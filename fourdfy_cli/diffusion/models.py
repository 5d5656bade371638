"""Diffusion models from local folders in the diffusers layout: one loader for every set, nano or full size.

A folder holds a subfolder per network (network.py) and one for the noise schedule. Device and dtype of the networks are decided here;
latents and gradients keep the dtype of the pictures. rgb is in [0,1] everywhere but inside `encode` and `decode`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderTiny, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.diffusion.convolutions import flatten_convolutions
from fourdfy_cli.diffusion.multiview import fold_views
from fourdfy_cli.diffusion.mvdream import CAMERA
from fourdfy_cli.diffusion.network import UNETS, VAES, broken, network, read_json
from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.diffusion.table import CAMERA_PROJECTION

MOMENT = 2  # numbers of a moment (scene/cameras.py), which a multi-view model may be told after a view's camera

# Networks of diffusers, whose own annotations know too little of `config`, `to` and what a call returns.
Unet = Any  # one of network.UNETS, or what is called as one
Vae = Any  # AutoencoderKL or AutoencoderDC


@dataclass(frozen=True)
class ModelSpec:
    """A model on disk: what it is for ("multiview", "image", "lora" or "video"), its folder, and the subfolders.

    `revision` stands for the content of the folder ("" for none that lasts), `prediction` overrides what the scheduler's file says the
    network predicts, and with a `seed` the weights are drawn instead of read (network.py).
    """

    role: str
    source: str
    unet: str = "unet"
    vae: str = "vae"
    text_encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    scheduler: str = "scheduler"
    camera: str = CAMERA_PROJECTION  # where a multi-view UNet's file has no camera embedding
    licence: str = "unknown"
    revision: str = ""
    prediction: str | None = None
    seed: int | None = None
    embeddings: str = ""  # a folder of texts that are encoded already, in place of text encoder and tokenizer

    def folder(self, part: str) -> Path:
        """The subfolder of one of the parts named above."""
        return Path(self.source) / getattr(self, part)

    @property
    def reader(self) -> tuple[str, ...]:
        """What texts are encoded by: models that have this in common share their embeddings."""
        return self.source, self.text_encoder, self.tokenizer, self.embeddings


WEIGHTS = str(Path(__file__).parents[1] / "nano" / "weights")
NANO = {
    role: ModelSpec(
        role,
        WEIGHTS,
        unet=f"{role}_unet",
        text_encoder=f"{own}text_encoder",
        scheduler=f"{own}scheduler",
        licence="the licence of this package",
    )
    for role, own in (("multiview", ""), ("image", ""), ("video", "video_"))
}


@dataclass(frozen=True)
class Diffusion:
    """A frozen latent diffusion model on its device."""

    unet: Unet
    vae: Vae
    schedule: Schedule
    spec: ModelSpec

    @property
    def timed(self) -> bool:
        """Whether a multi-view model is told each view's moment (scene/cameras.py) beside its camera: the nano one is."""
        return told(self.unet) == CAMERA + MOMENT

    def to(self, device: torch.device | str) -> None:
        """Move both networks."""
        self.unet.to(device)
        self.vae.to(device)

    @torch.no_grad()
    def predict(
        self,
        z_t: Float[Tensor, "B ..."],
        t: int,
        cond: Float[Tensor, "N L C"],
        uncond: Float[Tensor, "M L C"],
        camera: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """Network outputs under both texts (N, M = 1 or B), the same camera [B 16 or 18] for both, in one batch of 2B."""
        texts = torch.cat([text.expand(len(z_t), -1, -1) for text in (cond, uncond)])
        output = self.output(torch.cat([z_t, z_t]), t, texts, None if camera is None else torch.cat([camera, camera]))
        return output[: len(z_t)], output[len(z_t) :]

    def output(self, z_t: Float[Tensor, "B ..."], t: int, text: Float[Tensor, "B L C"], camera: Tensor | None = None) -> Tensor:
        """The network's raw output for z_t at noise level t, with a graph if one is asked for."""
        return predict(self.unet, z_t, self.schedule.time(t), text, camera)


def predict(
    unet: Unet, z_t: Float[Tensor, "B ..."], time: int | float, text: Float[Tensor, "B L C"], camera: Tensor | None = None
) -> Float[Tensor, "B ..."]:
    """The UNet's raw output for z_t at the time of its noise level (`Schedule.time`), in z_t's dtype whatever the network's."""
    labels = {}
    if camera is not None:
        weight = unet.class_embedding.linear_1.weight
        labels = {"class_labels": camera.to(weight.device, weight.dtype)}
    level = torch.tensor(time, device=z_t.device)
    if isinstance(unet, UNetMotionModel):  # wants a text for each frame
        text = text.repeat_interleave(z_t.shape[2], 0)
    return unet(z_t.to(unet.dtype), level, encoder_hidden_states=text.to(z_t.device, unet.dtype), **labels).sample.to(z_t.dtype)


def load(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> Diffusion:
    """Load a model; with `vae`, share that one instead of loading the spec's own.

    Raises FourdfyError (exit 3) for a missing, truncated or ill-fitting file, or a class that is not on the list.
    """
    unet = load_unet(spec, device, dtype)
    if spec.role == "multiview":
        if unet.config["class_embed_type"] != "projection" or told(unet) not in (CAMERA, CAMERA + MOMENT):
            numbers = f"{CAMERA} or {CAMERA + MOMENT} numbers"
            raise broken(f"{spec.folder('unet')}: a multi-view model needs a projection class embedding of {numbers}")
        fold_views(unet)
    vae = vae if vae is not None else network(spec.folder("vae"), VAES, device, dtype, spec.seed)
    return Diffusion(unet, vae, schedule(spec), spec)


def told(unet: Unet) -> int | None:
    """How many numbers a UNet is told of each view."""
    return unet.config["projection_class_embeddings_input_dim"]


def load_unet(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype) -> Unet:
    """A model's UNet, of the class that its role wants; raises FourdfyError (exit 3) as `load`."""
    folder, camera = spec.folder("unet"), spec.folder("camera")
    apart = camera if spec.role == "multiview" and camera.is_dir() else None
    unet = network(folder, UNETS, device, dtype, spec.seed, apart)
    wanted = (UNet3DConditionModel, UNetMotionModel) if spec.role == "video" else (UNet2DConditionModel,)
    if not isinstance(unet, wanted):
        names = " or ".join(kind.__name__ for kind in wanted)
        raise broken(f"{folder}: the {spec.role} model must be a {names}, not a {type(unet).__name__}")
    if torch.device(device).type == "cpu":
        flatten_convolutions(unet)
    return unet


def schedule(spec: ModelSpec) -> Schedule:
    """The noise schedule of a model; raises FourdfyError (exit 3)."""
    found = Schedule.from_config(read_json(spec.folder("scheduler") / "scheduler_config.json"))
    return found if spec.prediction is None else replace(found, prediction=spec.prediction)


def encode(vae: Vae, rgb: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N C h w"], Float[Tensor, "N C h w"] | None]:
    """Mean and standard deviation of the scaled latents of pictures in [0,1], with a graph; no deviation if the VAE is deterministic."""
    scale = vae.config["scaling_factor"]
    coded = vae.encode((rgb * 2 - 1).to(vae.dtype))
    if isinstance(vae, (AutoencoderDC, AutoencoderTiny)):
        return ((coded.latent if isinstance(vae, AutoencoderDC) else coded.latents) * scale).to(rgb.dtype), None
    return (coded.latent_dist.mean * scale).to(rgb.dtype), (coded.latent_dist.std * scale).to(rgb.dtype)


def decode(vae: Vae, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
    """Pictures of scaled latents; nearly but not exactly in [0,1]."""
    return (vae.decode((z / vae.config["scaling_factor"]).to(vae.dtype)).sample.to(z.dtype) + 1) / 2

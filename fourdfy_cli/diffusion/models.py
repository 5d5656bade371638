"""Diffusion models from local folders in the diffusers layout: one loader for every set, nano or full size.

A folder holds `config.json` and `*.safetensors` per network. Nothing but JSON and safetensors is read, no code from a model folder runs,
weights load strictly, and everything wrong raises FourdfyError (exit 3). Device and dtype of the networks are decided here; latents and
gradients keep the dtype of the pictures. rgb is in [0,1] everywhere but inside `encode` and `decode`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fourdfy_cli.diffusion.multiview import fold_views
from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.diffusion.temporal import flatten_temporal_convolutions
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

UNETS = {"UNet2DConditionModel": UNet2DConditionModel, "UNet3DConditionModel": UNet3DConditionModel}
VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # AutoencoderKL files before 2023
CAMERA = 16  # numbers in a flattened c2w


@dataclass(frozen=True)
class ModelSpec:
    """One row of the model table: what the model is for ("multiview", "image" or "video"), its folder, and the subfolders."""

    role: str
    source: str
    unet: str = "unet"
    vae: str = "vae"
    text_encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    scheduler: str = "scheduler"
    licence: str = "unknown"


WEIGHTS = str(Path(__file__).parents[1] / "nano" / "weights")
NANO = {
    role: ModelSpec(role, WEIGHTS, unet=f"{role}_unet", licence="the licence of this package") for role in ("multiview", "image", "video")
}


@dataclass(frozen=True)
class Diffusion:
    """A frozen latent diffusion model on its device; the UNet is a UNet2DConditionModel or UNet3DConditionModel, or is called as one."""

    unet: nn.Module
    vae: AutoencoderKL | AutoencoderDC
    schedule: Schedule
    spec: ModelSpec

    @torch.no_grad()
    def predict(
        self,
        z_t: Float[Tensor, "B ..."],
        t: int,
        cond: Float[Tensor, "N L C"],
        uncond: Float[Tensor, "M L C"],
        camera: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """Network outputs under both texts (N, M = 1 or B), the same camera [B 16] for both, in one batch of 2B."""
        texts = torch.cat([text.expand(len(z_t), -1, -1) for text in (cond, uncond)])
        output = predict(self.unet, torch.cat([z_t, z_t]), t, texts, None if camera is None else torch.cat([camera, camera]))
        return output[: len(z_t)], output[len(z_t) :]


def predict(unet: nn.Module, z_t: Float[Tensor, "B ..."], t: int, text: Float[Tensor, "B L C"], camera: Tensor | None = None) -> Tensor:
    """The UNet's raw output for z_t at noise level t, in z_t's dtype whatever the network's."""
    labels = {}
    if camera is not None:
        weight = unet.class_embedding.linear_1.weight
        labels = {"class_labels": camera.to(weight.device, weight.dtype)}
    level = torch.tensor(t, device=z_t.device)
    return unet(z_t.to(unet.dtype), level, encoder_hidden_states=text.to(z_t.device, unet.dtype), **labels).sample.to(z_t.dtype)


def load(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: AutoencoderKL | AutoencoderDC | None = None) -> Diffusion:
    """Load a model; with `vae`, share that one instead of loading the spec's own.

    Raises FourdfyError (exit 3) for a missing, truncated or ill-fitting file, or a class that is not on the list.
    """
    folder = Path(spec.source)
    unet = network(folder / spec.unet, UNETS, dtype)
    wanted = UNet3DConditionModel if spec.role == "video" else UNet2DConditionModel
    if not isinstance(unet, wanted):
        raise broken(f"{folder / spec.unet}: the {spec.role} model must be a {wanted.__name__}, not a {type(unet).__name__}")
    if spec.role == "multiview":
        if unet.config["class_embed_type"] != "projection" or unet.config["projection_class_embeddings_input_dim"] != CAMERA:
            raise broken(f"{folder / spec.unet}: a multi-view model needs a projection class embedding of {CAMERA} numbers")
        fold_views(unet)
    if spec.role == "video" and torch.device(device).type == "cpu":
        flatten_temporal_convolutions(unet)
    vae = vae if vae is not None else network(folder / spec.vae, VAES, dtype)
    return Diffusion(unet.to(device), vae.to(device), schedule(spec), spec)


def schedule(spec: ModelSpec) -> Schedule:
    """The noise schedule of a model; raises FourdfyError (exit 3)."""
    return Schedule.from_config(read_json(Path(spec.source) / spec.scheduler / "scheduler_config.json"))


def network(
    folder: Path,
    classes: Mapping[str, type[nn.Module]],
    dtype: torch.dtype,
    changes: Mapping[str, Any] | None = None,
    new: tuple[str, ...] = (),
) -> nn.Module:
    """A frozen network from `config.json` (plus `changes`) and its weights, strictly; the parameters named in `new` must not be in the
    file and start at zero."""
    config = read_json(folder / "config.json") | dict(changes or {})
    name = config.get("_class_name")
    if name not in classes:
        raise broken(f"{folder}/config.json: the class {name!r} is not one of {', '.join(classes)}")
    known = inspect.signature(classes[name].__init__).parameters
    try:
        with torch.device("meta"):
            model = classes[name](**{key: value for key, value in config.items() if key in known and key != "self"})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise broken(f"{folder}/config.json does not describe a {name}: {_line(error)}") from error
    path = weights_file(folder, "diffusion_pytorch_model", dtype)
    state = read_weights(path)
    if name == "AutoencoderKL":
        state = {rename(key): value for key, value in state.items()}
    if present := set(new) & set(state):
        raise broken(f"{path}: {min(present)} should be new, but the file has it")
    shapes = model.state_dict()
    state |= {key: torch.zeros(shapes[key].shape) for key in new}
    fill(model, {key: value.to(dtype) for key, value in state.items()}, path)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give a model its weights, every key and shape as it should be; raises FourdfyError (exit 3)."""
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[1:] or [str(error)]
        raise broken(f"{path} does not fit its config.json: {detail[0].strip()[:200]}") from error


def rename(key: str) -> str:
    """A parameter's present name for one that old AutoencoderKL files use."""
    for old, name in OLD_NAMES.items():
        key = key.replace(old, name)
    return key


def weights_file(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """The safetensors file of a network: the half-precision one first if half precision is asked for."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in names if dtype in (torch.float32, torch.float64) else names[::-1]:
        if (folder / name).is_file():
            return folder / name
    raise broken(f"{folder} holds no {names[0]}")


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise broken(f"{path} is damaged: {_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise broken(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise broken(f"{path} is not JSON: {_line(error)}") from error
    if not isinstance(values, dict):
        raise broken(f"{path} is not a JSON object")
    return values


def encode(
    vae: AutoencoderKL | AutoencoderDC, rgb: Float[Tensor, "N 3 H W"], generator: torch.Generator | None
) -> Float[Tensor, "N C h w"]:
    """Scaled latents of pictures in [0,1], with a graph; a sample of the posterior where the VAE has one (its mode without generator)."""
    coded = vae.encode((rgb * 2 - 1).to(vae.dtype))
    if isinstance(vae, AutoencoderDC):
        z = coded.latent
    else:
        z = coded.latent_dist.mode() if generator is None else coded.latent_dist.sample(generator)
    return (z * vae.config["scaling_factor"]).to(rgb.dtype)


def decode(vae: AutoencoderKL | AutoencoderDC, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
    """Pictures of scaled latents; nearly but not exactly in [0,1]."""
    return (vae.decode((z / vae.config["scaling_factor"]).to(vae.dtype)).sample.to(z.dtype) + 1) / 2


def broken(message: str) -> FourdfyError:
    return FourdfyError(message, "fourdfy nano train", ENVIRONMENT)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

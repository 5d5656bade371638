"""The kinds of video models there are: which one a folder holds, by the class in its network's config.json."""

from __future__ import annotations

import torch

from fourdfy_cli.diffusion.cogvideox import CogVideoXPrior
from fourdfy_cli.diffusion.models import ModelSpec, Vae
from fourdfy_cli.diffusion.network import broken, read_json
from fourdfy_cli.diffusion.prior import UnetPrior, VideoPrior
from fourdfy_cli.diffusion.wan import WanPrior

KINDS: tuple[type[VideoPrior], ...] = (UnetPrior, WanPrior, CogVideoXPrior)


def named(network: str) -> type[VideoPrior] | None:
    """The kind whose network is of this class."""
    return next((kind for kind in KINDS if network in kind.NETWORKS), None)


def kind(spec: ModelSpec) -> type[VideoPrior]:
    """The kind of a folder's model; raises FourdfyError (exit 3) for a class that is not on the list."""
    path = spec.folder("unet") / "config.json"
    name = str(read_json(path).get("_class_name"))
    if (found := named(name)) is None:
        known = ", ".join(network for one in KINDS for network in one.NETWORKS)
        raise broken(f"{path}: the video model must be one of {known}, not {name[:80]!r}")
    return found


def check_texts(spec: ModelSpec) -> None:
    """Raises FourdfyError (exit 3) for a text encoder of another class than the model's kind reads."""
    path, wanted = spec.folder("text_encoder") / "config.json", kind(spec).TEXTS
    if (found := read_json(path).get("architectures")) != [wanted]:
        raise broken(f"{path}: the text encoder must be a {wanted}, not {str(found)[:80]}")


def load(spec: ModelSpec, device: torch.device | str, dtype: torch.dtype, vae: Vae | None = None) -> VideoPrior:
    """A video model on its device; with `vae`, share that one. Raises FourdfyError (exit 3)."""
    return kind(spec).load(spec, device, dtype, vae)

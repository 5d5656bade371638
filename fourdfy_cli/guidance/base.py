"""What every guidance shares: from latent gradients to picture gradients.

Pictures are rgb [V H W 3] in [0,1]. The gradient at the latents does not depend on the graph that made the pictures, so a guidance
takes them without one and hands back d loss / d rgb: what is then to be back-propagated through the renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.models import Vae, decode, encode
from fourdfy_cli.guidance import sds
from fourdfy_cli.scene.cameras import Shot


@dataclass(frozen=True)
class GuidanceOutput:
    """d loss / d rgb [V H W 3], the loss, and figures for the log (t, grad_norm, ...); gradient and loss include branch.weight."""

    grad: Tensor
    loss: float
    logs: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Guidance(Protocol):
    """The guidance of one branch: the gradient of its loss at the pictures of a shot, at `progress` in [0,1] of the stage."""

    def __call__(
        self, rgb: Tensor, shot: Shot, branch: Branch, progress: float, generator: torch.Generator, chunk: int | None = None
    ) -> GuidanceOutput: ...

    def to(self, device: torch.device | str) -> None:
        """Move the networks, to make room for another branch's."""


def through_encoder(
    vae: Vae,
    rgb: Float[Tensor, "V H W 3"],
    branch: Branch,
    batch: int,
    latent_gradient: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    chunk: int | None = None,
) -> GuidanceOutput:
    """Resize pictures to branch.model_size, encode them, ask `latent_gradient` for g / B at the latents z [V C h w] of B = `batch`
    pictures or clips, and back-propagate branch.weight times that to the pictures. branch.pixel_weight adds as many times
    (x - decode(z - g)) / B for pictures x (HiFA, arXiv 2305.18766): it smooths patterns that the encoder hardly sees.

    With `chunk`, no more than that many pictures are encoded with a graph at a time, once before and once after `latent_gradient`: the
    same gradient in less memory (the autoencoder treats each picture by itself). Draws the posterior's noise, if it has one.
    """
    chunk = chunk or len(rgb)
    leaves = [part.detach().requires_grad_(True) for part in rgb.split(chunk)]
    pictures = [resized(leaf, branch.model_size) for leaf in leaves]
    with torch.set_grad_enabled(len(leaves) == 1):
        coded = [encode(vae, picture) for picture in pictures]
    shape = (len(rgb), *coded[0][0].shape[1:])
    noise = None if coded[0][1] is None else torch.randn(shape, generator=generator, device=generator.device).to(rgb).split(chunk)
    sampled = [_sample(part, noise, k) for k, part in enumerate(coded)]
    at_latents = latent_gradient(torch.cat([z.detach() for z in sampled]))
    grads = []
    for k, (leaf, picture, at_z) in enumerate(zip(leaves, pictures, at_latents.split(chunk), strict=True)):
        z = sampled[k] if len(leaves) == 1 else _sample(encode(vae, picture), noise, k)
        outputs, gradients = [z], [branch.weight * at_z]
        if branch.pixel_weight > 0:
            outputs.append(picture)
            with torch.no_grad():
                gradients.append(branch.weight * branch.pixel_weight / batch * (picture - decode(vae, z - batch * at_z)))
        grads += torch.autograd.grad(outputs, leaf, gradients)
    grad = torch.cat(grads)
    logs = {"grad_norm": grad.norm().item(), "latent_grad_norm": branch.weight * at_latents.norm().item()}
    return GuidanceOutput(grad, branch.weight * sds.loss_of(at_latents, batch), logs)


def resized(rgb: Float[Tensor, "V H W 3"], size: tuple[int, int]) -> Float[Tensor, "V 3 h w"]:
    """Pictures at the size (height, width) that a model wants."""
    picture = rgb.permute(0, 3, 1, 2)
    return picture if tuple(picture.shape[-2:]) == tuple(size) else F.interpolate(picture, size, mode="bilinear", align_corners=False)


def _sample(coded: tuple[Tensor, Tensor | None], noise: tuple[Tensor, ...] | None, k: int) -> Tensor:
    """The latents of chunk k: a sample of the posterior where there is one."""
    mean, std = coded
    return mean if std is None or noise is None else mean + std * noise[k]


def latent_gradient(x: sds.Noised, outputs: tuple[Tensor, Tensor], branch: Branch, groups: int) -> Tensor:
    """Eq. 3 or 6 as branch.form says, from the network's outputs (cond, uncond)."""
    if branch.form == "reconstruction":
        return sds.reconstruction_gradient(x, *outputs, branch.scale, branch.rescale, groups)
    return sds.video_gradient(x, *outputs, branch.scale)


def noise_level(branch: Branch, progress: float, T: int, generator: torch.Generator) -> int:
    """The noise level of this step, drawn from the branch's range at this progress."""
    return sds.timestep(branch.low.at(progress), branch.high.at(progress), T, generator)

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
from torch.utils._pytree import tree_leaves, tree_map

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.encoders import Encoder, State
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
    encoder: Encoder,
    rgb: Float[Tensor, "V H W 3"],
    branch: Branch,
    batch: int,
    latent_gradient: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    chunk: int | None = None,
) -> GuidanceOutput:
    """Resize pictures to branch.model_size, encode them, ask `latent_gradient` for g / B at the latents z [N C h w] of B = `batch`
    pictures or clips, and back-propagate branch.weight times that to the pictures. branch.pixel_weight adds as many times
    (x - decode(z - g)) / B for pictures x (HiFA, arXiv 2305.18766): it smooths patterns that the encoder hardly sees.

    With `chunk`, no more than that many pictures are encoded with a graph at a time, if the encoder can: once before and once, from the
    last piece to the first, after `latent_gradient`: the same gradient in less memory. Draws the posterior's noise, if it has one.
    """
    leaves = [part.detach().requires_grad_(True) for part in rgb.split(encoder.pieces(len(rgb), chunk))]
    pictures = [resized(leaf, branch.model_size) for leaf in leaves]
    with torch.set_grad_enabled(len(leaves) == 1):
        coded = _encoded(encoder, pictures)
    counts = [len(mean) for mean, _, _ in coded]
    shape = (sum(counts), *coded[0][0].shape[1:])
    noise = None if coded[0][1] is None else torch.randn(shape, generator=generator, device=generator.device).to(rgb).split(counts)
    sampled = [_sample(mean, std, noise, k) for k, (mean, std, _) in enumerate(coded)]
    at_latents = latent_gradient(torch.cat([z.detach() for z in sampled]))
    parts, grads, at_state = at_latents.split(counts), [], []
    for k in reversed(range(len(leaves))):
        z, before, after = sampled[k], [], []
        if len(leaves) > 1:
            state = tree_map(_leaf, coded[k - 1][2]) if k else None
            mean, std, reached = encoder.step(pictures[k], state)
            z, before, after = _sample(mean, std, noise, k), _tensors(state), _tensors(reached)[: len(at_state)]
        outputs, gradients = [z, *after], [branch.weight * parts[k], *at_state]
        if branch.pixel_weight > 0:
            outputs.append(pictures[k])
            with torch.no_grad():
                wanted = encoder.decode(z - batch * parts[k])
                gradients.append(branch.weight * branch.pixel_weight / batch * (pictures[k] - wanted))
        found = torch.autograd.grad(outputs, [leaves[k], *before], gradients, materialize_grads=True)
        grads, at_state = [found[0], *grads], list(found[1:])
    grad = torch.cat(grads)
    logs = {"grad_norm": grad.norm().item(), "latent_grad_norm": branch.weight * at_latents.norm().item()}
    return GuidanceOutput(grad, branch.weight * sds.loss_of(at_latents, batch), logs)


def encoder_of(own: Encoder, tiny: Encoder | None, branch: Branch, progress: float) -> Encoder:
    """What encodes at this progress: the model's own autoencoder, or the small one that stands in for it until branch.own_from."""
    return own if tiny is None or branch.encoder == "own" or progress >= branch.own_from else tiny


def move(encoder: Encoder | None, device: torch.device | str) -> None:
    """Move a small encoder, if there is one."""
    if encoder is not None:
        encoder.vae.to(device)


def resized(rgb: Float[Tensor, "V H W 3"], size: tuple[int, int]) -> Float[Tensor, "V 3 h w"]:
    """Pictures at the size (height, width) that a model wants."""
    picture = rgb.permute(0, 3, 1, 2)
    return picture if tuple(picture.shape[-2:]) == tuple(size) else F.interpolate(picture, size, mode="bilinear", align_corners=False)


def _encoded(encoder: Encoder, pictures: list[Tensor]) -> list[tuple[Tensor, Tensor | None, State]]:
    """Mean, deviation and state after each piece."""
    coded, state = [], None
    for picture in pictures:
        coded.append(encoder.step(picture, state))
        state = coded[-1][2]
    return coded


def _sample(mean: Tensor, std: Tensor | None, noise: tuple[Tensor, ...] | None, k: int) -> Tensor:
    """The latents of piece k: a sample of the posterior where there is one."""
    return mean if std is None or noise is None else mean + std * noise[k]


def _leaf(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().requires_grad_(True)


def _tensors(state: State) -> list[Tensor]:
    return [value for value in tree_leaves(state) if value is not None]


def latent_gradient(x: sds.Noised, outputs: tuple[Tensor, Tensor], branch: Branch, groups: int) -> Tensor:
    """Eq. 3 or 6 as branch.form says, from the network's outputs (cond, uncond)."""
    if branch.form == "reconstruction":
        return sds.reconstruction_gradient(x, *outputs, branch.scale, branch.rescale, groups)
    return sds.video_gradient(x, *outputs, branch.scale)


def noise_level(branch: Branch, progress: float, T: int, generator: torch.Generator) -> int:
    """The noise level of this step: drawn from the branch's range at this progress, or that share of the way from its end to its start."""
    if branch.levels == "annealed":
        return sds.annealed(branch.low.at(progress), branch.high.at(progress), progress, T)
    return sds.timestep(branch.low.at(progress), branch.high.at(progress), T, generator)

"""How near a small encoder's gradient is to the autoencoder's: on the pictures of a run, the same pull at both latents.

A picture's gradient is d <z, g> / d rgb for one random g ~ N(0, 1), the same for both encoders. Near 1 the small one pushes pictures where
the true one would; near 0 it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli import hybrid
from fourdfy_cli.config import Models, Recipe
from fourdfy_cli.diffusion import models, network, priors, sets, tiny
from fourdfy_cli.diffusion.encoders import Encoder, Pictures
from fourdfy_cli.guidance.base import resized
from fourdfy_cli.output import render
from fourdfy_cli.scene.scene import RenderOptions, camera_rays, render_rays

RAYS = 2**14  # at a time


def measure(run: Path, recipe: Recipe, device: torch.device) -> Iterator[dict[str, Any]]:
    """`compare` on what the image and the video branch would see of a run's scene in stage 3. Raises FourdfyError (exit 2, 3, 6)."""
    scene, own, _ = render.load_scene(render.locate(run), str(device))
    options = RenderOptions(scene.blob_std.item(), render.backdrop(own))
    for branch in ("image", "video"):
        shot = hybrid.draw_shot(branch, hybrid.StepContext(recipe, 0, 3, 0))
        rays = camera_rays(scene, shot)
        rgb = torch.cat([render_rays(scene, part, options).rgb for part in rays.split(RAYS)]).view(len(shot), *shot.size, 3)
        encoders = pair(recipe.models, branch, device, torch.float32)
        for row in compare(*encoders, rgb, getattr(recipe.stage3, branch).model_size):
            yield {"branch": branch} | row


def pair(models_: Models, role: str, device: torch.device, dtype: torch.dtype) -> tuple[Encoder, Encoder]:
    """A role's own encoder and the small one that goes with it; raises FourdfyError (exit 2, 3) as loading them."""
    spec = sets.specs(models_, [role])[role]
    if role == "video":
        prior = priors.load(spec, device, dtype)
        return prior.encoder, tiny.load(prior.TINY, models_, device, dtype)
    vae = network.network(spec.folder("vae"), network.VAES, device, dtype, spec.seed)
    return Pictures(vae), tiny.load("tiny", models_, device, dtype)


def gradients(encoder: Encoder, rgb: Float[Tensor, "N H W 3"], size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Latents of pictures, and what the random pull at them is at the pictures [N H W 3]; in pieces, as a run does."""
    leaf = rgb.detach().requires_grad_(True)
    z, _, _ = encoder.step(resized(leaf, size), None)
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z)
    return z.detach(), torch.autograd.grad((z * g).sum(), leaf)[0]


def compare(own: Encoder, small: Encoder, rgb: Float[Tensor, "N H W 3"], size: tuple[int, int], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Of each picture: cosine of the two gradients, the ratio of their lengths; of its latents, the distance relative to their length."""
    (z, at), (other, near) = (gradients(encoder, rgb, size, seed) for encoder in (own, small))
    if z.shape != other.shape:
        raise models.broken(f"the small encoder gives latents of {list(other.shape[1:])}, the autoencoder of {list(z.shape[1:])}")
    distance = ((z - other).norm() / z.norm()).item()
    for k, (a, b) in enumerate(zip(at.flatten(1), near.flatten(1), strict=True)):
        cosine = torch.cosine_similarity(a, b, 0).item()
        yield {"picture": k, "cosine": cosine, "length": (b.norm() / a.norm()).item(), "latents": distance}

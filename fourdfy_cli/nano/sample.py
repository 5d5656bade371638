"""Pictures straight from the nano diffusion models (DDIM), to look at and to measure the models by."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import models, sets, text
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.diffusion.noise import guided
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.nano.networks import FRAMES, LATENT_CHANNELS, LATENT_SIZE
from fourdfy_cli.nano.prompts import parse
from fourdfy_cli.output.render import write_png
from fourdfy_cli.scene.cameras import orbit_camera, timed_camera

KINDS = ("multiview", "image", "video")
SIDES = text.SECTORS[:6:2]  # front, left, back


@torch.no_grad()
def ddim(model: Diffusion, z: Tensor, cond: Tensor, uncond: Tensor, camera: Tensor | None, steps: int, scale: float) -> Tensor:
    """Deterministic DDIM (Song et al. 2021) from noise z at level T-1 to clean latents, in `steps` steps."""
    schedule = model.schedule
    levels = torch.linspace(len(schedule) - 1, 0, steps + 1).round().long().tolist()
    for t, after in zip(levels[:-1], levels[1:], strict=True):
        output = guided(*model.predict(z, t, cond, uncond, camera), scale)
        x0, eps = schedule.x0(output, z, t), schedule.eps(output, z, t)
        z = x0 if after == 0 else schedule.add(x0, eps, after)
    return z


def draw(model: Diffusion, prompts: list[str], kind: str, seed: int, steps: int, scale: float) -> Float[Tensor, "N V 3 H W"]:
    """N prompts, V pictures each, in [0,1]: 4 views from azimuth 0, 90, 180, 270, an eighth of the period in (multiview), one picture
    (image), or the frames of a clip (video)."""
    texts = text.encode(model.spec, [*prompts, ""], "cpu")
    cond, uncond = texts[:-1], texts[-1:]
    generator = torch.Generator().manual_seed(seed)
    views = {"multiview": 4, "image": 1, "video": FRAMES}[kind]
    noise = torch.randn(len(prompts), views, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator)
    if kind == "video":
        z = ddim(model, noise.transpose(1, 2), cond, uncond, None, steps, scale).transpose(1, 2)
    else:
        camera = None
        if kind == "multiview":
            azimuth = torch.arange(4) * (math.pi / 2)
            full = torch.ones(4)
            c2w = orbit_camera(azimuth, math.radians(15) * full, 2.7 * full)
            camera = timed_camera(c2w, full / 8).repeat(len(prompts), 1)
        z = ddim(model, noise.flatten(0, 1), cond.repeat_interleave(views, 0), uncond, camera, steps, scale).unflatten(0, (-1, views))
    return torch.cat([models.decode(model.vae, part) for part in z.flatten(0, 1).split(64)]).clamp(0, 1).unflatten(0, (-1, views))


def load(kind: str) -> Diffusion:
    """One of the nano models; raises FourdfyError (exit 2 for another kind, 3 if its weights are missing)."""
    if kind not in KINDS:
        raise FourdfyError(f"there is no kind {kind!r} of sample", f"--kind {' or '.join(KINDS)}", USAGE)
    return models.load(sets.specs(Models(set="nano"), (kind,))[kind], "cpu", torch.float32)


def sample(prompt: str, kind: str, out: Path, seed: int = 0, steps: int = 25, scale: float = 3.0) -> Path:
    """Write samples of one prompt as a PNG: a row of 4 views, pictures from SIDES, or a row of frames."""
    words = parse(prompt).text()
    prompts = [text.worded(words, view) for view in SIDES] if kind == "image" else [words]
    pictures = draw(load(kind), prompts, kind, seed, steps, scale).flatten(0, 1)
    return write_png(out, tile(pictures, len(pictures)))


def tile(rgb: Float[Tensor, "N 3 H W"], columns: int, zoom: int = 2):
    """Pictures in [0,1] as one uint8 sheet [rows*H*zoom columns*W*zoom 3], row by row."""
    n, _, h, w = rgb.shape
    sheet = rgb.reshape(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, 3)
    sheet = sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return (sheet.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

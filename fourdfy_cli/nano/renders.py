"""Pictures of distilled scenes, beside the truth, for the video model to learn from: what stage 3 really asks it about (train_video.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fourdfy_cli.diffusion.models import Vae, encode
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.guidance.base import resized
from fourdfy_cli.nano.data import DISTANCE, ELEVATION, FOVY, GREY
from fourdfy_cli.nano.exact import latents
from fourdfy_cli.nano.latents import encode_subjects
from fourdfy_cli.nano.networks import FRAMES, IMAGE_SIZE
from fourdfy_cli.nano.prompts import Subject, parse
from fourdfy_cli.output import render
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.scene.scene import render as render_scene

STAGES = ("stage2.pt", "stage3.pt")


def collect(runs: list[Path], out: Path, vae: Vae, count: int = 16, seed: int = 0, report: Callable[[str], None] = print) -> dict[str, int]:
    """Write a file like those of `latents.cache`: `count` clips of each run folder, half of the scene at the end of stage 2 and half at the
    end of stage 3, with "shown" [N F C h w] for the scene and "latents" for the truth. At the end of stage 3 every other clip moves only
    part of the way, as in the middle of the stage. Runs whose prompt names no colour or no motion are left out.

    Raises FourdfyError (exit 2) if no run is left, or as `render.load_scene`.
    """
    parts = []
    for number, run in enumerate(runs):
        subject = parse(render.load_scene(run / STAGES[0])[2]["prompt"])
        if subject.colour is None or subject.motion is None:
            continue
        rng = np.random.default_rng((seed, number))
        for name in STAGES:
            scene, recipe, _ = render.load_scene(run / name)
            size = recipe.stage3.video.size
            parts += [one(scene, subject, vae, size, rng, name == "stage3.pt" and k % 2 == 1) for k in range(count // 2)]
        report(f"{number + 1}/{len(runs)} {subject.text()}")
    if not parts:
        raise FourdfyError("no finished run whose prompt names a colour and a motion", 'fourdfy generate "a red dog jumping"', USAGE)
    made = {key: torch.stack([part[key] for part in parts]).contiguous() for key in parts[0]}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(made, out)
    return {"clips": len(parts)}


@torch.no_grad()
def one(scene: Scene, subject: Subject, vae: Vae, size: tuple[int, int], rng: np.random.Generator, partly: bool) -> dict[str, Tensor]:
    """A clip of the scene and the true one, from a random nano camera over the same grey; `partly`: its dynamic grid scaled by U(0, 1)."""
    azimuth, elevation, distance, grey, t0 = (rng.uniform(*r) for r in ((0, 360), ELEVATION, DISTANCE, GREY, (0, 1 / FRAMES)))
    full, share = torch.ones(FRAMES), rng.random() if partly else 1.0
    c2w = orbit_camera(math.radians(azimuth) * full, math.radians(elevation) * full, distance * full)
    time = t0 + torch.arange(FRAMES) / FRAMES
    kept = {key: value.clone() for key, value in scene.field.dynamic.state_dict().items()}
    scene.field.dynamic.load_state_dict({key: value * share if value.is_floating_point() else value for key, value in kept.items()})
    rgb = render_scene(scene, Shot(c2w, math.radians(FOVY) * full, time, size), float(scene.blob_std), torch.full((3,), grey)).rgb
    scene.field.dynamic.load_state_dict(kept)
    true = latents(vae, subject, Shot(c2w, math.radians(FOVY) * full, time, (IMAGE_SIZE, IMAGE_SIZE)), grey)
    return {
        "latents": true.half(),
        "shown": encode(vae, resized(rgb, (IMAGE_SIZE, IMAGE_SIZE)))[0].half(),
        "azimuth": torch.full((FRAMES,), azimuth),
        "subjects": encode_subjects([subject])[0],
    }

"""CLIP score: 100 times the cosine between a prompt and the frames of its scene on the MAV3D trajectory.

No prefix, no clipping, no 2.5: the scale of 4D-fy's Table 2. Mean over frames, then over prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from fourdfy_cli import render
from fourdfy_cli.diffusion import hub
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.runfolder import write_json
from fourdfy_cli.scene.cameras import mav3d

NANO_CLIP = Path(__file__).parents[1] / "nano" / "weights" / "clip"
BATCH = 32


@dataclass(frozen=True)
class Clip:
    """An open_clip model with its tokenizer and picture statistics."""

    name: str
    model: torch.nn.Module
    tokenize: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Float[Tensor, "N C"]:
        """Unit embeddings of prompts."""
        return F.normalize(self.model.encode_text(self.tokenize(prompts)), dim=-1)

    @torch.no_grad()
    def pictures(self, rgb: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Unit embeddings of square pictures in [0,1]."""
        if rgb.shape[-1] != self.size:
            rgb = F.interpolate(rgb, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return torch.cat([F.normalize(self.model.encode_image(part), dim=-1) for part in ((rgb - mean) / std).split(BATCH)])


def load_clip(name: str) -> Clip:
    """ "nano", "local-dir:DIR", "ViT-B-32" (OpenAI's weights as the model table pins them) or another of open_clip's names, with
    OpenAI's weights.

    Raises FourdfyError: exit 2 for an unknown name, 3 for weights that cannot be had.
    """
    source = name
    if name in ("nano", "ViT-B-32"):
        source = f"local-dir:{NANO_CLIP if name == 'nano' else hub.locate('clip')}"
    pretrained = None if source.startswith("local-dir:") else "openai"
    if pretrained and source not in open_clip.list_models():
        raise FourdfyError(
            f"there is no CLIP model {name!r}", "fourdfy clip-score outputs/ --clip nano   (or ViT-B-32, local-dir:DIR)", USAGE
        )
    try:
        model = open_clip.create_model(source, pretrained=pretrained, precision="fp32")
        tokenize = open_clip.get_tokenizer(source)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FourdfyError(f"cannot load CLIP {name}: {line}", "fourdfy clip-score outputs/ --clip nano", ENVIRONMENT) from None
    size = model.visual.image_size
    about = open_clip.get_model_preprocess_cfg(model)
    return Clip(name, model.eval(), tokenize, size[0] if isinstance(size, tuple) else size, tuple(about["mean"]), tuple(about["std"]))


def cosines(clip: Clip, prompt: str, frames: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
    """100 times the cosine between the prompt and each frame."""
    return 100 * clip.pictures(frames) @ clip.texts([prompt])[0]


def find_runs(paths: list[Path]) -> list[Path]:
    """Run folders and checkpoints at or right below the paths; raises FourdfyError (exit 2) if there are none."""
    found = []
    for path in paths:
        below = sorted(p.parent for p in path.glob("*/run.json")) if path.is_dir() else []
        own = [path] if path.is_file() or (path / "run.json").is_file() else []
        if not (own or below):
            raise FourdfyError(f"there is no run in {path}", 'fourdfy generate "a red dog jumping"', USAGE)
        found += own or below
    return found


def score_runs(paths: list[Path], clip: str, size: int | None = None) -> dict[str, Any]:
    """CLIP score of every run: {clip, mean, runs: [{run, prompt, score, frames}]}; also written to each run's clip.json.
    Frames have `size` pixels, by default those of the CLIP model."""
    runs, judge = find_runs(paths), load_clip(clip)
    rows = []
    for run in runs:
        scene, recipe, meta = render.load_scene(run)
        shot = mav3d(size or judge.size)
        frames = np.stack([rgb for rgb, _ in render.views(scene, recipe, shot)])
        values = cosines(judge, meta["prompt"], torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
        rows.append({"run": str(run), "prompt": meta["prompt"], "score": values.mean().item(), "frames": len(frames)})
        if run.is_dir():
            write_json(run / "clip.json", {"clip": clip, **rows[-1], "per_frame": [round(v, 3) for v in values.tolist()]})
    return {"clip": clip, "mean": float(np.mean([row["score"] for row in rows])), "runs": rows}

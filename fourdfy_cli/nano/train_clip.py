"""The nano CLIP: an open_clip model that names objects, colours, motions and sides of the toy world.

It judges, so it is trained on ground truth alone (every colour of every object, blurred and noisy at times), never on
what the diffusion models make.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fourdfy_cli.nano import data
from fourdfy_cli.nano.fit import Fit, Plan
from fourdfy_cli.nano.networks import IMAGE_SIZE
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import Subject

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
Said = tuple[str, str | None, str | None, str | None]  # object, colour, motion and view words
EVERY_PAIR = [(o, c) for o in OBJECTS for c in COLOURS]


def pool_of_pictures(seed: int, groups: int) -> tuple[Tensor, list[tuple[Subject, str | None]]]:
    """Pictures [N 3 H W] uint8 and what each shows: subject and view words. A third of them move."""
    rng, parts, labels = np.random.default_rng((seed, 7)), [], []
    for start in range(0, groups, 64):
        batch = data.draw(rng, 64, 4, "still" if (start // 64) % 3 else "clip", EVERY_PAIR)
        parts.append(((batch.rgb + 1) * 127.5).round().to(torch.uint8).flatten(0, 1))
        labels += [(s, side(s, a)) for s, row in zip(batch.subjects, batch.azimuth.tolist(), strict=True) for a in row]
    return torch.cat(parts), labels


def side(subject: Subject, azimuth: float) -> str | None:
    """View words for an azimuth in degrees; none for a thing that spins, whose visible side depends on the time."""
    return None if subject.motion == "spinning" else data.view_words(azimuth)


def said(label: tuple[Subject, str | None], rng: np.random.Generator) -> Said:
    """What a caption states of a picture: object, colour, motion, view; None where it keeps silent."""
    subject, view = label
    return (
        subject.object,
        subject.colour if rng.random() < 0.9 else None,
        subject.motion if rng.random() < 0.6 else None,
        view if rng.random() < 0.5 else None,
    )


def true_of(caption: Said, label: tuple[Subject, str | None]) -> bool:
    subject, view = label
    facts = (subject.object, subject.colour, subject.motion, view)
    return all(word is None or word == fact for word, fact in zip(caption, facts, strict=True))


def worn(rgb: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Pictures in [-1,1] as distilled scenes look: often blurred (to as little as a fifth of their size), paler, mottled or noisy."""

    def resized(picture: Tensor, size: int) -> Tensor:
        return F.interpolate(picture, size=size, mode="bilinear", antialias=True)

    if rng.random() < 0.6:
        rgb = resized(resized(rgb, int(rng.integers(13, 60))), IMAGE_SIZE)
    if rng.random() < 0.5:
        rgb = rgb.mean((2, 3), keepdim=True).lerp(rgb, rng.uniform(0.6, 1.0))
    if rng.random() < 0.5:
        strength, size = rng.uniform(0, 0.3), int(rng.integers(8, 32))
        rgb = rgb + strength * resized(torch.randn(len(rgb), 1, size, size, generator=generator), IMAGE_SIZE)
    return rgb + 0.1 * rng.random() * torch.randn(rgb.shape, generator=generator)


def train_clip(folder: Path, plan: Plan, seed: int = 0, device: str = "cpu", report=print) -> None:
    """Contrastive training; a caption and a picture match when every word of the caption is true of the picture."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CONFIG)
    tokenize = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    pictures, labels = pool_of_pictures(seed, plan.pool)
    fit = Fit("clip", {"clip": model}, plan, folder, seed, device, report=report)
    fit.resume()

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = rng.integers(0, len(pictures), plan.batch)
        captions = [said(labels[i], rng) for i in chosen]
        match = torch.tensor([[float(true_of(c, labels[i])) for c in captions] for i in chosen])
        texts = tokenize([Subject(*c[:3]).text() + (f", {c[3]}" if c[3] else "") for c in captions])
        return worn(pictures[torch.from_numpy(chosen)].float() / 127.5 - 1, rng, generator), texts, match

    def loss(rgb: Tensor, texts: Tensor, match: Tensor) -> Tensor:
        logits = model.logit_scale.exp().clamp(max=100) * model.encode_image(rgb, True) @ model.encode_text(texts, True).T
        rows = -(logits.log_softmax(1) * match / match.sum(1, keepdim=True)).sum(1).mean()
        columns = -(logits.log_softmax(0) * match / match.sum(0, keepdim=True)).sum(0).mean()
        return (rows + columns) / 2

    fit.run(draw, loss)
    export_clip(model, folder / "clip")


def export_clip(model: open_clip.CLIP, folder: Path) -> None:
    """Write the model as an open_clip folder, for `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")

"""A run against the toy world's ground truth, at views and times it never saw.

Notation: A azimuths (22.5 degrees + 45 k, elevation 15) times T times ((k + 1/2) / 4; a static checkpoint is judged at
t = 0 alone); mask = opacity above one half; depth = expected depth of a ray that hits, world units.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdfy_cli.diffusion.text import VIEW_WORDS
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import geometry
from fourdfy_cli.evaluate.clip import Clip, load_clip
from fourdfy_cli.nano.data import DISTANCE, ELEVATION, FOVY, GREY
from fourdfy_cli.nano.networks import FRAMES, IMAGE_SIZE
from fourdfy_cli.nano.objects import COLOURS, OBJECTS, WITH_FRONT
from fourdfy_cli.nano.prompts import MOTIONS, Subject, parse
from fourdfy_cli.nano.show import truth
from fourdfy_cli.nano.spots import mean, spots
from fourdfy_cli.output import render
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Frames, Scene
from fourdfy_cli.scene.scene import render as render_scene
from fourdfy_cli.store.folder import write_json

AZIMUTHS, TIMES, BACKDROP = 8, 4, sum(GREY) / 2
UNSEEN = 1e-4  # mean change from frame to frame that is rounding


def score(run: Path) -> dict[str, Any]:
    """Measures of a run folder or checkpoint; a folder gets them as nano.json too.

    iou, psnr (dB), depth_error, spots (of the contrast of eyes, noses and all that is dark; None if nothing is): means over views and
    times. motion_ratio: mean frame-to-frame change over the ground
    truth's (if the prompt names no motion that can be seen: over the mean of those that can), whatever the stage. object_ok, colour_ok:
    fraction of views in which nano CLIP names them right. fronts: how many of the 8 azimuths look like a front (None for
    things without one); front_runs: how many separate fronts those form; chamfer and volume_iou of the solids, means over times.
    Raises FourdfyError as `render.load_scene`.
    """
    scene, recipe, meta = render.load_scene(run)
    clip, moving = load_clip("nano"), recipe.stage(meta["stage"]).moving
    subject = parse(meta["prompt"])
    shot = views(TIMES if moving else 1)
    frames = render_views(scene, shot)
    if subject.colour is None:
        subject = Subject(subject.object, named(clip, frames, list(COLOURS), "a {} " + subject.object), subject.motion)
    target = Subject(subject.object, subject.colour, subject.motion if moving else None)
    per_view = compare(frames, shot, target)
    result: dict[str, Any] = {name: mean(values) for name, values in per_view.items()}
    result |= {"motion_ratio": motion_ratio(scene, subject)}
    result |= naming(clip, frames, subject)
    result |= fronts(clip, frames, subject) | solids(scene, target, shot)
    result |= {"prompt": meta["prompt"], "stage": meta["stage"], "held_out": subject.held_out, "per_view": table(shot, per_view)}
    if run.is_dir():
        write_json(run / "nano.json", result)
    return result


def views(times: int) -> Shot:
    """All azimuths at every time, time by time."""
    azimuth = torch.deg2rad(22.5 + 360 / AZIMUTHS * torch.arange(AZIMUTHS)).repeat(times)
    time = ((torch.arange(times) + 0.5) / times if times > 1 else torch.zeros(1)).repeat_interleave(AZIMUTHS)
    return camera_shot(azimuth, time)


def camera_shot(azimuth: Tensor, time: Tensor) -> Shot:
    """Views at azimuths [V] (radians) from the middle of the nano cameras."""
    full = torch.ones_like(azimuth)
    c2w = orbit_camera(azimuth, math.radians(sum(ELEVATION) / 2) * full, sum(DISTANCE) / 2 * full)
    return Shot(c2w, math.radians(FOVY) * full, time, (IMAGE_SIZE, IMAGE_SIZE))


@torch.no_grad()
def render_views(scene: Scene, shot: Shot) -> Frames:
    """The scene over the plain grey that the ground truth is put on."""
    blob = float(scene.blob_std)
    parts = [render_scene(scene, shot[k : k + 8], blob, torch.full((3,), BACKDROP)) for k in range(0, len(shot), 8)]
    return Frames(*(torch.cat(part) for part in zip(*parts, strict=True)))


def compare(frames: Frames, shot: Shot, subject: Subject) -> dict[str, np.ndarray]:
    """PSNR, IoU, depth error and `spots` of each view [V]; the depth error is nan where the masks do not meet."""
    picture = truth(subject, shot)
    rgb, opacity, true = frames.rgb.clamp(0, 1).numpy(), frames.opacity.numpy(), picture.over(BACKDROP)
    error = ((rgb - true) ** 2).mean((1, 2, 3))
    ours, theirs = opacity > 0.5, picture.rgba[..., 3] > 0.5
    both = ours & theirs
    gap = np.abs(frames.depth.numpy() / np.maximum(opacity, 1e-6) - picture.depth)
    depth = [gap[k][both[k]].mean() if both[k].any() else np.nan for k in range(len(shot))]
    union = np.maximum((ours | theirs).sum((1, 2)), 1)
    psnr = -10 * np.log10(np.maximum(error, 1e-10))
    return {"iou": both.sum((1, 2)) / union, "psnr": psnr, "depth_error": np.array(depth), "spots": spots(rgb, true, theirs)}


def motion_ratio(scene: Scene, subject: Subject) -> float:
    """Mean absolute change from frame to frame over one period, at 4 azimuths, over the ground truth's."""
    time = (torch.arange(FRAMES) + 0.5) / FRAMES
    shots = [camera_shot(torch.full((FRAMES,), math.radians(22.5 + 90 * k)), time) for k in range(4)]
    ours = np.mean([change(render_views(scene, shot).rgb.numpy()) for shot in shots])

    def moves(motion: str) -> float:
        return float(np.mean([change(truth(Subject(subject.object, subject.colour, motion), shot).over(BACKDROP)) for shot in shots]))

    theirs = moves(subject.motion) if subject.motion else 0.0
    if theirs <= UNSEEN:  # as a ball's spinning
        theirs = np.mean([moved for moved in map(moves, MOTIONS) if moved > UNSEEN])
    return float(ours / theirs)


def change(rgb: np.ndarray) -> float:
    """Mean absolute difference of consecutive frames [F H W 3], the last and the first included."""
    return float(np.abs(rgb - np.roll(rgb, 1, 0)).mean())


def best_text(clip: Clip, frames: Frames, texts: list[str]) -> Tensor:
    """Index of the best of the texts for each view [V]."""
    return (clip.pictures(frames.rgb.permute(0, 3, 1, 2).clamp(0, 1)) @ clip.texts(texts).T).argmax(1)


def named(clip: Clip, frames: Frames, words: list[str], pattern: str) -> str:
    """The word that nano CLIP gives most views."""
    return words[int(best_text(clip, frames, [pattern.format(w) for w in words]).bincount(minlength=len(words)).argmax())]


def naming(clip: Clip, frames: Frames, subject: Subject) -> dict[str, float]:
    objects, colours = list(OBJECTS), list(COLOURS)
    what = best_text(clip, frames, [f"a {subject.colour} {name}" for name in objects]) == objects.index(subject.object)
    shade = best_text(clip, frames, [f"a {name} {subject.object}" for name in colours]) == colours.index(str(subject.colour))
    return {"object_ok": what.float().mean().item(), "colour_ok": shade.float().mean().item()}


def fronts(clip: Clip, frames: Frames, subject: Subject) -> dict[str, Any]:
    """Which azimuths (at the first time) look like a front, and how many separate runs of them there are."""
    if subject.object not in WITH_FRONT:
        return {"fronts": None, "front_runs": None}
    first = Frames(*(part[:AZIMUTHS] for part in frames))
    front = (best_text(clip, first, [f"a {subject.colour} {subject.object}, {view}" for view in VIEW_WORDS]) == 0).numpy()
    starts = int((front & ~np.roll(front, 1)).sum())
    return {"fronts": int(front.sum()), "front_runs": 1 if front.all() else starts}


def solids(scene: Scene, subject: Subject, shot: Shot) -> dict[str, Any]:
    """chamfer, volume_iou and a row for each time of the shot, see geometry.py; of a scene that cannot be cut, why."""
    try:
        return geometry.summary(geometry.compare(scene, subject, shot.time[::AZIMUTHS].tolist()))
    except FourdfyError as error:
        return {"chamfer": None, "volume_iou": None, "geometry": error.message}


def table(shot: Shot, per_view: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """One row a view: azimuth in degrees, time, and its measures."""
    azimuth, time = torch.rad2deg(shot.azimuth()).tolist(), shot.time.tolist()
    return [
        {"azimuth": round(a % 360, 1), "time": t, **{name: float(values[k]) for name, values in per_view.items()}}
        for k, (a, t) in enumerate(zip(azimuth, time, strict=True))
    ]

"""From a checkpoint to pictures: orbits, previews, PNG and video files. No diffusion model is involved.

Pictures that leave this module are uint8 [H W 3], or [H W 4] with alpha. Angles in degrees here (`Orbit`), radians in shots; time in [0,1).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fourdfy_cli import config, kernels
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.kernels.threads import side_by_side
from fourdfy_cli.output.ffmpeg import encoding, named, running, unwritable
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Frames, RenderOptions, Scene, camera_rays, occupied_at, render_rays
from fourdfy_cli.store import checkpoint, files

Picture = UInt8[np.ndarray, "H W C"]
MOMENTS = 16  # of a cycle, looked at to see whether it is closed
AT_ONCE = 2**19  # pixels that are rendered side by side: two pictures of 512 x 512
LEAP = 1.5  # what a closed cycle's last change may be over the largest of its others


class RenderedView(NamedTuple):
    """A view of a scene: the picture [H W 3], the same without its background, with alpha [H W 4] (not multiplied by it), the mean distance
    from the camera of what is seen, along the ray, world units [H W] (0 where nothing is), and opacity [H W]."""

    picture: Picture
    cut_out: Picture
    distance: np.ndarray
    opacity: np.ndarray


@dataclass(frozen=True)
class Orbit:
    """One turn around the object while time runs `cycles` times through [0,1), or, if its end does not lead into its beginning (not
    `closed`), there and back; degrees, world units, pixels."""

    frames: int = 64
    cycles: int = 4
    elevation: float = 15.0  # of the released code's test videos
    distance: float = 3.0
    fovy: float = 40.0
    size: int = 256
    closed: bool = True

    def shot(self) -> Shot:
        k = torch.arange(self.frames, dtype=torch.float32) / self.frames
        return shot(2 * math.pi * k, self.times(), self)

    def times(self) -> Float[Tensor, " F"]:
        """The moment of each frame; the first follows upon the last."""
        k = torch.arange(self.frames, dtype=torch.float32) / self.frames
        return (k * self.cycles) % 1 if self.closed else 1 - (1 - (k * max(2, self.cycles) % 2)).abs()


def orbit_of(recipe: config.Recipe, size: int | None = None, frames: int = 64) -> Orbit:
    """An orbit at the middle of the recipe's training cameras; `size` is at least 256 pixels unless given."""
    cameras = recipe.cameras
    elevation, distance, fovy = (sum(pair) / 2 for pair in (cameras.elevation, cameras.distance, cameras.fovy))
    stages = (recipe.stage1, recipe.stage2, recipe.stage3)
    largest = max(branch.size[0] for stage in stages for branch in (stage.multiview, stage.image, stage.video))
    return Orbit(frames, 4, elevation, distance, fovy, size or max(256, largest))


def shot(azimuth: Float[Tensor, " V"], time: Float[Tensor, " V"], orbit: Orbit) -> Shot:
    """Views at azimuths (radians) and times, at the elevation, distance, field of view and size of `orbit`."""
    full = torch.ones_like(azimuth)
    c2w = orbit_camera(azimuth, math.radians(orbit.elevation) * full, orbit.distance * full)
    return Shot(c2w, math.radians(orbit.fovy) * full, time, (orbit.size, orbit.size))


def backdrop(recipe: config.Recipe) -> Float[Tensor, " 3"] | None:
    """The plain colour a scene is shown on if it was only ever trained on plain ones, else None (its own network)."""
    ground = recipe.background
    return torch.full((3,), (ground.low + ground.high) / 2) if ground.random >= 1 else None


def rendered_views(scene: Scene, recipe: config.Recipe, shot: Shot) -> Iterator[RenderedView]:
    """Each view of a shot in turn, on a CPU some of them side by side. Where a view has more samples than the scene cells, only those
    that show at its moment are looked into."""
    pixels, plain = shot.size[0] * shot.size[1], backdrop(recipe)
    at = lru_cache(MOMENTS)(partial(occupied_at, scene)) if pixels * scene.march.samples > (2 * scene.march.resolution) ** 3 else None
    on_cpu = scene.blob_std.device.type == "cpu"
    return side_by_side(lambda k: _view(scene, plain, shot[k : k + 1], at), len(shot), AT_ONCE // pixels if on_cpu else 1)


@torch.no_grad()
def _view(scene: Scene, plain: Tensor | None, shot: Shot, occupied: Callable[[float], Tensor] | None) -> RenderedView:
    """One view, on a plain colour or the scene's own background."""
    shot, black = shot.to(scene.blob_std.device), torch.zeros_like(scene.blob_std).expand(3)
    seen = camera_rays(scene, shot)
    options = RenderOptions(float(scene.blob_std), black, cells=occupied(float(shot.time)) if occupied else None)
    frame = Frames(*(part.unflatten(0, shot.size) for part in render_rays(scene, seen, options)))
    clear = (1 - frame.opacity)[..., None]
    behind = scene.background_net(seen.direction).view_as(frame.rgb) if plain is None else plain.to(black)
    cut_out = torch.cat([frame.rgb / frame.opacity.clamp_min(1e-6)[..., None], frame.opacity[..., None]], -1)
    distance = torch.where(frame.opacity > 0, frame.depth / frame.opacity.clamp_min(1e-6), 0)
    return RenderedView(to_uint8(frame.rgb + clear * behind), to_uint8(cut_out), distance.cpu().numpy(), frame.opacity.cpu().numpy())


def views(scene: Scene, recipe: config.Recipe, shot: Shot) -> Iterator[Picture]:
    """The picture of each view in turn."""
    return (view.picture for view in rendered_views(scene, recipe, shot))


def to_uint8(rgb: Float[Tensor, "H W C"]) -> Picture:
    """Values in [0,1] as bytes."""
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def closes(scene: Scene, recipe: config.Recipe) -> bool:
    """Whether the end of a scene's time leads into its beginning: from the last of MOMENTS moments to the first it changes no more than
    LEAP times as much as between others, seen from three sides."""
    pictures = np.stack(list(views(scene, recipe, around(recipe, MOMENTS, 3, 32)))).reshape(MOMENTS, -1).astype(float)
    change = np.abs(pictures - np.roll(pictures, 1, 0)).mean(1)  # the first: from the last moment to the first
    return bool(change[0] <= LEAP * change[1:].max())


def preview(scene: Scene, recipe: config.Recipe, path: Path, times: int = 4, size: int = 64) -> Path:
    """Write a sheet of four azimuths (columns) by `times` times (rows, from 0) as PNG."""
    return write_png(path, sheet(views(scene, recipe, around(recipe, times, 4, size)), 4))


def around(recipe: config.Recipe, times: int, sides: int, size: int | None) -> Shot:
    """Every side at every time, time by time, from 0."""
    azimuth = (2 * math.pi / sides * torch.arange(sides)).repeat(times)
    return shot(azimuth, (torch.arange(times) / times).repeat_interleave(sides), orbit_of(recipe, size))


def sheet(pictures: Iterable[Picture], columns: int) -> Picture:
    """Pictures of one size beside and under each other."""
    every = list(pictures)
    return np.concatenate([np.concatenate(every[k : k + columns], 1) for k in range(0, len(every), columns)], 0)


def orbit(scene: Scene, recipe: config.Recipe, path: Path, size: int | None = None, frames: int = 64) -> Path:
    """Render the orbit video of a scene to an MP4 file."""
    around = replace(orbit_of(recipe, size, frames), closed=closes(scene, recipe))
    return write_video(path, views(scene, recipe, around.shot()))


def write_png(path: Path, picture: Picture) -> Path:
    """Write one picture, atomically. Raises FourdfyError (exit 1) where the disk refuses."""
    with files.replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    return path


def write_video(path: Path, frames: Iterable[Picture], fps: float = 16) -> Path:
    """Encode frames of one size as the suffix says, atomically: .mp4 (H.264, which every browser plays; odd sizes are padded by one
    pixel), .webm, .gif or .webp, which keep the alpha of frames that have one.

    Raises FourdfyError: exit 2 for no frames, 3 without an ffmpeg that can, 1 if encoding fails.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise FourdfyError(f"there are no frames to write to {path}", "fourdfy render --help", USAGE)
    with files.replacing(path) as temporary:
        _feed([*encoding(first.shape, fps, path.suffix), named(temporary)], first, frames, path)
    return path


def _feed(arguments: list[str], first: Picture, rest: Iterator[Picture], path: Path) -> None:
    """Run ffmpeg on the frames; it is stopped if producing one of them fails."""
    with running(arguments, stdin=subprocess.PIPE) as process:
        stdin = process.popen.stdin
        assert stdin
        for frame in itertools.chain([first], rest):
            try:
                stdin.write(frame.tobytes())
            except BrokenPipeError:  # ffmpeg gave up; its reason is read below
                break
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        if process.ended():
            raise unwritable(path, process.said)


def locate(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the newest good one of a run folder; what is damaged is told of on stderr.

    Raises FourdfyError: exit 2 if there is none, exit 6 if one is of a newer version.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in checkpoint.NAMES if os.path.lexists(path / name)]
    if not found:
        raise FourdfyError(f"there is no checkpoint in {path}", typed("ls", path), USAGE)
    damaged = []
    for candidate in found:
        try:
            checkpoint.load(candidate)
        except checkpoint.NewerFormat:
            raise
        except FourdfyError as error:
            damaged.append(error.message)
            continue
        sys.stderr.write("".join(f"{message}; {candidate.name} is used instead\n" for message in damaged))
        return candidate
    return found[0]


def load_scene(path: Path, device: str = "cpu", backend: str = "auto") -> tuple[Scene, config.Recipe, dict[str, Any]]:
    """Scene, recipe and {prompt, seed, stage, step, models} from a checkpoint or a run folder.

    Raises FourdfyError: exit 2 if there is none, exit 6 if it is damaged or does not fit its own recipe.
    """
    state = checkpoint.load(locate(path))
    meta = {key: state.get(key) for key in ("prompt", "seed", "stage", "step", "models")}
    return build_scene(state, path, device, backend), config.from_dict(state["recipe"]), meta


def build_scene(state: dict[str, Any], path: Path, device: str = "cpu", backend: str = "auto") -> Scene:
    """The scene of a loaded checkpoint; raises FourdfyError (exit 6) if its tensors do not fit its recipe, and as `kernels.choose`."""
    recipe = config.from_dict(state["recipe"])
    with torch.device("meta"):
        expected = Scene(recipe.field, recipe.background, recipe.march, 0).state_dict()
    checkpoint.check_tensors(path, "scene", state["scene"], expected)
    scene = Scene(recipe.field, recipe.background, recipe.march, state["seed"], kernels.choose(backend, device))
    scene.load_state_dict(state["scene"])
    return scene.to(device)

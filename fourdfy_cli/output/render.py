"""From a checkpoint to pictures: orbits, previews, PNG and MP4 files. No diffusion model is involved.

Pictures that leave this module are uint8 [H W 3]. Angles in degrees here (`Orbit`), radians in shots; time in [0,1).
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fourdfy_cli import config, kernels
from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.output.ffmpeg import encoding, named, running, unwritable
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.scene.scene import Scene, render
from fourdfy_cli.store import checkpoint, files

Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Orbit:
    """One turn around the object while time runs `cycles` times through [0,1); degrees, world units, pixels."""

    frames: int = 64
    cycles: int = 4
    elevation: float = 15.0  # of the released code's test videos
    distance: float = 3.0
    fovy: float = 40.0
    size: int = 256

    def shot(self) -> Shot:
        k = torch.arange(self.frames, dtype=torch.float32) / self.frames
        return shot(2 * math.pi * k, (k * self.cycles) % 1, self)


def orbit_of(recipe: config.Recipe, size: int | None = None, frames: int = 64) -> Orbit:
    """An orbit at the middle of the recipe's training cameras; `size` is at least 128 pixels unless given."""
    cameras = recipe.cameras
    elevation, distance, fovy = (sum(pair) / 2 for pair in (cameras.elevation, cameras.distance, cameras.fovy))
    stages = (recipe.stage1, recipe.stage2, recipe.stage3)
    largest = max(branch.size[0] for stage in stages for branch in (stage.multiview, stage.image, stage.video))
    return Orbit(frames, 4, elevation, distance, fovy, size or max(128, largest))


def shot(azimuth: Float[Tensor, " V"], time: Float[Tensor, " V"], orbit: Orbit) -> Shot:
    """Views at azimuths (radians) and times, at the elevation, distance, field of view and size of `orbit`."""
    full = torch.ones_like(azimuth)
    c2w = orbit_camera(azimuth, math.radians(orbit.elevation) * full, orbit.distance * full)
    return Shot(c2w, math.radians(orbit.fovy) * full, time, (orbit.size, orbit.size))


def backdrop(recipe: config.Recipe) -> Float[Tensor, " 3"] | None:
    """The plain colour a scene is shown on if it was only ever trained on plain ones, else None (its own network)."""
    ground = recipe.background
    return torch.full((3,), (ground.low + ground.high) / 2) if ground.random >= 1 else None


@torch.no_grad()
def views(scene: Scene, recipe: config.Recipe, shot: Shot) -> Iterator[tuple[Picture, Picture]]:
    """Colour and depth picture of each view in turn. Depth is bright near the camera and black where nothing is."""
    ground = backdrop(recipe)
    device = scene.blob_std.device
    ground = ground if ground is None else ground.to(device)
    for k in range(len(shot)):
        frame = render(scene, shot[k : k + 1].to(device), float(scene.blob_std), ground, None, False)
        distance = float(shot.c2w[k, :3, 3].norm())
        yield to_uint8(frame.rgb[0]), depth_picture(frame.depth[0], frame.opacity[0], distance)


def to_uint8(rgb: Float[Tensor, "H W 3"]) -> Picture:
    """rgb in [0,1] as bytes."""
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def depth_picture(depth: Float[Tensor, "H W"], opacity: Float[Tensor, "H W"], distance: float) -> Picture:
    """Opacity times nearness: 1 one world unit before the centre of the scene, 0 one behind it; grey bytes."""
    mean = depth / opacity.clamp_min(1e-6)
    grey = opacity * ((distance + 1 - mean) / 2).clamp(0, 1)
    return to_uint8(grey[..., None].expand(-1, -1, 3))


def preview(scene: Scene, recipe: config.Recipe, path: Path, times: int = 4, size: int = 64) -> Path:
    """Write a sheet of four azimuths (columns) by `times` times (rows, from 0) as PNG."""
    grid = [(math.pi / 2 * a, t / times) for t in range(times) for a in range(4)]
    azimuth, time = torch.tensor(grid).unbind(-1)
    pictures = [rgb for rgb, _ in views(scene, recipe, shot(azimuth, time, orbit_of(recipe, size)))]
    rows = [np.concatenate(pictures[4 * row : 4 * row + 4], 1) for row in range(times)]
    return write_png(path, np.concatenate(rows, 0))


def orbit(scene: Scene, recipe: config.Recipe, path: Path, size: int | None = None, frames: int = 64) -> Path:
    """Render the orbit video of a scene to an MP4 file."""
    shot = orbit_of(recipe, size, frames).shot()
    return write_video(path, (rgb for rgb, _ in views(scene, recipe, shot)))


def write_png(path: Path, picture: Picture) -> Path:
    """Write one picture, atomically. Raises FourdfyError (exit 1) where the disk refuses."""
    with files.replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    return path


def write_video(path: Path, frames: Iterable[Picture], fps: float = 16) -> Path:
    """Encode frames of one size as H.264, which every browser plays, atomically; odd sizes are padded by one pixel.

    Raises FourdfyError: exit 2 for no frames, 3 without an ffmpeg that can, 1 if encoding fails.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise FourdfyError(f"there are no frames to write to {path}", "fourdfy render --help", USAGE)
    height, width, _ = first.shape
    with files.replacing(path) as temporary:
        _feed([*encoding(width, height, fps), "-movflags", "+faststart", named(temporary)], first, frames, path)
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


@contextlib.contextmanager
def filled(folder: Path | None) -> Iterator[Path | None]:
    """A temporary folder beside `folder` whose files come to stand in it when the block ends well, and disappear when it does not; what
    processes that died left there goes. Raises FourdfyError (exit 1) where the disk refuses."""
    if folder is None:
        yield None
        return
    place = folder.absolute()
    temporary = place.with_name(f".part-{os.getpid()}-{place.name}")
    try:
        for old in place.parent.glob(f".part-*-{glob.escape(place.name)}"):
            if _gone(old.name.split("-")[1]):
                shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            for file in sorted(temporary.iterdir()):
                shutil.move(file, place / file.name)
        else:
            temporary.rename(place)
    except OSError as error:
        raise FourdfyError(f"cannot write {folder}: {error.strerror or error}", typed("df", "-h", place.parent), FAILURE) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _gone(pid: str) -> bool:
    """Whether a process is no more."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, OSError):
        return False
    return False


def locate(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the newest good one of a run folder; what is damaged is told of on stderr.

    Raises FourdfyError: exit 2 if there is none, exit 6 if one is of a newer version.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in checkpoint.NAMES if (path / name).is_file()]
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

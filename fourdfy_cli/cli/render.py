"""`fourdfy render`: a scene as a film, as frames for other trainers, or as a contact sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.cli.options import Source
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import typed

if TYPE_CHECKING:
    from fourdfy_cli.output.render import Picture, RenderedView
    from fourdfy_cli.scene.cameras import Shot
    from fourdfy_cli.scene.scene import Scene

PATHS = "orbit, fixed, turntable (at --time), mav3d (the published evaluation), or a FILE.json, ours or nerfstudio's."
OWN = r"((stage[123]|last|last\.prev)-)?(orbit|mav3d|fixed|turntable|grid)(-depth)?(-alpha)?"


@dataclass(frozen=True)
class FilmOptions(options.Common):
    """Options of `render`."""

    orbit: Annotated[bool, typer.Option("--orbit", help="Go round the object while it moves (the default).", show_default=False)] = False
    path: Annotated[str, typer.Option("--path", help=PATHS)] = "orbit"
    time: Annotated[float, typer.Option("--time", min=0, max=1, help="The moment of a turntable.")] = 0.0
    grid: Annotated[
        str | None, typer.Option("--grid", metavar="TIMESxVIEWS", help="A contact sheet instead, .png: 4x8.", show_default=False)
    ] = None
    depth: Annotated[bool, typer.Option("--depth", help="Put depth beside the colours: yellow is near, violet far.")] = False
    alpha: Annotated[bool, typer.Option("--alpha", help="Without background: .webm, .gif or .webp.")] = False
    frames: Annotated[Path | None, typer.Option("--frames", help="Also write PNG, depth and transforms.json here.", show_default=False)] = (
        None
    )
    size: Annotated[
        int | None,
        typer.Option("--size", min=16, max=2048, help="Pixels a side.", show_default="from the checkpoint, at least 256"),
    ] = None
    fps: Annotated[
        float | None, typer.Option("--fps", min=0.1, max=240, help="Frames a second.", show_default="16; mav3d: 15; a file's own")
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", help="The film: .mp4, .webm, .gif or .webp.", show_default="PATH.mp4 beside the checkpoint")
    ] = None
    device: options.Device = "cpu"


@options.grouped
def render(source: Source, wanted: FilmOptions) -> None:
    """Make a film of a scene, from a checkpoint or run folder alone.

    No diffusion model is loaded."""
    again = ("fourdfy", "render", source, "--path", wanted.path)
    if wanted.orbit and wanted.path != "orbit":
        raise FourdfyError(f"--orbit and --path {wanted.path} are two paths", typed(*again), USAGE)
    grid = _grid(wanted.grid, source)
    out = wanted.out or _beside(source, wanted)
    _check_suffix(out, source, wanted)
    _check_replaced(out, source, wanted)
    options.check_device(wanted.device)
    from fourdfy_cli.output import paths
    from fourdfy_cli.output import render as pictures
    from fourdfy_cli.output.limits import within_memory
    from fourdfy_cli.store import files

    with within_memory(out, f"a smaller one: {typed(*again, '--size', '128')}"):
        scene, recipe, _ = pictures.load_scene(source, wanted.device)
        closed = wanted.path not in ("orbit", "fixed") or bool(grid) or pictures.closes(scene, recipe)
        film = paths.film(wanted.path, recipe, paths.PathOptions(wanted.size, wanted.fps, wanted.time, closed))
        shot = pictures.around(recipe, *grid, wanted.size) if grid else film.shot
        for folder in {out.parent, wanted.frames or out.parent}:
            options.check_writable(folder)
        looks = wanted.output.counted(pictures.rendered_views(scene, recipe, shot), len(shot), "rendering")
        with files.filled(wanted.frames) as frames:
            looks = _saved(looks, scene, shot, frames, film.fps) if frames else looks
            shown = _pictures(looks, shot, wanted)
            pictures.write_png(out, pictures.sheet(shown, grid[1])) if grid else pictures.write_video(out, shown, film.fps)
    data = {"picture" if grid else "video": out, "frames": wanted.frames, "count": len(shot), "size": shot.size[0]}
    wanted.output.finish(data if grid else data | {"fps": film.fps, "there_and_back": not closed})


def _beside(source: Path, wanted: FilmOptions) -> Path:
    """orbit.mp4 in a run folder, stage2-orbit.mp4 beside stage2.pt; -depth with depth, -alpha with alpha."""
    name = "grid" if wanted.grid else Path(wanted.path).stem
    suffix = ".png" if wanted.grid else ".webm" if wanted.alpha else ".mp4"
    name += f"{'-depth' if wanted.depth else ''}{'-alpha' if wanted.alpha else ''}{suffix}"
    return source / name if source.is_dir() else source.with_name(f"{source.stem}-{name}")


def _grid(told: str | None, source: Path) -> tuple[int, int] | None:
    """Times and views of a contact sheet."""
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", told or "")
    if told and not found:
        raise FourdfyError(f"a grid is times x views, not {told!r}", typed("fourdfy", "render", source, "--grid", "4x8"), USAGE)
    return (int(found[1]), int(found[2])) if found else None


def _check_suffix(out: Path, source: Path, wanted: FilmOptions) -> None:
    """Raises FourdfyError (exit 2) for a name that does not fit what is to be written."""
    from fourdfy_cli.output.codecs import SUFFIXES, WITH_ALPHA

    can = (".png",) if wanted.grid else WITH_ALPHA if wanted.alpha else SUFFIXES
    if out.suffix not in can:
        kind = "contact sheet" if wanted.grid else "film without background" if wanted.alpha else "film"
        other = out.with_suffix(can[0]) if out.suffix in SUFFIXES else out.with_name(out.name + can[0])
        flags = [*(["--grid", wanted.grid] if wanted.grid else ["--path", wanted.path]), *(["--alpha"] if wanted.alpha else [])]
        hint = typed("fourdfy", "render", source, *flags, "--out", other)
        raise FourdfyError(f"a {kind}'s name ends in {', '.join(can)}, unlike {out}", hint, USAGE)


def _check_replaced(out: Path, source: Path, wanted: FilmOptions) -> None:
    """Raises FourdfyError (exit 2) where the film would take the name, or frames the folder, of something else."""
    again = ("fourdfy", "render", source, "--path", wanted.path)
    from_file = wanted.path.endswith(".json") and not wanted.grid
    expected = out.stem.casefold() == _beside(source, wanted).stem.casefold() and not from_file
    if re.fullmatch(OWN, out.stem, re.I) and not expected and (wanted.out is None or out.exists()):
        what = f"{out} is the name of a run's own video, not of one along {wanted.path}"
        other = out.with_name(f"{Path(wanted.path).stem}-path{out.suffix}" if from_file else f"{out.stem}-2{out.suffix}")
        raise FourdfyError(what, typed(*again, "--out", other), USAGE)
    if wanted.frames is not None:
        options.check_free(wanted.frames, "frames", lambda free: typed(*again, "--frames", free))


def _saved(looks: Iterator[RenderedView], scene: Scene, shot: Shot, folder: Path, fps: float) -> Iterator[RenderedView]:
    """The same views, each of them also in the folder of frames."""
    from fourdfy_cli.output import frames, surface

    frames.save_cameras(folder, shot, fps)
    for k, (view, distance) in enumerate(zip(looks, surface.distances(scene, shot), strict=True)):
        frames.save(folder, shot, k, view, distance)
        yield view


def _pictures(looks: Iterator[RenderedView], shot: Shot, wanted: FilmOptions) -> Iterator[Picture]:
    """What is shown of each view."""
    distance = shot.c2w[:, :3, 3].norm(dim=-1)
    bounds = max(0.0, float(distance.min()) - 1), float(distance.max()) + 1
    return (_shown(view, wanted, bounds) for view in looks)


def _shown(view: RenderedView, wanted: FilmOptions, bounds: tuple[float, float]) -> Any:
    import numpy as np

    from fourdfy_cli.output.colours import depth_picture, over_black

    colour = view.cut_out if wanted.alpha else view.picture
    if not wanted.depth:
        return colour
    far = depth_picture(view.distance, view.opacity, *bounds)
    return np.concatenate([colour, far if wanted.alpha else over_black(far)], 1)

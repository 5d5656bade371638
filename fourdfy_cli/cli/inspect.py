"""`fourdfy render`, `clip-score`, `info`: looking at finished and unfinished runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import USAGE, FourdfyError

Source = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint or a run folder.", show_default=False)]
Sources = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders of them.", show_default=False)]
Clip = Annotated[str, typer.Option("--clip", help="nano, an open_clip name such as ViT-B-32, or local-dir:FOLDER.")]


@dataclass(frozen=True)
class Look(options.Common):
    """Options of `render`."""

    orbit: Annotated[bool, typer.Option("--orbit", help="Go round the object while it moves (the default).", show_default=False)] = True
    depth: Annotated[bool, typer.Option("--depth", help="Put a depth picture beside the colours.")] = False
    frames: Annotated[Path | None, typer.Option("--frames", help="Also write every frame as PNG here.", show_default=False)] = None
    size: Annotated[
        int | None, typer.Option("--size", min=16, max=2048, help="Pixels a side.", show_default="from the checkpoint, at least 128")
    ] = None
    out: Annotated[Path | None, typer.Option("--out", help="The video, .mp4.", show_default="orbit.mp4 beside the checkpoint")] = None
    device: options.Device = "cpu"


@options.grouped
def render(source: Source, look: Look) -> None:
    """Make a video of a scene. Everything comes from the checkpoint; no diffusion model is loaded."""
    out = look.out or _beside(source, look.depth)
    if out.suffix != ".mp4":
        raise FourdfyError(f"a video's name ends in .mp4, unlike {out}", f"fourdfy render {source} --out {out.with_suffix('.mp4')}", USAGE)
    options.check_device(look.device)
    from fourdfy_cli import render as pictures

    scene, recipe, _ = pictures.load_scene(source, look.device)
    for folder in {out.parent, look.frames or out.parent}:
        options.check_writable(folder)
    shot = pictures.orbit_of(recipe, look.size).shot()
    wanted = _pictures(pictures.views(scene, recipe, shot), look)
    pictures.write_video(out, look.output.counted(wanted, len(shot), "rendering"))
    look.output.finish({"video": out, "frames": look.frames, "count": len(shot), "size": shot.size[0]})


def _beside(source: Path, depth: bool) -> Path:
    """orbit.mp4 in a run folder, stage2-orbit.mp4 beside stage2.pt; -depth with depth."""
    name = "orbit-depth.mp4" if depth else "orbit.mp4"
    return source / name if source.is_dir() else source.with_name(f"{source.stem}-{name}")


def _pictures(views: Iterable[tuple[Any, Any]], look: Look) -> Iterator[Any]:
    """Frames of the video, each also written to the folder of frames if one is wanted."""
    import numpy as np

    from fourdfy_cli.render import write_png

    for k, (colour, depth) in enumerate(views):
        picture = np.concatenate([colour, depth], 1) if look.depth else colour
        if look.frames:
            write_png(look.frames / f"{k:04}.png", picture)
        yield picture


@options.grouped
def clip_score(runs: Sources, common: options.Common, clip: Clip = "nano") -> None:
    """How well videos fit their prompts, by CLIP: 100 times the cosine, averaged over frames."""
    for path in runs:
        if not path.exists():
            raise FourdfyError(f"{path} does not exist", 'fourdfy generate "a red dog jumping"', USAGE)
    from fourdfy_cli.evaluate.clip import score_runs

    common.output.finish(score_runs(runs, clip))


@options.grouped
def info(source: Source, common: options.Common) -> None:
    """What a checkpoint holds, and what to type next. Verifies it on the way."""
    from fourdfy_cli.checkpoint import load
    from fourdfy_cli.config import from_dict
    from fourdfy_cli.render import locate

    path = locate(source)
    state = load(path)
    recipe = from_dict(state["recipe"])
    stage, steps = state["stage"], recipe.stage(state["stage"]).steps
    data = {
        "checkpoint": path, "prompt": state["prompt"], "seed": state["seed"], "preset": recipe.name, "models": recipe.models.set,
        "stage": stage, "step": state["step"], "steps": steps, "parameters": sum(t.numel() for t in state["scene"].values()),
        "bytes": path.stat().st_size, "digest": state["digest"], "next": _next(path, stage, state["step"] < steps),
    }  # fmt: skip
    common.output.finish(data)


def _next(path: Path, stage: int, unfinished: bool) -> str:
    if unfinished:
        return f"fourdfy stage{stage} --resume {path}"
    return f"fourdfy render {path} --orbit" if stage == 3 else f"fourdfy stage{stage + 1} --resume {path}"

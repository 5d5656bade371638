"""`fourdfy render`, `clip-score`, `info`: looking at finished and unfinished runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli.cli import complete, options
from fourdfy_cli.console import emit
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import typed

Source = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint or a run folder.", show_default=False, autocompletion=complete.sources)
]
Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="Run folders, checkpoints, videos, folders of these.", show_default=False, autocompletion=complete.sources
    ),
]
ROW = ("prompt", "score", "clip_f", "r_precision", "motion", "flicker")


@dataclass(frozen=True)
class Look(options.Common):
    """Options of `render`."""

    orbit: Annotated[bool, typer.Option("--orbit", help="Go round the object while it moves (the default).", show_default=False)] = False
    path: Annotated[str, typer.Option("--path", help="orbit, mav3d (the published evaluation), fixed, or a FILE.json.")] = "orbit"
    depth: Annotated[bool, typer.Option("--depth", help="Put a depth picture beside the colours.")] = False
    frames: Annotated[Path | None, typer.Option("--frames", help="Also write every frame as PNG here.", show_default=False)] = None
    size: Annotated[
        int | None,
        typer.Option("--size", min=16, max=2048, help="Pixels a side.", show_default="from the checkpoint, at least 128; mav3d: 256"),
    ] = None
    out: Annotated[Path | None, typer.Option("--out", help="The video, .mp4.", show_default="PATH.mp4 beside the checkpoint")] = None
    device: options.Device = "cpu"


@options.grouped
def render(source: Source, look: Look) -> None:
    """Make a video of a scene, from a checkpoint or run folder alone.

    No diffusion model is loaded."""
    again = ("fourdfy", "render", source, "--path", look.path)
    if look.orbit and look.path != "orbit":
        raise FourdfyError(f"--orbit and --path {look.path} are two paths", typed(*again), USAGE)
    out = look.out or _beside(source, Path(look.path).stem, look.depth)
    if out.suffix != ".mp4":
        raise FourdfyError(f"a video's name ends in .mp4, unlike {out}", typed(*again, "--out", out.with_name(f"{out.name}.mp4")), USAGE)
    _check_replaced(out, source, look)
    options.check_device(look.device)
    from fourdfy_cli.output import paths
    from fourdfy_cli.output import render as pictures
    from fourdfy_cli.output.limits import within_memory

    with within_memory(out, f"a smaller one: {typed(*again, '--size', '128')}"):
        scene, recipe, _ = pictures.load_scene(source, look.device)
        film = paths.film(look.path, recipe, look.size)
        for folder in {out.parent, look.frames or out.parent}:
            options.check_writable(folder)
        views = look.output.counted(pictures.views(scene, recipe, film.shot), len(film.shot), "rendering")
        with pictures.filled(look.frames) as frames:
            pictures.write_video(out, _pictures(views, look.depth, frames), film.fps)
    look.output.finish({"video": out, "frames": look.frames, "count": len(film.shot), "size": film.shot.size[0]})


def _beside(source: Path, path: str, depth: bool) -> Path:
    """orbit.mp4 in a run folder, stage2-orbit.mp4 beside stage2.pt; -depth with depth."""
    name = f"{path}-depth.mp4" if depth else f"{path}.mp4"
    return source / name if source.is_dir() else source.with_name(f"{source.stem}-{name}")


def _check_replaced(out: Path, source: Path, look: Look) -> None:
    """Raises FourdfyError (exit 2) where the video would take the name, or frames the folder, of something else."""
    own = re.fullmatch(r"((stage[123]|last|last\.prev)-)?(orbit|mav3d|fixed)(-depth)?", out.stem, re.I)
    from_file = look.path.endswith(".json")
    expected = out.name.casefold() == _beside(source, look.path, look.depth).name.casefold() and not from_file
    if own and not expected and (look.out is None or out.exists()):
        what = f"{out} is the name of a run's own video, not of one along {look.path}"
        other = out.with_name(f"{Path(look.path).stem}-path.mp4" if from_file else f"{out.stem}-2.mp4")
        raise FourdfyError(what, typed("fourdfy", "render", source, "--path", look.path, "--out", other), USAGE)
    frames = look.frames
    if frames is not None and frames.exists() and not (frames.is_dir() and next(frames.iterdir(), None) is None):
        what = "holds other files; frames want a folder of their own" if frames.is_dir() else "is a file, not a folder for frames"
        new = next(path for k in range(2, 10_000) if not (path := frames.absolute().with_name(f"{frames.absolute().name}-{k}")).exists())
        new = new if frames.is_absolute() or frames.name in ("", "..") else frames.with_name(new.name)
        hint = typed("fourdfy", "render", source, "--path", look.path, "--frames", new)
        raise FourdfyError(f"{frames} {what}", hint, USAGE)


def _pictures(views: Iterable[tuple[Any, Any]], depth: bool, frames: Path | None) -> Iterator[Any]:
    """Frames of the video, each also written to the folder of frames if one is wanted."""
    import numpy as np

    from fourdfy_cli.output.render import write_png

    for k, (colour, far) in enumerate(views):
        picture = np.concatenate([colour, far], 1) if depth else colour
        if frames:
            write_png(frames / f"{k:04}.png", picture)
        yield picture


@dataclass(frozen=True)
class Judge(options.Common):
    """Options of `clip-score`."""

    clip: Annotated[str, typer.Option("--clip", help="ViT-B-32 or another of open_clip's names, nano, or local-dir:FOLDER.")] = "ViT-B-32"
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop", help="Of pictures side by side: left, right or K/N (1/3: first of three); none for a wide one.", show_default=False
        ),
    ] = None
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="File of the prompts that R-precision tells apart.", show_default="the prompts scored")
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for clip.json and clip-profile.png.", show_default="PATH, of several the current")
    ] = None
    device: options.Device = "cpu"


@options.grouped
def clip_score(paths: Sources, judge: Judge) -> None:
    """How well videos fit their prompts, by CLIP, and how they move.

    Runs are rendered on the MAV3D path first."""
    out = judge.out or (paths[0] if len(paths) == 1 and paths[0].is_dir() else Path())
    options.check_device(judge.device)
    options.check_writable(out)
    from fourdfy_cli.evaluate.score import Choice, score
    from fourdfy_cli.evaluate.videos import left_out

    for one in left_out(paths):
        judge.output.note(f"left out: {one['file']}: {one['why']}")
    choice = Choice(judge.clip, judge.crop, judge.prompts, out, judge.device)
    found, problems = score(paths, choice, judge.output.counted)
    for one in (found or {}).get("cut", ()):
        told = (
            f"the prompt {one['prompt']!r} has {one['tokens']} tokens, CLIP {judge.clip} reads {one['read']}; left out: {one['left_out']}"
        )
        judge.output.note(told)
    problems = sorted(problems, key=lambda problem: problem.code)
    if problems:
        _tell(judge, found, problems)
    elif found:
        judge.output.finish(found if judge.json else _short(found))


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """The report with tables that fit a terminal."""
    rows = [{"video": Path(row["video"]).name, **{name: row[name] for name in ROW}} for row in found["videos"]]
    sets = [{name: value for name, value in one.items() if name != "videos"} for one in found["sets"]]
    return {name: value for name, value in found.items() if name not in ("left_out", "cut")} | {"sets": sets, "videos": rows}


def _tell(common: options.Common, found: dict[str, Any] | None, problems: list[FourdfyError]) -> None:
    """What was found in spite of the problems, then every problem; raises the last of them. An envelope of a failure holds no data,
    so with --json all but that one are events."""
    if common.json:
        events = [{"event": "problem", "code": one.code, "message": one.message, "hint": one.hint} for one in problems[:-1]]
        for event in [*([{"event": "scores", **found}] if found else []), *events]:
            emit(event)
    else:
        if found:
            common.output.finish(_short(found))
        for problem in problems[:-1]:
            common.output.fail(problem)
    raise problems[-1]


Verify = Annotated[bool, typer.Option("--verify", help="Read every checkpoint of the run, run.json and metrics.jsonl to the end.")]


@options.grouped
def info(source: Source, common: options.Common, verify: Verify = False) -> None:
    """What a checkpoint holds, and what to type next; verifies it on the way."""
    if verify:
        from fourdfy_cli.run.verify import damaged, examine

        found = examine(source)
        if error := damaged(source, found):
            raise error
        return common.output.finish({"files": {name: "whole" for name in found}})
    from fourdfy_cli.config import from_dict
    from fourdfy_cli.output.render import locate
    from fourdfy_cli.store.checkpoint import load

    path = locate(source)
    state = load(path)
    recipe = from_dict(state["recipe"])
    stage, steps = state["stage"], recipe.stage(state["stage"]).steps
    data = {
        "checkpoint": path, "prompt": state["prompt"], "seed": state["seed"], "preset": recipe.name, "models": recipe.models.set,
        "stage": stage, "step": state["step"], "steps": steps, "parameters": sum(t.numel() for t in state["scene"].values()),
        "bytes": path.stat().st_size, "digest": state["digest"], "next": _next(path, stage, state["step"] < steps),
        "field": {"kind": recipe.field.kind, **_field_parts(state["scene"])},
    }  # fmt: skip
    common.output.finish(data)


def _field_parts(scene: dict[str, Any]) -> dict[str, int]:
    """Parameters of the field's parts, by name."""
    counts: dict[str, int] = {}
    for key, values in scene.items():
        owner, _, rest = key.partition(".")
        if owner == "field":
            part = rest.partition(".")[0]
            counts[part] = counts.get(part, 0) + values.numel()
    return counts


def _next(path: Path, stage: int, unfinished: bool) -> str:
    if unfinished:
        return typed("fourdfy", f"stage{stage}", "--resume", path)
    return typed("fourdfy", "render", path, "--orbit") if stage == 3 else typed("fourdfy", f"stage{stage + 1}", "--resume", path)

"""`fourdfy clip-score`, `info`: looking at finished and unfinished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli.cli import batch, complete, options
from fourdfy_cli.cli.options import Source
from fourdfy_cli.console import emit
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output.textfile import typed

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="Run folders, checkpoints, videos, folders of these.", show_default=False, autocompletion=complete.sources
    ),
]
ROW = ("prompt", "score", "clip_f", "r_precision", "motion", "flicker")


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
    engine: batch.EngineName = "local"
    address: batch.Address = None


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
    batch.embedded_ahead(judge, paths, choice)
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

"""`fourdfy report`: what a run's folder tells, gathered for one page."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fourdfy_cli.config import Recipe, from_dict, leaves, to_dict
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import curves
from fourdfy_cli.output.films import films, is_run
from fourdfy_cli.output.page import Page, html
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.run import plan
from fourdfy_cli.run.runs import row
from fourdfy_cli.run.state import read_about
from fourdfy_cli.store.files import replacing
from fourdfy_cli.store.folder import metrics_lines, metrics_row, read_json

ABOUT_A_STEP = {"stage", "step", "branch", "skipped", "rung", "seconds", "crc"}  # keys of metrics.jsonl that are no measured quantity
TRUTH = ("iou", "psnr", "depth_error", "spots", "motion_ratio", "object_ok", "colour_ok", "fronts", "front_runs", "chamfer", "volume_iou")


class LoggedStep(NamedTuple):
    """One line of metrics.jsonl: its place among all steps of the run, and the seconds since the line before (nan: not known)."""

    at: int
    stage: int
    branch: str
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class Written:
    """What `write` put into the page, and where that is."""

    report: Path
    bytes: int
    steps: int
    charts: int
    previews: int
    videos: int


def write(run: Path, out: Path) -> Written:
    """The report of a run folder as one file. Raises FourdfyError: exit 2 for what is no run folder, 6 if neither run.json nor a
    checkpoint can be read, 1 where the disk refuses."""
    if not run.is_dir() or not is_run(run):
        raise FourdfyError(f"{run} is no run folder", typed("fourdfy", "runs", run.parent), USAGE)
    page, steps = gather(run)
    with replacing(out) as temporary:
        temporary.write_text(html(page), encoding="utf-8")
    return Written(out, out.stat().st_size, steps, len(page.charts), len(page.previews), len(page.films))


def gather(run: Path) -> tuple[Page, int]:
    """What the page shows, and how many steps the run has told of."""
    recipe, about = recipe_of(run)
    told = list(steps(run / "metrics.jsonl", recipe))
    colours = curves.palette(dict.fromkeys(one.branch for one in told))
    profile = run / "clip-profile.png"
    page = Page(
        title=str(about.get("prompt")),
        facts=facts(run, about, recipe, told),
        films=[path for path in films(run) if path.stat().st_size],
        previews=previews(run),
        charts=charts(told, recipe, colours),
        legend=curves.legend(colours),
        picture=profile if profile.is_file() else None,
        tables={
            "Branches and where the time went": branches(told, recipe),
            "CLIP": clip(run),
            "Against the toy world's truth": truth(run),
            "Models and their licences": models(recipe),
        },
        settings=settings(recipe),
    )
    return page, len(told)


def recipe_of(run: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and what run.json says; from a checkpoint where that is lost."""
    about = read_about(run / "run.json")
    if about is None:
        from fourdfy_cli.output.render import locate
        from fourdfy_cli.store.checkpoint import load

        about = load(locate(run))
    return from_dict(about["recipe"]), about


def facts(run: Path, about: dict[str, Any], recipe: Recipe, told: list[LoggedStep]) -> dict[str, Any]:
    """The head of the page."""
    one = row(run)
    versions = about.get("versions")
    seconds = sum(step.seconds for step in told if math.isfinite(step.seconds))
    return {
        "run": run.name,
        "status": one["status"] + (f": {about['why']}" if isinstance(about.get("why"), str) else ""),
        "stage": f"{about.get('stage')} of 3, step {about.get('step')} of {one['steps'] or '?'}",
        "preset": f"{recipe.name}, {recipe.models.set} models, seed {about.get('seed')}",
        "time in steps": f"{seconds:.0f} s in {len(told)} steps",
        "skipped steps": about.get("skipped_steps"),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else None,
    }


def steps(path: Path, recipe: Recipe) -> Iterator[LoggedStep]:
    """The lines of metrics.jsonl that can be read."""
    before = math.nan, 0
    offsets = {number: sum(recipe.stage(k).steps for k in range(1, number)) for number in (1, 2, 3)}
    lines: list[bytes] = []
    with contextlib.suppress(FourdfyError):
        lines = metrics_lines(path)
    for told in filter(None, map(metrics_row, lines)):
        try:
            stage, elapsed = told["stage"], float(told["seconds"])
            at, branch = offsets[stage] + told["step"], str(told["branch"])
            values = {str(name): float(value) for name, value in told.items() if name not in ABOUT_A_STEP and value is not None}
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
        same = before[1] == stage and elapsed >= before[0]  # the clock of a stage starts again when the run does
        yield LoggedStep(at, stage, branch, elapsed - before[0] if same else math.nan, values)
        before = elapsed, stage


def charts(told: list[LoggedStep], recipe: Recipe, colours: dict[str, str]) -> list[str]:
    """One for each logged quantity, a line for each branch; stages are marked off."""
    names = dict.fromkeys(name for one in told for name in one.values)
    borders = (recipe.stage1.steps, recipe.stage1.steps + recipe.stage2.steps)
    drawn = []
    for name in names:
        lines = {branch: [(one.at, one.values[name]) for one in told if one.branch == branch and name in one.values] for branch in colours}
        drawn.append(curves.chart(name, {branch: line for branch, line in lines.items() if line}, borders, colours))
    return [svg for svg in drawn if svg]


def branches(told: list[LoggedStep], recipe: Recipe) -> list[dict[str, Any]]:
    """Each branch of each stage: how often it was drawn and should have been, and the time of its steps (with what came between them:
    previews, checkpoints)."""
    rows = []
    total = sum(one.seconds for one in told if math.isfinite(one.seconds)) or math.nan
    for stage in (1, 2, 3):
        here = [one for one in told if one.stage == stage]
        for branch in dict.fromkeys(one.branch for one in here):
            mine = [one.seconds for one in here if one.branch == branch]
            timed = [seconds for seconds in mine if math.isfinite(seconds)]
            rows.append(
                {
                    "stage": stage,
                    "branch": branch,
                    "steps": len(mine),
                    "share": f"{len(mine) / len(here):.0%}",
                    "wanted": f"{recipe.stage(stage).chances().get(branch, 0):.0%}",
                    "seconds": round(sum(timed), 1),
                    "seconds a step": round(sum(timed) / len(timed), 3) if timed else None,
                    "of the time": f"{sum(timed) / total:.0%}" if timed else "-",
                }
            )
    return rows


def previews(run: Path) -> list[tuple[str, Path]]:
    """The sheets in the order of their steps, with a caption."""
    found = sorted(path for path in (run / "previews").glob("stage*.png") if path.is_file())
    told = ((re.fullmatch(r"stage([123])-(\d+)", path.stem), path) for path in found)
    return [(f"stage {name[1]}, step {int(name[2])}: four sides across, times downwards", path) for name, path in told if name]


def clip(run: Path) -> list[dict[str, Any]]:
    """What clip.json says of this run."""
    told = read_json(run / "clip.json") or {}
    videos = told.get("videos")
    names = ("score", "clip_f", "r_precision", "motion", "flicker")
    known = [one for one in videos if isinstance(one, dict)] if isinstance(videos, list) else []
    return [{"CLIP": str(told.get("clip")), **{name: one.get(name) for name in names}} for one in known]


def truth(run: Path) -> list[dict[str, Any]]:
    """What nano.json says of this run: the measures of `fourdfy nano score`."""
    told = read_json(run / "nano.json") or {}
    return [{"measure": name, "value": told[name]} for name in TRUTH if name in told]


def models(recipe: Recipe) -> list[dict[str, Any]]:
    """The model of each role that the recipe draws."""
    return [{name: found[name] for name in ("role", "model", "licence")} for found in plan.downloads(recipe, (1, 2, 3))]


def settings(recipe: Recipe) -> list[dict[str, Any]]:
    """Every setting with its value and where it comes from."""
    sources = plan.sources(recipe, {})
    told = {"the checkpoint": "set for this run"}
    return [
        {"setting": key, "value": "none" if value is None else json.dumps(value), "source": told.get(sources[key], sources[key])}
        for key, value in leaves(to_dict(recipe)).items()
    ]

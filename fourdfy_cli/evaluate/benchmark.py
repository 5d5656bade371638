"""The benchmark of the small models: a file of prompts, each generated and measured against the truth, and a table per motion.

Every prompt has its run folder; what is finished is left as it is, so the same command goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from fourdfy_cli.config import Recipe
from fourdfy_cli.errors import DIVERGED, FourdfyError, typed
from fourdfy_cli.evaluate.measures import bootstrap
from fourdfy_cli.evaluate.truth import BACKDROP, camera_shot, render_views, score
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano.prompts import MOTIONS, parse
from fourdfy_cli.nano.show import truth
from fourdfy_cli.output import render
from fourdfy_cli.run import batch
from fourdfy_cli.run.batch import Engine, Job, Watcher
from fourdfy_cli.run.progress import Events
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import make_writable, read_runs, run_folder, write_json

MEASURES = ("iou", "psnr", "motion_ratio", "object_ok", "colour_ok", "spots", "front_runs")  # of `fourdfy nano score`
MEANS, FRONTS = ("iou", "psnr", "motion_ratio", "still_iou", "still_psnr", "object_ok", "colour_ok"), ("front_runs", "still_front_runs")
SPOTS = ("spots", "still_spots")  # missing where a thing has nothing dark
LOOKS = tuple((azimuth, time) for time in (0.0, 0.25, 0.5, 0.75) for azimuth in (30.0, 210.0))  # of the sheet: degrees, time
COLUMNS, NAME = 4, 14  # prompts side by side on the sheet; pixels for a name


@dataclass(frozen=True)
class Task:
    """What is asked for: the prompts, how they are made, and the folder of their runs."""

    prompts: list[str]
    recipe: Recipe
    out: Path
    seed: int


def ahead(task: Task, engine: Engine, watcher: Watcher) -> dict[Path, str]:
    """Make every scene by an engine: the folders of those that diverged, and why. Raises FourdfyError as `batch.made`."""
    return batch.made([Job(prompt, task.seed, task.recipe, task.out) for prompt in task.prompts], engine, watcher)


def run(task: Task, machine: Machine, events: Events, lost: Mapping[Path, str] = MappingProxyType({})) -> dict[str, Any]:
    """Make and measure what is not there yet; writes bench.json after every prompt and bench.png at the end, and returns what bench.json
    holds. A prompt that diverges, or did `ahead` (`lost`), is listed as failed, and the others go on. Raises FourdfyError as
    `train.run` for all else."""
    make_writable(task.out)
    known = {(r["prompt"], r["digest"]): r for r in read_runs(task.out / "bench.json", ("prompt", "digest"), MEANS, (*FRONTS, *SPOTS))}
    results: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for number, prompt in enumerate(task.prompts, 1):
        events.note(f"{number}/{len(task.prompts)}: {prompt}")
        try:
            job = Job(prompt, task.seed, task.recipe, task.out)
            if job.folder in lost:
                raise FourdfyError(lost[job.folder], code=DIVERGED)
            folder = job.go(machine, events).run_dir
        except FourdfyError as error:
            if error.code != DIVERGED:
                raise
            failed.append({"prompt": prompt, "why": error.message})
            continue
        digest = checkpoint.load(folder / "stage3.pt")["digest"]
        results.append(known.get((prompt, digest)) or measured(folder, prompt, digest))
        data = {"recipe": task.recipe.name, "seed": task.seed, "table": table(results), "failed": failed, "runs": results}
        write_json(task.out / "bench.json", data)
    if not results:
        raise FourdfyError(
            "every prompt diverged",
            typed("fourdfy", "nano", "bench", "PROMPTS.txt", "--seed", task.seed + 1, "--out", f"{task.out}-2"),
            DIVERGED,
        )
    render.write_png(task.out / "bench.png", picture([run_folder(task.out, r["prompt"], task.seed) for r in results]))
    return data


def measured(folder: Path, prompt: str, digest: str) -> dict[str, Any]:
    """A run's figures at the end of stage 2 (prefixed "still_") and of stage 3."""
    subject, still, moving = parse(prompt), score(folder / "stage2.pt"), score(folder)
    figures = {name: moving[name] for name in MEASURES} | {f"still_{name}": still[name] for name in MEASURES}
    return {"prompt": prompt, "motion": subject.motion, "held_out": subject.held_out, "digest": digest} | figures


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each motion, for prompts without one, for pairs never seen, and for all: means, and 95 % intervals over prompts under
    "<measure>_interval"; one_front and still_one_front are the shares of things with a front that show one."""
    groups = {name: [r for r in runs if r.get("motion") == name] for name in MOTIONS}
    groups |= {"none": [r for r in runs if r.get("motion") is None], "never seen": [r for r in runs if r.get("held_out")]}
    groups |= {"all": runs}
    return [line(name, group) for name, group in groups.items() if group]


def line(name: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of a group of runs."""
    made: dict[str, Any] = {"prompts": name, "n": len(group)}
    for key in (*MEANS, *SPOTS):
        values = [r[key] for r in group if r.get(key) is not None]
        made |= {key: float(np.mean(values)) if values else None, f"{key}_interval": bootstrap(values)}
    for key in FRONTS:
        fronts = [r[key] == 1 for r in group if r.get(key) is not None]
        made[key.replace("front_runs", "one_front")] = float(np.mean(fronts)) if fronts else None
    return made


def shown(data: dict[str, Any]) -> dict[str, Any]:
    """The result for people: a table narrow enough for a terminal, intervals beside the means."""

    def cell(one: dict[str, Any], key: str, digits: int) -> str:
        if one[key] is None:
            return ""
        ends = one[f"{key}_interval"]
        return f"{one[key]:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "")

    columns = {"IoU": ("iou", 2), "dB": ("psnr", 1), "motion": ("motion_ratio", 2), "spots": ("spots", 2)}
    rows = [
        {"prompts": one["prompts"], "n": one["n"]}
        | {title: cell(one, *how) for title, how in columns.items()}
        | {"stage 2": f"{one['still_iou']:.2f} {one['still_psnr']:.1f}", "one front": one["one_front"]}
        for one in data["table"]
    ]
    return {"recipe": data["recipe"], "seed": data["seed"], "table": rows} | ({"failed": data["failed"]} if data["failed"] else {})


@torch.no_grad()
def picture(folders: list[Path]) -> render.Picture:
    """A sheet: for each run its prompt, and under it ours above the truth at LOOKS."""
    blocks = [block(folder) for folder in folders]
    blocks += [np.full_like(blocks[0], 255)] * (-len(blocks) % COLUMNS)
    return np.concatenate([np.concatenate(blocks[k : k + COLUMNS], 1) for k in range(0, len(blocks), COLUMNS)], 0)


def block(folder: Path) -> render.Picture:
    scene, _, meta = render.load_scene(folder)
    azimuth, time = torch.tensor(LOOKS).unbind(-1)
    shot = camera_shot(azimuth * (math.pi / 180), time)
    rows = [render_views(scene, shot).rgb.clamp(0, 1).numpy(), truth(parse(meta["prompt"]), shot).over(BACKDROP)]
    strips = [(np.concatenate(list(row), 1) * 255).round().astype(np.uint8) for row in rows]
    card = Image.new("RGB", (strips[0].shape[1], NAME), "white")
    ImageDraw.Draw(card).text((4, NAME / 2), meta["prompt"], "black", anchor="lm")
    return np.concatenate([np.asarray(card), *strips], 0)

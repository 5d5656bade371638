"""The ablation of 4D-fy's Table 2: the same prompts with one part of the method missing at a time.

A row is a list of settings, so that `fourdfy generate PROMPT --set ...` makes any one of its runs too. Rows that are alike up to the
end of a stage share it: a run starts from any checkpoint below the folder whose recipe is the same up to there. Everything found
done is left as it is. Source: the paper's Sec. 5 and Table 2; what it leaves open is said at `rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from fourdfy_cli.config import Recipe, from_dict, leaves, override, to_dict
from fourdfy_cli.errors import DIVERGED, USAGE, FourdfyError
from fourdfy_cli.evaluate import score as evaluate
from fourdfy_cli.evaluate.clip import load_clip
from fourdfy_cli.evaluate.truth import score
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import batch
from fourdfy_cli.run.batch import Engine, Job, Watcher, conflict
from fourdfy_cli.run.progress import Events
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint, files
from fourdfy_cli.store.folder import make_writable, read_runs, run_folder, write_json

TABLE_2 = ("full", "no-3d-image", "no-3d", "no-image", "no-hybrid", "hexplane")
MEASURES = ("iou", "psnr", "fronts", "front_runs", "motion_ratio")  # of `fourdfy nano score`
ANOTHER = "another folder for these prompts and settings: --out ablation-2"
KEY = ("row", "prompt", "digest", "clip_model")  # what makes a run in ablate.json the one that is here
VIEWS, TIMES, MARGIN = 4, 3, 90  # of the picture; the margin in pixels, for names


class Row(NamedTuple):
    """A line of the table: its name in the paper, the CLIP score published there, and what it sets."""

    title: str
    published: float | None
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """What is asked for: every row for every prompt, in `out`, judged by the CLIP model `clip`."""

    prompts: list[str]
    rows: list[str]
    recipe: Recipe
    out: Path
    seed: int
    clip: str


def rows(recipe: Recipe) -> dict[str, Row]:
    """Every row there is, for a recipe.

    A guidance that is missing leaves its steps to the others of the stage. Our reading where the paper says no more: without the 3D
    guidance the image guidance makes the static scene, with stage 1's noise levels and its LoRA trained; without both, the video
    guidance makes it, of a scene that does not move before stage 3. "deformation" is not in the paper; it is the released code's
    variant: stage 3 trains the displacement alone, on every branch, at a tenth of the dynamic grid's rate (one rate for grid and
    network; the smoothness loss, stage3.smooth, is left to --set).
    """
    annealed = asdict(recipe.stage1.multiview)
    noise = [f"stage1.image.{bound}.{key}={value}" for bound in ("low", "high") for key, value in annealed[bound].items()]
    image_first = ("stage1.p_3d=0", "stage1.p_image=1", f"stage1.lr.lora={recipe.stage2.lr.lora}", *noise)
    last = recipe.stage3
    return {
        "full": Row("full", 35.0, ()),
        "no-3d-image": Row("w/o 3D, IMG", 29.3, tuple(f"stage{n}.{p}=0" for n in (1, 2, 3) for p in ("p_3d", "p_image"))),
        "no-3d": Row("w/o 3D", 35.1, (*image_first, "stage2.p_3d=0", "stage3.p_3d=0")),
        "no-image": Row("w/o IMG", 34.5, ("stage2.p_3d=1", "stage3.p_image=0")),
        "no-hybrid": Row("w/o hybrid SDS", 33.8, ("stage3.p_3d=0", "stage3.p_image=0")),
        "hexplane": Row("HexPlane", 34.5, ("field.kind=hexplane",)),
        "deformation": Row(
            "deformation",
            None,
            ("field.kind=deformation", "stage3.dynamic_always=true", "stage3.p_image=0", "stage3.video.weight=1")
            + (f"stage3.lr.dynamic={last.lr.dynamic / 10}", f"stage3.blob.end={last.blob.start}")
            + tuple(f"stage3.lr.{part}=0" for part in ("static", "nets", "background", "lora")),
        ),
    }


def row_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe of a row; raises FourdfyError (exit 2) for a row that does not exist."""
    known = rows(recipe)
    if name not in known:
        raise FourdfyError(f"there is no row {name!r}", f"some of these, or deformation: --rows {','.join(TABLE_2)}", USAGE)
    for setting in known[name].settings:
        recipe = override(recipe, setting)
    return recipe


def run(wanted: Ablation, machine: Machine, events: Events, lost: Mapping[Path, str] = MappingProxyType({})) -> dict[str, Any]:
    """Train and judge what is not there yet; writes ablate.json and ablate.md after every run and ablate.png at the end, and returns
    what ablate.json holds. A run that diverges, or did `ahead` (`lost`), is listed there as failed, and the others go on. Raises
    FourdfyError as `check` and `train.run` for all else."""
    recipes = {name: row_recipe(wanted.recipe, name) for name in wanted.rows}
    check(wanted, recipes)
    make_writable(wanted.out)
    known = {tuple(map(r.get, KEY)): r for r in read_runs(wanted.out / "ablate.json", KEY, ("clip",), ("flicker", *MEASURES))}
    results: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for prompt in wanted.prompts:
        for name, recipe in recipes.items():
            events.note(f"{name}: {prompt}")
            try:
                if why := lost.get(run_folder(wanted.out / name, prompt, wanted.seed)):
                    raise FourdfyError(why, code=DIVERGED)
                folder = trained(wanted, name, prompt, recipe, machine, events)
            except FourdfyError as error:
                if error.code != DIVERGED:
                    raise
                failed.append({"row": name, "prompt": prompt, "why": error.message})
                continue
            key = (name, prompt, checkpoint.load(folder / "stage3.pt")["digest"], wanted.clip)
            results.append(known.get(key) or dict(zip(KEY, key, strict=True)) | judged(folder, wanted.clip))
            report(wanted, results, failed)
    picture(wanted)
    return report(wanted, results, failed)


def check(wanted: Ablation, recipes: dict[str, Recipe]) -> None:
    """Raises FourdfyError before hours of training, with nothing written: two prompts that have one folder or are one to CLIP, a folder
    that holds another run (exit 2); a CLIP that cannot be had (exit 2, 3)."""
    for name, recipe in recipes.items():
        owners: dict[Path, str] = {}
        for prompt in wanted.prompts:
            folder = run_folder(wanted.out / name, prompt, wanted.seed)
            if owners.setdefault(folder, prompt) != prompt:
                raise FourdfyError(f"{owners[folder]!r} and {prompt!r} have one folder, {folder}", ANOTHER, USAGE)
            if other := conflict(folder, prompt, recipe):
                raise FourdfyError(f"{folder} holds {other}, not what is asked for", ANOTHER, USAGE)
    _, problems = evaluate.distinct(load_clip(wanted.clip), wanted.prompts)
    if problems:
        raise problems[0]


def trained(wanted: Ablation, name: str, prompt: str, recipe: Recipe, machine: Machine, events: Events) -> Path:
    """The finished run of a row and a prompt."""
    return job(wanted, name, prompt, recipe).go(machine, events).run_dir


def job(wanted: Ablation, name: str, prompt: str, recipe: Recipe) -> Job:
    """The run of a row and a prompt: as it is, gone on with, or from the latest stage that some other run shares."""
    made = Job(prompt, wanted.seed, recipe, wanted.out / name)
    return made if any(made.folder.glob("[!.]*.pt")) else replace(made, start=shared(wanted.out, recipe, made.folder.name))


def ahead(wanted: Ablation, engine: Engine, watcher: Watcher) -> dict[Path, str]:
    """Train every run by an engine, the prompts of a row side by side and row after row, so that rows can share stages: the folders of
    those that diverged, and why. Raises FourdfyError as `check` and `batch.made`."""
    recipes = {name: row_recipe(wanted.recipe, name) for name in wanted.rows}
    check(wanted, recipes)
    lost: dict[Path, str] = {}
    for name, recipe in recipes.items():
        lost |= batch.made([job(wanted, name, prompt, recipe) for prompt in wanted.prompts], engine, watcher)
    return lost


def shared(out: Path, recipe: Recipe, run_name: str) -> Path | None:
    """A checkpoint at the end of stage 2, or else 1, of the same prompt and seed and a recipe that is the same up to there."""
    for stage in (2, 1):
        for path in sorted(out.glob(f"*/{run_name}/stage{stage}.pt")):
            if until(from_dict(checkpoint.load(path)["recipe"]), stage) == until(recipe, stage):
                return path
    return None


def until(recipe: Recipe, stage: int) -> dict[str, Any]:
    """What a recipe says of all that happens up to the end of a stage, by dotted key."""

    later = tuple(f"stage{number}." for number in range(stage + 1, 4))
    return {key: value for key, value in leaves(to_dict(recipe)).items() if not key.startswith(later)}


def judged(folder: Path, clip: str) -> dict[str, Any]:
    """CLIP score and flicker of a run on the MAV3D path, as `fourdfy clip-score` finds them; of a nano run `MEASURES` too. Raises
    FourdfyError as that does."""
    found, problems = evaluate.score([folder], evaluate.Choice(clip, out=folder))
    if found is None or problems:
        raise problems[0]
    values = {"clip": found["videos"][0]["score"], "flicker": found["videos"][0]["flicker"]}
    measured = score(folder) if from_dict(checkpoint.load(folder / "stage3.pt")["recipe"]).models.set == "nano" else {}
    return values | {name: measured[name] for name in MEASURES if name in measured}


def report(wanted: Ablation, results: list[dict[str, Any]], failed: list[dict[str, str]]) -> dict[str, Any]:
    """Write ablate.json and ablate.md; returns the former's content."""
    recipe = wanted.recipe
    lines = [line(row, [r for r in results if r["row"] == name]) for name, row in rows(recipe).items() if name in wanted.rows]
    if recipe.models.set != "paper":
        lines = [{key: value for key, value in one.items() if key != "published"} for one in lines]
    about = {"preset": recipe.name, "models": recipe.models.set, "seed": wanted.seed, "clip_model": wanted.clip}
    data = about | {"table": lines, "runs": results, "failed": failed}
    write_json(wanted.out / "ablate.json", data)
    said = ", ".join(f"{key} {value}" for key, value in about.items())
    notes = [f"{one['row']}, {one['prompt']}: {one['why']}\n" for one in failed]
    text = "\n".join([f"# Ablation\n\nMeans over prompts; {said}.\n", markdown(lines), *notes])
    with files.replacing(wanted.out / "ablate.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return data


def line(row: Row, results: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table: means over prompts, of those that have a value (a ball has no front)."""

    def mean(name: str) -> float | None:
        values = [r[name] for r in results if r.get(name) is not None]
        return sum(values) / len(values) if values else None

    measured = [name for name in ("clip", "flicker", *MEASURES) if name == "clip" or any(name in r for r in results)]
    return {"row": row.title, "prompts": len(results), **{name: mean(name) for name in measured}, "published": row.published}


def markdown(lines: list[dict[str, Any]]) -> str:
    """Lines as a Markdown table; the columns are those of the longest."""
    names = list(max(lines, key=len))
    cells = [[_cell(one.get(name)) for name in names] for one in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in (names, ["---"] * len(names), *cells))


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def picture(wanted: Ablation) -> Path:
    """ablate.png: a strip for every prompt and row that has its stage 3, `VIEWS` sides one after another, each at `TIMES` moments."""
    strips = []
    for prompt in wanted.prompts:
        for name in wanted.rows:
            folder = run_folder(wanted.out / name, prompt, wanted.seed)
            if (folder / "stage3.pt").exists():
                scene, recipe, _ = render.load_scene(folder)
                strips.append(np.concatenate([_label(name, render.orbit_of(recipe, 64).size), *_looks(scene, recipe)], 1))
    return render.write_png(wanted.out / "ablate.png", np.concatenate(strips or [_label("all failed", 64)], 0))


def _looks(scene: Scene, recipe: Recipe) -> Iterator[render.Picture]:
    grid = [(2 * np.pi * view / VIEWS, time / TIMES) for view in range(VIEWS) for time in range(TIMES)]
    azimuth, time = torch.tensor(grid, dtype=torch.float32).unbind(-1)
    yield from render.views(scene, recipe, render.shot(azimuth, time, render.orbit_of(recipe, 64)))


def _label(text: str, height: int) -> render.Picture:
    """The name of a row, on white."""
    card = Image.new("RGB", (MARGIN, height), "white")
    ImageDraw.Draw(card).text((4, height / 2), text, "black", anchor="lm")
    return np.asarray(card)


def named(text: str | None) -> list[str]:
    """The rows of a comma-separated list, each once; the paper's where there is none."""
    return list(dict.fromkeys(text.replace(",", " ").split() if text else TABLE_2))

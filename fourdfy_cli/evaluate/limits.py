"""How far better judges would get: stage 3 of a run repeated from its stage2.pt with judges that know the truth (exact.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli import hybrid
from fourdfy_cli.config import Recipe, from_dict, override
from fourdfy_cli.diffusion.lora import load_lora_state
from fourdfy_cli.errors import DIVERGED, USAGE, FourdfyError
from fourdfy_cli.evaluate.truth import TIMES, compare, motion_ratio, render_views, views
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano.exact import MOVED, ExactGuidance, PosteriorGuidance
from fourdfy_cli.nano.prompts import Subject, parse
from fourdfy_cli.nano.spots import mean
from fourdfy_cli.output import render
from fourdfy_cli.run import train
from fourdfy_cli.run.state import Run, new_scene
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import write_json

JUDGES = ("learned/learned", "exact/learned", "learned/exact", "exact/exact")  # multi-view judge / video judge [/ image judge]
KINDS = {"multiview": ("learned", "exact"), "video": ("learned", "exact", "posterior", "damped"), "image": ("learned", "exact")}
STAGE_3 = ("stage3.", "field.dynamic.", "field.kind", "field.deformation.", "models.")


@dataclass(frozen=True)
class Start:
    """The end of a stage 2: its checkpoint, the recipe to go on with, and what the prompt means."""

    state: dict[str, Any]
    recipe: Recipe
    subject: Subject


def start(run: Path, settings: list[str]) -> Start:
    """The stage2.pt of a run folder, or the file itself, and its recipe with settings changed. Raises FourdfyError: exit 2 if it is
    another stage's or not of the nano set, or for a setting of what was there before stage 3; as `checkpoint.load` for a bad file."""
    path = run / "stage2.pt" if run.is_dir() else run
    if not path.exists():
        raise FourdfyError(f"{run} has no stage2.pt", 'fourdfy generate "a red dog jumping"', USAGE)
    state = checkpoint.load(path)
    recipe = from_dict(state["recipe"])
    if state["stage"] != 2 or state["step"] < recipe.stage2.steps or recipe.models.set != "nano":
        raise FourdfyError(f"{path} is not the end of stage 2 of a run on the nano models", "fourdfy nano limits RUN/stage2.pt", USAGE)
    for setting in settings:
        if not setting.startswith(STAGE_3):
            raise FourdfyError(f"{setting} would change what was there before stage 3", "--set stage3.steps=300", USAGE)
        recipe = override(recipe, setting)
    return Start(state, recipe, parse(state["prompt"]))


def limits(run: Path, out: Path, names: list[str], settings: list[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Repeat stage 3 with the judges that each name stands for; writes limits.json and a sheet of views and times for each to `out`.

    A row: the judges, iou, psnr (dB), spots and motion (over the truth's) as `nano score` measures them, and seconds. Raises FourdfyError
    as `start`, exit 2 for judges that do not exist, exit 5 if a step has no finite gradient.
    """
    begin = start(run, settings)
    wanted = [judges(name) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for name, kinds in zip(names, wanted, strict=True):
        began = time.monotonic()
        scene = stage3(begin, kinds, lambda text, name=name: report(f"{name}: {text}"))
        row = kinds | measures(scene, begin.subject) | {"seconds": round(time.monotonic() - began)}
        render.preview(scene, begin.recipe, out / f"{name.replace('/', '-')}.png", size=96)
        table.append(row)
        report("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
        result = {"run": str(run), "prompt": begin.state["prompt"], "settings": settings, "table": table}
        write_json(out / "limits.json", result)
    return result


def judges(name: str) -> dict[str, str]:
    """The kind of judge for each branch that "learned/exact" or "learned/exact/exact" names; raises FourdfyError (exit 2)."""
    kinds = [*name.split("/"), "learned"] if name.count("/") == 1 else name.split("/")
    if len(kinds) != len(KINDS) or not all(kind in known for kind, known in zip(kinds, KINDS.values(), strict=True)):
        known = ", ".join(f"{branch} {' or '.join(known)}" for branch, known in KINDS.items())
        raise FourdfyError(f"there are no judges {name!r}: {known}", f"--judges {','.join(JUDGES)}", USAGE)
    return dict(zip(KINDS, kinds, strict=True))


def stage3(begin: Start, kinds: dict[str, str], report: Callable[[str], None]) -> Scene:
    """The scene after stage 3 with judges of these kinds, and with the random draws of the run itself."""
    state, machine = begin.state, Machine()
    current = Run(state["prompt"], begin.recipe, Path(), state["seed"], machine, scene_of(begin, machine), 3, lora=state["lora"])
    guidances = train.load_guidances(begin.recipe, 3, current.text, machine.device, 0, current.seed)
    if (network := train.lora_network(guidances)) is not None and current.lora:
        load_lora_state(network, current.lora)
    optimizer = train.make_optimizer(current.scene, begin.recipe, 3, guidances)
    told = {branch: instead(guidance, kinds[branch], begin.subject) for branch, guidance in guidances.items()}
    steps = begin.recipe.stage3.steps
    while current.step < steps:
        hybrid.maybe_update_occupancy(current.scene, current.context())
        if bad := train.update(optimizer, current, hybrid.step(current.scene, told, current.context())):
            hint = "fourdfy nano limits RUN --set stage3.lr.dynamic=0.01"
            raise FourdfyError(f"step {current.step}: {bad} is not finite", hint, DIVERGED)
        current.step += 1
        if current.step % 50 == 0:
            report(f"step {current.step} of {steps}")
    return current.scene


def instead(guidance: Any, kind: str, subject: Subject) -> Guidance:
    """A learned guidance, or one that knows the world in its place."""
    if kind == "learned":
        return guidance
    return (
        ExactGuidance(guidance, subject) if kind == "exact" else PosteriorGuidance(guidance, subject, MOVED if kind == "damped" else (1.0,))
    )


def scene_of(begin: Start, machine: Machine) -> Scene:
    """The checkpoint's scene; a dynamic grid that the settings change starts anew, as it does before stage 3."""
    scene = new_scene(begin.recipe, begin.state["seed"], machine)
    fresh, kept = scene.state_dict(), begin.state["scene"]
    anew = begin.recipe.field != from_dict(begin.state["recipe"]).field
    scene.load_state_dict({key: value if anew and key.startswith("field.dynamic") else kept[key] for key, value in fresh.items()})
    return scene


@torch.no_grad()
def measures(scene: Scene, subject: Subject) -> dict[str, float | None]:
    """iou, psnr, spots and motion of a moving scene, as `nano score` measures them."""
    shot = views(TIMES)
    found = compare(render_views(scene, shot), shot, subject)
    return {name: mean(found[name]) for name in ("iou", "psnr", "spots")} | {"motion": motion_ratio(scene, subject)}

"""`fourdfy bench`: how fast this machine is, and how much memory a run takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import USAGE, FourdfyError

if TYPE_CHECKING:
    import torch

    from fourdfy_cli.config import Recipe

PROMPTS = {"nano": "red dog, jumping", "random": "a panda dancing", "paper": "a panda dancing"}


@dataclass(frozen=True)
class Bench(options.Common):
    """Options of `bench`."""

    preset: Annotated[str | None, typer.Option("--preset", help="Whose steps to measure.", show_default="paper, nano for nano")] = None
    models: Annotated[str, typer.Option("--models", help="random (nothing to download), paper or nano.")] = "random"
    size: Annotated[str, typer.Option("--size", help="Of the random models: full, or tiny (for CPUs; the pictures shrink too).")] = "full"
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe; may be repeated.", show_default=False)
    ] = field(default_factory=list)
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to take the median of.")] = 5
    vram: Annotated[float | None, typer.Option("--vram", min=0.0, help="Memory to stay within, GB.", show_default="what the card has")] = (
        None
    )
    memory: Annotated[bool, typer.Option("--memory", help="Instead: a video step's memory, all at once and in chunks.")] = False
    kernels: Annotated[bool, typer.Option("--kernels", help="Instead: the speed of the inner loops, backend by backend.")] = False
    encoder: Annotated[
        Path | None,
        typer.Option("--encoder", metavar="RUN", help="Instead: small encoders' gradients on a run's pictures.", show_default=False),
    ] = None
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.", show_default="cuda if there is one")] = None


@options.grouped
def bench(wanted: Bench) -> None:
    """Measure seconds a step and peak memory of every branch and stage.

    Tells what a whole run of the preset would take."""
    recipe = _recipe(wanted)
    options.check_device(wanted.device or "cpu")
    import torch

    from fourdfy_cli.bench import kernels, steps

    device = torch.device(wanted.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if wanted.kernels:
        return _kernels(wanted, str(device))
    if wanted.encoder is not None:
        return _encoders(wanted, wanted.encoder, recipe, device)
    models = f"random, {recipe.models.size} size" if recipe.models.set == "random" else recipe.models.set
    about = {"preset": recipe.name, "models": models, "device": kernels.machine(str(device))}
    prompt = PROMPTS[recipe.models.set]
    if wanted.memory:
        rungs = list(wanted.output.counted(steps.ladder(recipe, prompt, device), len(steps.LADDER), "measuring"))
        return wanted.output.finish(about | {"memory": rungs if wanted.json else [_gigabytes(row) for row in rungs]})
    rows = []
    for row in steps.measure(recipe, prompt, device, wanted.steps, wanted.vram):
        wanted.output.note(str(row))
        rows.append(row)
    _finish(wanted, recipe, about, [asdict(row) for row in rows], steps.summary(recipe, rows))


def _kernels(wanted: Bench, device: str) -> None:
    """Measure the inner loops alone."""
    from fourdfy_cli.bench import kernels

    rows = []
    for row in kernels.measure(device, wanted.steps):
        wanted.output.note(" ".join(f"{key}={round(value, 3) if isinstance(value, float) else value}" for key, value in row.items()))
        rows.append(row)
    wanted.output.finish({"machine": kernels.machine(device), "kernels": rows})


def _encoders(wanted: Bench, run: Path, recipe: Recipe, device: torch.device) -> None:
    """Compare the small encoders' gradients with the autoencoders'."""
    from fourdfy_cli.bench import encoders

    rows = []
    for row in encoders.measure(run, recipe, device):
        wanted.output.note("{branch} picture {picture}: cosine {cosine:.4f}, length {length:.3f}".format(**row))
        rows.append(row)
    wanted.output.finish({"run": run, "encoders": rows, "mean_cosine": sum(row["cosine"] for row in rows) / len(rows)})


def _recipe(wanted: Bench) -> Recipe:
    """The recipe that the options ask for; raises FourdfyError (exit 2)."""
    from fourdfy_cli import config, presets
    from fourdfy_cli.store.migrate import renamed

    if wanted.models not in PROMPTS:
        raise FourdfyError(f"there is no model set {wanted.models!r}", f"one of {', '.join(PROMPTS)}: --models random", USAGE)
    recipe = presets.preset(wanted.preset or ("nano" if wanted.models == "nano" else "paper"))
    recipe = replace(recipe, models=replace(recipe.models, set=wanted.models, size=wanted.size))
    if wanted.models == "random" and wanted.size == "tiny":
        recipe = presets.tiny(recipe)
    for assignment in wanted.settings:
        recipe = config.override(recipe, assignment, renamed)
    return recipe


def _finish(wanted: Bench, recipe: Recipe, about: dict[str, Any], rows: list[dict[str, Any]], stages: list[dict[str, Any]]) -> None:
    """Keep the figures for --dry-run, and show them."""
    from fourdfy_cli.console import duration
    from fourdfy_cli.run import plan

    total, peak = sum(row["seconds"] for row in stages), max(row["bytes"] for row in stages)
    kept = plan.remember(recipe, {"device": about["device"], "date": date.today().isoformat(), "rows": rows})
    if wanted.json:
        return wanted.output.finish(about | {"rows": rows, "stages": stages, "seconds": total, "bytes": peak, "kept": kept})
    shown = [_gigabytes(row) | {"seconds": duration(row["seconds"])} for row in stages]
    whole = {"a whole run": duration(total), "peak GB": peak / 1e9, "kept in": kept}
    wanted.output.finish(about | {"branches": [_gigabytes(row) for row in rows], "stages": shown} | whole)


def _gigabytes(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: GB instead of bytes."""
    names = {"bytes": "GB", "step_bytes": "GB for the step", "seconds_a_step": "seconds a step", "of_direct": "of direct"}
    return {names.get(key, key): value / 1e9 if key.endswith("bytes") and value is not None else value for key, value in row.items()}

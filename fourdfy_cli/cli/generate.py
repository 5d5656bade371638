"""`fourdfy generate`, `stage1`, `stage2`, `stage3`: the commands that make a scene."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import complete, options
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError, typed

if TYPE_CHECKING:
    from fourdfy_cli.config import Recipe
    from fourdfy_cli.memory import Machine

Words = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="CHECKPOINT",
        help="Go on from this checkpoint or run folder.",
        show_default=False,
        autocompletion=complete.sources,
    ),
]


@dataclass(frozen=True)
class SceneOptions(options.Run):
    """Options of the commands that make a scene for somebody who may watch."""

    view: Annotated[bool, typer.Option("--view", help="Watch the run in a browser, on this machine, as it goes.")] = False
    log: Annotated[str | None, typer.Option("--log", metavar="WHERE", help="Also log to: tensorboard (files in the run folder).")] = None
    gpus: Annotated[
        int, typer.Option("--gpus", envvar="FOURDFY_GPUS", min=1, max=1024, help="Processes that share the run, one a GPU (or on the CPU).")
    ] = 1
    distributed: Annotated[
        str, typer.Option("--distributed", envvar="FOURDFY_DISTRIBUTED", help="What they share: frames (of the same step) or views (more).")
    ] = "frames"

    def machine(self, device: str) -> Machine:
        from fourdfy_cli.run.launch import is_rank

        return replace(super().machine(device), distributed=self.distributed if is_rank() else None)

    def again(self) -> str:
        """The command that goes on with the run."""
        args = list(self.output.args)
        if self.gpus > 1 or "RANK" not in os.environ:
            return shlex.join(["fourdfy", *args])
        return shlex.join(["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "fourdfy_cli", *args])


@options.grouped
def generate(prompt: options.Prompt, run: SceneOptions) -> None:
    """Turn a sentence into a moving 3D scene: all three stages, then a video of it.

    The same command again goes on where an earlier one stopped."""
    recipe = options.recipe(run)
    options.check_prompt(prompt, recipe.models.set)
    _run(prompt, recipe, run, (1, 2, 3), None)


@options.grouped
def stage1(run: SceneOptions, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 1 alone: a static scene, from the multi-view model. Writes stage1.pt."""
    _stage(1, prompt, resume, run)


@options.grouped
def stage2(run: SceneOptions, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 2 alone: better appearance, from the image model. Writes stage2.pt.

    Starts from the end of stage 1."""
    _stage(2, prompt, resume, run)


@options.grouped
def stage3(run: SceneOptions, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 3 alone: motion, from the video model. Writes stage3.pt and the video.

    Starts from the end of stage 2."""
    _stage(3, prompt, resume, run)


def _stage(number: int, prompt: str | None, resume: Path | None, run: SceneOptions) -> None:
    """One stage; prompt, seed and recipe come from the checkpoint if there is one, and may not contradict it."""
    if resume is None:
        if prompt is None:
            raise FourdfyError(f"stage{number} wants a prompt or a checkpoint", _example(number), USAGE)
        recipe = options.recipe(run)
        options.check_prompt(prompt, recipe.models.set)
        if number > 1:
            raise FourdfyError(f"stage {number} starts from a checkpoint of stage {number - 1}", _earlier(number, prompt, run), USAGE)
        return _run(prompt, recipe, run, (number,), None)
    from fourdfy_cli.config import from_dict
    from fourdfy_cli.output.render import locate
    from fourdfy_cli.store.checkpoint import load

    resume = locate(resume)
    state = load(resume)
    _agree("prompt", prompt, state["prompt"], number, resume)
    _agree("seed", run.seed, state["seed"], number, resume)
    recipe = options.recipe(run, from_dict(state["recipe"]))
    options.check_prompt(state["prompt"], recipe.models.set)
    out = _out(run, state["prompt"], state["seed"], resume)
    _run(state["prompt"], recipe, replace(run, seed=state["seed"], out=out), (number,), resume)


def _example(number: int) -> str:
    return 'fourdfy stage1 "a red dog jumping"' if number == 1 else f"fourdfy stage{number} --resume outputs/RUN/stage{number - 1}.pt"


def _earlier(number: int, prompt: str, run: options.Run) -> str:
    """The command that starts this stage for a prompt from the run's own folder."""
    from fourdfy_cli.store.folder import run_folder

    return typed("fourdfy", f"stage{number}", "--resume", run_folder(run.out, prompt, run.seed or 0) / f"stage{number - 1}.pt")


def _agree(what: str, given: Any, stored: Any, number: int, resume: Path) -> None:
    if given is not None and given != stored:
        raise FourdfyError(
            f"{resume} was made with {what} {stored!r}, not {given!r}", typed("fourdfy", f"stage{number}", "--resume", resume), USAGE
        )


def _out(run: SceneOptions, prompt: str, seed: int, resume: Path) -> Path:
    """Where the run's folder goes: the checkpoint's own run folder goes on, unless --out names another place."""
    from fourdfy_cli.store.folder import run_folder

    folder = resume.absolute().parent
    return folder.parent if not run.given("out") and run_folder(folder.parent, prompt, seed) == folder else run.out


def _run(prompt: str, recipe: Recipe, run: SceneOptions, stages: tuple[int, ...], resume: Path | None) -> None:
    """Show the recipe (--dry-run), or check what can be checked beforehand, then train and list what was written."""
    if run.log not in (None, "tensorboard"):
        raise FourdfyError(f"there is no log {run.log!r}", "--log tensorboard", USAGE)
    output, run = run.output, replace(run, out=run.out.expanduser())  # a shell leaves the ~ of FOURDFY_OUT as it is
    seed = run.seed or 0
    if run.dry_run:
        about = {"prompt": prompt, "seed": seed, "out": str(run.out), "device": run.device}
        return output.finish(about | (_plan if run.json else _readable_plan)(recipe, run, stages))
    options.check_writable(run.out)
    device = _place(run, recipe)
    from fourdfy_cli.store.folder import run_folder

    if run.commercial:
        from fourdfy_cli.diffusion import hub, sets

        hub.refuse_non_commercial(recipe.models, sets.roles(sets.drawn(recipe, stages), recipe.vsd))
    if run.models in (None, "auto"):
        why = "a GPU is here" if recipe.models.set == "paper" else "small ones that come with this package, for CPUs"
        output.note(f"models: {recipe.models.set} ({why})")
    from fourdfy_cli.run import api, train
    from fourdfy_cli.run.launch import is_first
    from fourdfy_cli.run.watchers import watched

    view, log = (run.view, run.log) if is_first() else (False, None)
    with output.events() as told, watched(told, run_folder(run.out, prompt, seed), prompt, recipe, view, log) as events:
        try:
            if stages == api.STAGES:
                result = api.generate(prompt, recipe, None, run.out, seed, run.machine(device), events)
            else:
                result = train.run(prompt, recipe, run.out, seed, stages, resume, run.machine(device), events)
        except FourdfyError as error:
            error.hint = error.hint or run.again()  # where a rank is gone, nobody else knows the command
            raise
    if not run.json:
        output.note("wrote " + " ".join(str(path) for path in result.files))
    output.finish({"run_dir": result.run_dir, "checkpoint": result.checkpoint, "video": result.video, "seconds": result.seconds})


def _place(run: SceneOptions, recipe: Recipe) -> str:
    """Where this process computes; with --gpus, where it is the first to be asked, it starts the others and does not come back.

    Raises FourdfyError: exit 2 for options that do not go together, exit 3 for more GPUs than there are."""
    from fourdfy_cli.run.launch import MODES, is_rank, launch

    device = options.device(run, recipe)
    if run.distributed not in MODES:
        raise FourdfyError(f"there is no way {run.distributed!r} to share a run", f"{' or '.join(MODES)}: --distributed frames", USAGE)
    if is_rank():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    if run.gpus == 1:
        return device
    if device != "cpu":
        import torch

        if device != "cuda":
            raise FourdfyError(f"{run.gpus} processes cannot share {device}", f"--gpus {run.gpus} --device cuda", USAGE)
        if run.gpus > (here := torch.cuda.device_count()):
            raise FourdfyError(f"this machine has {here} GPUs, not {run.gpus}", f"--gpus {here}", ENVIRONMENT)
    sys.exit(launch(list(run.output.args), run.gpus, run.again()))


def _plan(recipe: Recipe, run: options.Run, stages: tuple[int, ...]) -> dict[str, Any]:
    """What a run would do and need, as data; nothing is downloaded, no GPU is touched."""
    from fourdfy_cli import config
    from fourdfy_cli.run import plan

    return {
        "recipe": config.to_dict(recipe),
        "sources": plan.sources(recipe, options.origins(run, recipe)),
        "models": plan.downloads(recipe, stages),
        "stages": plan.stages(recipe, stages, run.vram),
    }


def _readable_plan(recipe: Recipe, run: options.Run, stages: tuple[int, ...]) -> dict[str, Any]:
    """The same for people, on one screen: a line for each model and stage, then what differs from the preset; with --full every
    setting as `key = value # source`."""
    from fourdfy_cli.config import leaves
    from fourdfy_cli.console import duration

    data, given = _plan(recipe, run, stages), options.origins(run, recipe)
    shown = {key: value for key, value in leaves(data["recipe"]).items() if run.full or key in given}
    values = {key: "none" if value is None else json.dumps(value) for key, value in shown.items()}
    models, rows = {row["role"]: row for row in data["models"]}, {f"stage {row['stage']}": row for row in data["stages"]}
    return {
        "preset": recipe.name,
        "to download": f"{sum(row['bytes'] for row in data['models']) / 1e9:.2f} GB",
        "total time": duration(sum(row["seconds"] or math.nan for row in data["stages"])),
        "models": {
            role: f"{row['model']}, {row['licence']}, {'here' if row['here'] else str(round(row['bytes'] / 1e9, 2)) + ' GB to download'}"
            for role, row in models.items()
        },
        "stages": {
            name: f"{row['steps']} steps ({row['draws']}), {row['bytes'] / 1e9:.1f} GB with {row['with']}, "
            f"{row['least_bytes'] / 1e9:.1f} GB at least, time {duration(row['seconds'])} ({row['measured']})"
            for name, row in rows.items()
        },
        "recipe" if run.full else "changed": {key: f"= {value} # {data['sources'][key]}" for key, value in values.items()} or None,
        "all settings": None if run.full else "with --dry-run --full, or --dry-run --json",
    }

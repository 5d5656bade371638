"""`fourdfy generate`, `stage1`, `stage2`, `stage3`: the commands that make a scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli import config
from fourdfy_cli.cli import options
from fourdfy_cli.errors import USAGE, FourdfyError

Words = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
Resume = Annotated[
    Path | None, typer.Option("--resume", metavar="CHECKPOINT", help="Go on from this checkpoint or run folder.", show_default=False)
]


@options.grouped
def generate(prompt: options.Prompt, run: options.Run) -> None:
    """Turn a sentence into a moving 3D scene: all three stages, then a video of it. The same command again resumes."""
    recipe = options.recipe(run)
    options.check_prompt(prompt, recipe.models.set)
    _run(prompt, recipe, run, (1, 2, 3), None)


@options.grouped
def stage1(run: options.Run, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 1 alone: a static scene from the multi-view model. Writes stage1.pt."""
    _stage(1, prompt, resume, run)


@options.grouped
def stage2(run: options.Run, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 2 alone: better appearance, from the image model. Starts from the end of stage 1, writes stage2.pt."""
    _stage(2, prompt, resume, run)


@options.grouped
def stage3(run: options.Run, prompt: Words = None, resume: Resume = None) -> None:
    """Stage 3 alone: motion, from the video model. Starts from the end of stage 2, writes stage3.pt and the video."""
    _stage(3, prompt, resume, run)


def _stage(number: int, prompt: str | None, resume: Path | None, run: options.Run) -> None:
    """One stage; prompt, seed and recipe come from the checkpoint if there is one, and may not contradict it."""
    if resume is None:
        if prompt is None:
            raise FourdfyError(f"stage{number} wants a prompt or a checkpoint", _example(number), USAGE)
        recipe = options.recipe(run)
        options.check_prompt(prompt, recipe.models.set)
        if number > 1:
            raise FourdfyError(f"stage {number} starts from a checkpoint of stage {number - 1}", _earlier(number, prompt, run), USAGE)
        return _run(prompt, recipe, run, (number,), None)
    from fourdfy_cli.checkpoint import load
    from fourdfy_cli.render import locate

    resume = locate(resume)
    state = load(resume)
    _agree("prompt", prompt, state["prompt"], number, resume)
    _agree("seed", run.seed, state["seed"], number, resume)
    recipe = options.recipe(run, config.from_dict(state["recipe"]))
    options.check_prompt(state["prompt"], recipe.models.set)
    out = _out(run, state["prompt"], state["seed"], resume)
    _run(state["prompt"], recipe, replace(run, seed=state["seed"], out=out), (number,), resume)


def _example(number: int) -> str:
    return 'fourdfy stage1 "a red dog jumping"' if number == 1 else f"fourdfy stage{number} --resume outputs/RUN/stage{number - 1}.pt"


def _earlier(number: int, prompt: str, run: options.Run) -> str:
    """The command that starts this stage for a prompt from the run's own folder."""
    from fourdfy_cli.runfolder import run_folder

    return f"fourdfy stage{number} --resume {run_folder(run.out, prompt, run.seed or 0) / f'stage{number - 1}.pt'}"


def _agree(what: str, given: Any, stored: Any, number: int, resume: Path) -> None:
    if given is not None and given != stored:
        raise FourdfyError(f"{resume} was made with {what} {stored!r}, not {given!r}", f"fourdfy stage{number} --resume {resume}", USAGE)


def _out(run: options.Run, prompt: str, seed: int, resume: Path) -> Path:
    """Where the run's folder goes: the checkpoint's own run folder goes on, unless --out names another place."""
    from fourdfy_cli.runfolder import run_folder

    folder = resume.absolute().parent
    return folder.parent if not run.given("out") and run_folder(folder.parent, prompt, seed) == folder else run.out


def _run(prompt: str, recipe: config.Recipe, run: options.Run, stages: tuple[int, ...], resume: Path | None) -> None:
    """Show the recipe (--dry-run), or check what can be checked beforehand, then train and list what was written."""
    output = run.output
    seed = run.seed or 0
    if run.dry_run:
        values: dict[str, Any] = {"prompt": prompt, "seed": seed, "stages": list(stages), "out": str(run.out), "device": run.device}
        return output.finish({**values, "recipe": config.to_dict(recipe) if run.json else config.leaves(config.to_dict(recipe))})
    options.check_device(run.device)
    options.check_writable(run.out)
    if run.models in (None, "auto"):
        output.note(f"models: {recipe.models.set} (the set that this version brings)")
    from fourdfy_cli.train import run as train

    with output.events() as events:
        result = train(prompt, recipe, run.out, seed, stages, resume, run.device, events)
    if not run.json:
        output.note("wrote " + " ".join(str(path) for path in result.files))
    output.finish({"run_dir": result.run_dir, "checkpoint": result.checkpoint, "video": result.video, "seconds": result.seconds})

"""A run as a thing: its state, its folder's files, and where it may go on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli import __version__, kernels
from fourdfy_cli.config import Recipe, from_dict, to_dict
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano.prompts import parse
from fourdfy_cli.output import render
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint, migrate
from fourdfy_cli.store.folder import read_json, run_folder, write_json


@dataclass
class Run:
    """The state of a run: what `checkpoint` writes and reads."""

    prompt: str
    recipe: Recipe
    folder: Path
    seed: int
    machine: Machine
    scene: Scene
    stage: int = 1
    step: int = 0
    lora: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Any] | None = None
    vram: float | None = None  # GB to stay within; None: no bound
    rung: int = 0  # of memory.LADDER

    def context(self) -> StepContext:
        return StepContext(self.recipe, self.seed, self.stage, self.step)

    def state(self) -> dict[str, Any]:
        """Plain tensors and builtins."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "recipe": to_dict(self.recipe),
            "stage": self.stage,
            "step": self.step,
            "scene": {k: v.detach().cpu() for k, v in self.scene.state_dict().items()},
            "lora": self.lora,
            "optimizer": self.optimizer_state,
            "models": self.recipe.models.set,
        }

    @property
    def text(self) -> str:
        """The prompt as the models read it: the nano set has its own small grammar."""
        return parse(self.prompt).text() if self.recipe.models.set == "nano" else self.prompt

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    def finished(self, stage: int) -> Path:
        return self.folder / f"stage{stage}.pt"


def new_scene(recipe: Recipe, seed: int, machine: Machine) -> Scene:
    backend = kernels.choose(machine.backend, machine.device)
    return Scene(recipe.field, recipe.background, recipe.march, seed, backend).to(machine.device)


def from_checkpoint(state: dict[str, Any], folder: Path, machine: Machine) -> Run:
    """The run a checkpoint was taken from."""
    recipe = from_dict(state["recipe"])
    scene = render.build_scene(state, folder, machine.device, machine.backend)
    return Run(
        state["prompt"], recipe, folder, state["seed"], machine, scene, state["stage"], state["step"], state["lora"], state["optimizer"]
    )


def opened(prompt: str, recipe: Recipe, out: Path, seed: int, machine: Machine) -> Run:
    """A new run, or the one this prompt and seed already have in `out`.

    Raises FourdfyError (exit 2) if that one has another prompt or recipe: nothing is overwritten.
    """
    folder = run_folder(out, prompt, seed)
    about = read_json(folder / "run.json")
    if about is None and folder.exists() and any(folder.glob("*.pt")):
        raise FourdfyError(f"{folder} holds checkpoints but no readable run.json", "choose another folder with --out DIR", USAGE)
    theirs = about and from_dict(migrate.migrated(about, about.get("format", 1))["recipe"])
    if about is not None and (about.get("prompt") != prompt or theirs != recipe):
        raise FourdfyError(
            f"{folder} holds a run with other settings", "choose another folder with --out DIR, or type its own settings again", USAGE
        )
    state = checkpoint.recover(folder) if about else None
    if state is None:
        return Run(prompt, recipe, folder, seed, machine, new_scene(recipe, seed, machine))
    return from_checkpoint(state, folder, machine)


def continued(path: Path, here: Run, stage: int) -> Run:
    """The run to continue `stage` with: the checkpoint's, or the one in the folder if that is already inside `stage`.

    Raises FourdfyError (exit 2) that names the right command unless the checkpoint is from the end of the stage before
    or from inside this one, and if the folder holds the end of this stage already.
    """
    state = checkpoint.load(path)
    current = from_checkpoint(state, here.folder, here.machine)
    check_stage(path, current, stage)
    current.recipe = here.recipe
    if here.finished(stage).exists():
        raise FourdfyError(f"{here.finished(stage)} exists already", f"fourdfy info {here.finished(stage)}", USAGE)
    ahead = here.stage == stage and here.step > (current.step if current.stage == stage else 0)
    return here if ahead else current


def check_stage(path: Path, current: Run, stage: int) -> None:
    at, complete = current.stage, current.step >= current.recipe.stage(current.stage).steps
    if at == 3 and complete:
        raise FourdfyError(f"{path} is a finished run", f"fourdfy render {path} --orbit", USAGE)
    right = at + 1 if complete else at
    if stage != right:
        where = f"the end of stage {at}" if complete else f"inside stage {at} (step {current.step})"
        raise FourdfyError(f"{path} is from {where}, not what stage {stage} continues", f"fourdfy stage{right} --resume {path}", USAGE)


def write_about(current: Run, status: str) -> None:
    write_json(
        current.folder / "run.json",
        {
            "format": migrate.FORMAT,
            "prompt": current.prompt,
            "seed": current.seed,
            "status": status,
            "stage": current.stage,
            "step": current.step,
            "models": current.recipe.models.set,
            "versions": {"fourdfy": __version__, "torch": torch.__version__},
            "recipe": to_dict(current.recipe),
        },
    )

"""A run as a thing: its state, its folder's files, and where it may go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli import __version__, kernels
from fourdfy_cli.config import Recipe, from_dict, leaves, to_dict
from fourdfy_cli.errors import DAMAGED, USAGE, FourdfyError, typed
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano.prompts import parse
from fourdfy_cli.output import render
from fourdfy_cli.run.ranks import ALONE, Ranks
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint, migrate
from fourdfy_cli.store.folder import read_json, run_folder, write_json

FEW = 4  # settings to type


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
    retries: int = 0  # how often the run has gone back after numbers went bad
    vram: float | None = None  # GB to stay within; None: no bound
    rung: int = 0  # of memory.LADDER
    skipped: int = 0  # steps whose numbers were not finite, and how many of them the last ones were in a row
    skipped_in_a_row: int = 0
    threads: int = 0  # of the CPU, which this stage began with: on some processors the last bits of a sum depend on them
    ranks: Ranks = ALONE
    views: int = 0  # shots of a step, if there are more than one

    def context(self) -> StepContext:
        return StepContext(self.recipe, self.seed, self.stage, self.step, self.retries, self.ranks.draws)

    def state(self) -> dict[str, Any]:
        """Plain tensors and builtins. What a stage ends with does not tell how many threads it took."""
        ended = self.step >= self.recipe.stage(self.stage).steps
        counts = {name: getattr(self, name) for name in checkpoint.COUNTS if not (ended and name == "threads")}
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
            **{name: count for name, count in counts.items() if count},
        }

    @property
    def text(self) -> str:
        """The prompt as the models read it: the nano set has its own small grammar, and is not told of motion before something moves."""
        if self.recipe.models.set != "nano":
            return self.prompt
        subject = parse(self.prompt)
        return (subject if self.recipe.stage(self.stage).moving else replace(subject, motion=None)).text()

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
    where = state["stage"], state["step"], state.get("lora") or {}, state.get("optimizer")
    counts = {name: state.get(name, 0) for name in checkpoint.COUNTS}
    return Run(state["prompt"], recipe, folder, state["seed"], machine, scene, *where, **counts)


def opened(
    prompt: str, recipe: Recipe, out: Path, seed: int, machine: Machine, note: Callable[[str], None] = lambda _: None, views: int = 0
) -> Run:
    """A new run, or the one this prompt and seed already have in `out`, at its furthest whole checkpoint; run.json only tells of it, and is
    made again where it is lost. `note` hears of what was damaged or missing.

    Raises FourdfyError: exit 2 if the folder holds another prompt, seed, recipe or number of views (nothing is overwritten), exit 6 if all
    is damaged or of a newer version.
    """
    folder = run_folder(out, prompt, seed)
    state = checkpoint.recover(folder, note)
    if state is not None:
        _check_owner(folder, state, prompt, recipe, seed)
        if (theirs := state.get("views", 0)) != views:
            hint = f"--distributed views --gpus {theirs}" if theirs else "--distributed frames"
            raise FourdfyError(f"{folder} holds a run with {theirs or 1} shots a step, not {views or 1}", f"its own number: {hint}", USAGE)
        return from_checkpoint(state, folder, machine)
    if (about := read_about(folder / "run.json")) is not None:
        _check_owner(folder / "run.json", about, prompt, recipe, seed)
        if (about["stage"], about["step"]) > (1, 0):
            note(f"{folder} has no checkpoint any more: from step 0 again")
    return Run(prompt, recipe, folder, seed, machine, new_scene(recipe, seed, machine))


def read_about(path: Path) -> dict[str, Any] | None:
    """What a run.json tells of its run, None where that cannot be understood. Raises FourdfyError (exit 6) for one of a newer version."""
    about = {"format": 1} | (read_json(path) or {})
    kinds = {"format": int, "prompt": str, "seed": int, "recipe": dict, "stage": int, "step": int}
    if not all(type(about.get(key)) is kind for key, kind in kinds.items()) or about["format"] < 1:
        return None
    if about["format"] > migrate.FORMAT:
        message = f"{path} was written by a newer fourdfy (format {about['format']})"
        raise FourdfyError(message, "pip install --upgrade fourdfy", DAMAGED)
    try:
        known = migrate.migrated(about, about["format"])
        from_dict(known["recipe"])
    except (FourdfyError, RecursionError):
        return None
    return known


def _check_owner(path: Path, found: dict[str, Any], prompt: str, recipe: Recipe, seed: int) -> None:
    """Raises FourdfyError (exit 2) if what was found belongs to another run."""
    hint = "another folder, or its own settings again: --out outputs-2"
    if (found["prompt"], found["seed"]) != (prompt, seed):
        theirs = f"{found['prompt']!r} with seed {found['seed']}"
        raise FourdfyError(f"{path} belongs to another prompt: {theirs}, not {prompt!r} with seed {seed}", hint, USAGE)
    theirs, ours = (leaves(to_dict(one)) for one in (from_dict(found["recipe"]), recipe))
    if other := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        key = other[0]
        message = f"{path} holds a run with other settings: {key} is {theirs.get(key)}, not {ours.get(key)}"
        if len(other) <= FEW:
            hint += ", or " + typed(*(word for key in other for word in ("--set", f"{key}={theirs.get(key)}")))
        raise FourdfyError(message, hint, USAGE)


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
        raise FourdfyError(f"{here.finished(stage)} exists already", typed("fourdfy", "info", here.finished(stage)), USAGE)
    ahead = here.stage == stage and here.step > (current.step if current.stage == stage else 0)
    return here if ahead else current


def check_stage(path: Path, current: Run, stage: int) -> None:
    at, complete = current.stage, current.step >= current.recipe.stage(current.stage).steps
    if at == 3 and complete:
        raise FourdfyError(f"{path} is a finished run", typed("fourdfy", "render", path, "--orbit"), USAGE)
    right = at + 1 if complete else at
    if stage != right:
        where = f"the end of stage {at}" if complete else f"inside stage {at} (step {current.step})"
        raise FourdfyError(
            f"{path} is from {where}, not what stage {stage} continues", typed("fourdfy", f"stage{right}", "--resume", path), USAGE
        )


def write_about(current: Run, status: str, why: str = "") -> None:
    """run.json, which people and `fourdfy info` read; the first rank writes it, as safely as a checkpoint. Raises FourdfyError (exit 1)."""
    if not current.ranks.first:
        return
    write_json(
        current.folder / "run.json",
        {
            "format": migrate.FORMAT,
            "prompt": current.prompt,
            "seed": current.seed,
            "status": status,
            **({"why": why} if why else {}),
            "stage": current.stage,
            "step": current.step,
            "skipped_steps": current.skipped,
            "heartbeat": round(time.time()),
            "models": current.recipe.models.set,
            "versions": {"fourdfy": __version__, "torch": torch.__version__},
            "recipe": to_dict(current.recipe),
        },
    )

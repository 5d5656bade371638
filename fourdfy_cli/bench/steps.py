"""How fast this machine steps and how much memory it takes: every branch of every stage, on networks whose weights may mean nothing.

A bench's scene is the ball that every run starts from, and it stays that: the optimiser works, but at rate 0, and the density blob does
not grow (a trained scene does not fill its box either). Times are medians of whole steps, occupancy and update included. Memory is what
tensors take at their most: networks, scene, optimiser, and what a step needs on top, at the closest camera. GB are 1e9 bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fourdfy_cli import hybrid, kernels, memory
from fourdfy_cli.config import Branch, Recipe
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.memory import LADDER, Chunks, Machine, PeakMemory
from fourdfy_cli.run.plan import projected
from fourdfy_cli.run.train import load_guidances, make_optimizer
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.schedule import constant

LONG = 10**6  # steps of a bench's stage, so that schedules stand still over a few of them


@dataclass(frozen=True)
class Row:
    """A branch of a stage: `part` is the share of the stage in which its pictures look like this; median seconds of a step, peak bytes of
    all tensors and what of these the step itself needs, on a rung of memory.LADDER."""

    stage: int
    branch: str
    pictures: str
    part: float
    seconds: float
    bytes: int
    step_bytes: int
    rung: int

    def __str__(self) -> str:
        return (
            f"stage {self.stage} {self.branch}, {self.pictures}: {self.seconds:.3f} s a step, {self.bytes / 1e9:.2f} GB "
            f"({self.step_bytes / 1e9:.2f} for the step), {LADDER[self.rung]}"
        )


@dataclass(frozen=True)
class StageSetup:
    """One stage: networks, scene and optimiser, ready to step."""

    recipe: Recipe
    stage: int
    scene: Scene
    guidances: dict[str, Guidance]
    optimizer: torch.optim.Optimizer
    device: torch.device

    def context(self, branch: str, step: int, close: bool = False) -> StepContext:
        """A context at which Algorithm 1's coins can only draw this branch; with `close`, at the camera that sees the ball the largest."""
        stage = self.recipe.stage(self.stage)
        blob = constant(stage.blob.at(0))
        sure = replace(stage, steps=LONG, p_3d=float(branch == "multiview"), p_image=float(branch == "image"), blob=blob)
        recipe = replace(self.recipe, **{f"stage{self.stage}": sure})
        if close:
            near, narrow = recipe.cameras.distance[0], recipe.cameras.fovy[0]
            recipe = replace(recipe, cameras=replace(recipe.cameras, distance=(near, near), fovy=(narrow, narrow)))
        return StepContext(recipe, 0, self.stage, step)

    def step(self, context: StepContext, chunks: Chunks) -> float:
        """A step as a run takes it; its seconds, once the device is done."""
        began = time.perf_counter()
        hybrid.maybe_update_occupancy(self.scene, context)
        hybrid.step(self.scene, self.guidances, context, chunks)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def resident(self) -> int:
        """Bytes that stay taken between two steps."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        models = [part for guidance in self.guidances.values() for part in vars(guidance).values() if isinstance(part, Diffusion)]
        modules = [self.scene, *(network for model in models for network in (model.unet, model.vae))]
        tensors = [value for held in self.optimizer.state.values() for value in held.values() if torch.is_tensor(value)]
        tensors += [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def set_up(recipe: Recipe, stage: int, prompt: str, device: torch.device, rung: int = 0) -> StageSetup:
    """What a run on that rung would have in memory in this stage, networks included; raises FourdfyError as `train.load_guidances`."""
    guidances = load_guidances(recipe, stage, prompt, str(device), rung, 0)
    scene = Scene(recipe.field, recipe.background, recipe.march, 0, kernels.choose("auto", str(device))).to(device)
    optimizer = make_optimizer(scene, recipe, stage, guidances)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    made = StageSetup(recipe, stage, scene, guidances, optimizer, device)
    hybrid.maybe_update_occupancy(scene, made.context(next(iter(guidances)), 0))
    return made


def picture_sizes(recipe: Recipe, stage: int, branch: str) -> Iterator[tuple[str, float, int]]:
    """What a branch's pictures are in a stage: in words, for which share of it, and from which of LONG steps on."""
    settings: Branch = getattr(recipe.stage(stage), branch)
    views = {"multiview": 4, "image": 1, "video": recipe.frames}[branch]
    early = settings.fine_from if settings.coarse is not None else 0.0
    if settings.coarse is not None and early > 0:
        yield f"{views * settings.coarse_groups} of {settings.coarse[0]} x {settings.coarse[1]}", early, 0
    if early < 1:
        groups = 1 if branch == "video" else settings.groups
        yield f"{views * groups} of {settings.size[0]} x {settings.size[1]}", 1 - early, round(early * LONG)


def measure(recipe: Recipe, prompt: str, device: torch.device, steps: int, vram: float | None) -> Iterator[Row]:
    """Rows of every branch of every stage on the rung that a run would choose for `vram` GB (None: what the card has), as they come.

    Raises FourdfyError: exit 4 if no rung fits, exit 2 or 3 for the models.
    """
    gigabytes = Machine(str(device), vram).gigabytes()
    for stage in (1, 2, 3):
        rung = 0 if gigabytes is None else memory.choose(recipe, stage, gigabytes)
        here = set_up(recipe, stage, prompt, device, rung)
        for branch in recipe.stage(stage).chances():
            for pictures, part, first in picture_sizes(recipe, stage, branch):
                rung, peak, own = fitting(here, branch, first, rung)
                seconds = statistics.median(here.step(here.context(branch, first + 1 + k), LADDER[rung]) for k in range(steps))
                yield Row(stage, branch, pictures, part, seconds, peak, own, rung)
        del here


def fitting(here: StageSetup, branch: str, step: int, rung: int) -> tuple[int, int, int]:
    """The first rung, from `rung` on, on which a step does not run out of memory, its peak bytes and the step's own share of these."""
    for k in range(rung, len(LADDER)):
        peak = peak_bytes(here, branch, step, LADDER[k])
        if peak is not None:
            return k, *peak
    raise memory.out_of_memory(here.stage, memory.estimate(here.recipe, here.stage, LADDER[-1]), None)


def peak_bytes(here: StageSetup, branch: str, step: int, chunks: Chunks) -> tuple[int, int] | None:
    """Peak bytes of all tensors during a step, and of these the step's own; None if memory does not suffice."""
    before = here.resident()
    try:
        with PeakMemory(here.device) as peak:
            here.step(here.context(branch, step, close=True), chunks)
    except torch.OutOfMemoryError:
        here.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return None
    return before + peak.bytes, peak.bytes


def ladder(recipe: Recipe, prompt: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """The same video step of stage 3 on each rung: seconds, peak bytes, their ratio to the direct step's; None for what does not fit."""
    here = set_up(replace(recipe, stage3=replace(recipe.stage3, p_3d=0.0, p_image=0.0)), 3, prompt, device)
    here.step(here.context("video", 1, close=True), LADDER[-1])  # the optimiser's state is there from now on
    direct = None
    for chunks in LADDER:
        peak = peak_bytes(here, "video", 1, chunks)
        direct = direct or peak
        ratio = peak[0] / direct[0] if peak and chunks != LADDER[0] and direct else None
        yield {
            "with": str(chunks),
            "seconds": here.step(here.context("video", 1, close=True), chunks) if peak else None,
            "bytes": peak[0] if peak else None,
            "step_bytes": peak[1] if peak else None,
            "of_direct": ratio,
        }


def summary(recipe: Recipe, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Of each stage: steps, mean seconds of a step, seconds in all, peak bytes."""
    rows = list(rows)
    seconds = projected(recipe, [vars(row) for row in rows])
    return [
        {
            "stage": stage,
            "steps": recipe.stage(stage).steps,
            "seconds_a_step": seconds[stage] / recipe.stage(stage).steps,
            "seconds": seconds[stage],
            "bytes": max(row.bytes for row in rows if row.stage == stage),
        }
        for stage in seconds
    ]

"""A run: three stages of Algorithm 1 in a run folder, resumable anywhere, bitwise the same however it is cut.

All that affects the result is in the recipe, the seed and the checkpoint; schedules and random numbers are pure
functions of (seed, stage, step).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from fourdfy_cli import hybrid, memory
from fourdfy_cli.config import Recipe, Stage
from fourdfy_cli.diffusion import sets
from fourdfy_cli.diffusion.lora import load_lora_state, lora_state, trainable
from fourdfy_cli.errors import DIVERGED, FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.build import build
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import Run, continued, opened, write_about
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import Metrics, make_writable

BAD_STEPS = 5  # non-finite steps in a row that end a run


@dataclass
class StepInfo:
    """What the display needs of a step; times in seconds, memory in MB."""

    stage: int
    step: int
    steps: int
    branch: str
    losses: dict[str, float]
    rate: float
    eta_stage: float
    eta_total: float
    memory_mb: float
    counts: dict[str, int]


@runtime_checkable
class Events(Protocol):
    """Whoever watches a run: the rich display, JSON lines, or nobody."""

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None: ...
    def step(self, info: StepInfo) -> None: ...
    def preview(self, path: Path) -> None: ...
    def saved(self, path: Path) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """Where a run ended: its folder, newest checkpoint, video (None before it is rendered), wall seconds, files."""

    run_dir: Path
    checkpoint: Path
    video: Path | None
    seconds: float
    files: list[Path]


def parameter_groups(scene: Scene, stage: Stage, lora: list[nn.Parameter]) -> list[dict[str, Any]]:
    """AdamW groups of one stage; what its learning rates freeze is left out."""
    lr, model = stage.lr, scene.field
    nets = [*model.density_net.parameters(), *model.colour_net.parameters()]
    groups = [
        ("static", list(model.static.parameters()), lr.static),
        ("dynamic", list(model.dynamic.parameters()), lr.dynamic),
        ("nets", nets, lr.nets),
        ("background", list(scene.background_net.parameters()), lr.background),
        ("lora", lora, lr.lora),
    ]
    for _, parameters, rate in groups:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
    return [{"name": n, "params": p, "lr": r, "base": r} for n, p, r in groups if r > 0 and p]


def run(
    prompt: str,
    recipe: Recipe,
    out: Path,
    seed: int,
    stages: tuple[int, ...],
    resume: Path | None,
    machine: Machine,
    events: Events,
) -> RunResult:
    """Run the given stages from where this prompt and seed stand, and render the orbit after stage 3.

    With `resume`, the scene comes from that checkpoint. Raises FourdfyError: wrong stage, or a folder that holds
    something else (2), models missing (3), out of memory (4), diverged (5), damaged checkpoint (6), stopped (130, 143).
    """
    began = time.monotonic()
    current = opened(prompt, recipe, out, seed, machine)
    if resume is not None:
        current = continued(resume, current, stages[0])
    current.vram = machine.gigabytes()
    make_writable(current.folder)
    with StopSignals() as signals:
        for stage in stages:
            if stage > current.stage:
                current.stage, current.step, current.optimizer_state = stage, 0, None
            unfinished = current.step < current.recipe.stage(stage).steps or not current.finished(stage).exists()
            if stage == current.stage and unfinished:  # stopped at its last step, a stage still has its checkpoint to write
                run_stage(current, stages, events, signals)
    video = finish(current, stages, events)
    files = sorted(p for p in current.folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return RunResult(current.folder, current.finished(stages[-1]), video, time.monotonic() - began, files)


def run_stage(current: Run, stages: tuple[int, ...], events: Events, signals: StopSignals) -> None:
    """One stage from wherever the run stands to its end, with previews, metrics and checkpoints on the way."""
    stage = current.recipe.stage(current.stage)
    if current.vram is not None:
        current.rung = max(current.rung, memory.choose(current.recipe, current.stage, current.vram))
    write_about(current, "running")
    guidances = load_guidances(current.recipe, current.stage, current.text, current.machine.device, current.rung, current.seed)
    if (network := lora_network(guidances)) is not None and current.lora:
        load_lora_state(network, current.lora)
    optimizer = make_optimizer(current.scene, current.recipe, current.stage, guidances)
    if current.optimizer_state is not None:
        optimizer.load_state_dict(current.optimizer_state)
    metrics = Metrics(current.folder / "metrics.jsonl", current.stage, current.step)
    events.start(current.stage, stages, stage.steps, current.step)
    pace = Pace(current, stages)
    saved, bad = time.monotonic(), 0
    while current.step < stage.steps:
        hybrid.maybe_update_occupancy(current.scene, current.context())
        outcome = step_within_memory(current, guidances, optimizer, events)
        bad = bad + 1 if not update(optimizer, current, outcome) else 0
        if bad >= BAD_STEPS:
            hint = f'fourdfy generate "{current.prompt}" --seed {current.seed + 1}'
            raise FourdfyError(f"diverged: {bad} steps without a finite gradient", hint, DIVERGED)
        current.step += 1
        info = pace.info(outcome, current)
        metrics.write(
            {
                "stage": current.stage,
                "step": current.step - 1,
                "branch": outcome.branch,
                **outcome.losses,
                "rung": current.rung,
                "seconds": round(pace.elapsed, 2),
            }
        )
        events.step(info)
        if current.step % current.recipe.preview_every == 0 or current.step == stage.steps or current.step == 10:
            events.preview(preview(current))
        stop = signals.raised is not None
        if stop or time.monotonic() - saved > 60 * current.recipe.save_minutes:
            collect_state(current, optimizer, guidances)
            checkpoint.save_last(current.folder, current.state())
            events.saved(current.last)
            saved = time.monotonic()
        if stop:
            write_about(current, "interrupted")
            raise signals.stop("type the same command again to go on")
    metrics.close()
    collect_state(current, optimizer, guidances)
    current.optimizer_state = None
    checkpoint.save(current.finished(current.stage), current.state())
    checkpoint.save_last(current.folder, current.state())
    events.saved(current.finished(current.stage))


def step_within_memory(current: Run, guidances: dict[str, Guidance], optimizer: torch.optim.Optimizer, events: Events) -> hybrid.Outcome:
    """A step of Algorithm 1. If memory does not suffice, the same step again in smaller pieces, which stay for the rest
    of the run; raises FourdfyError (exit 4) below the last rung of the ladder."""
    while True:
        try:
            return hybrid.step(current.scene, guidances, current.context(), memory.LADDER[current.rung])
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        current.rung += 1
        if current.rung == len(memory.LADDER):
            least = memory.estimate(current.recipe, current.stage, memory.LADDER[-1])
            raise memory.out_of_memory(current.stage, least, current.vram)
        events.note(f"out of memory at step {current.step}; from here on {memory.LADDER[current.rung]}")


def preview(current: Run) -> Path:
    """A sheet of four sides by four times (one in the static stages)."""
    path = current.folder / "previews" / f"stage{current.stage}-{current.step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    return render.preview(current.scene, current.recipe, path, times=4 if current.recipe.stage(current.stage).moving else 1)


def load_guidances(recipe: Recipe, stage: int, prompt: str, device: str, rung: int, seed: int) -> dict[str, Guidance]:
    """The guidances that a stage draws, in half precision if on a GPU; on a rung that parks networks they start on the CPU
    (hybrid.make_room fetches what a step needs). Raises FourdfyError (exit 2, 3) as `sets.specs` and `build`."""
    branches = tuple(recipe.stage(stage).chances())
    specs = sets.specs(recipe.models, sets.roles(branches, recipe.vsd))
    dtype = torch.float32 if device == "cpu" else torch.float16
    return build(recipe, prompt, specs, "cpu" if memory.LADDER[rung].park else device, dtype, branches, seed)


def lora_network(guidances: dict[str, Guidance]) -> nn.Module | None:
    """The network that Eq. 5 trains beside the scene, if the stage draws single pictures."""
    return cast(VariationalGuidance, guidances["image"]).lora_unet if "image" in guidances else None


def make_optimizer(scene: Scene, recipe: Recipe, stage: int, guidances: dict[str, Guidance]) -> torch.optim.AdamW:
    """AdamW over what a stage trains, LoRA included; betas and eps are the released code's."""
    network = lora_network(guidances)
    lora = [] if network is None else [p for _, p in trainable(network)]
    return torch.optim.AdamW(
        parameter_groups(scene, recipe.stage(stage), lora), betas=(0.9, 0.99), eps=1e-15, weight_decay=recipe.weight_decay, fused=True
    )


def collect_state(current: Run, optimizer: torch.optim.Optimizer, guidances: dict[str, Guidance]) -> None:
    """Bring LoRA and optimizer into the run's state."""
    if (network := lora_network(guidances)) is not None:
        current.lora = lora_state(network)
    current.optimizer_state = optimizer.state_dict()


def update(optimizer: torch.optim.Optimizer, current: Run, outcome: hybrid.Outcome) -> bool:
    """One AdamW step at this context's rates; skipped (False) if a gradient is not finite."""
    context = current.context()
    factor = context.settings.lr_decay.at(context.progress)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = all(torch.isfinite(p.grad).all() for p in parameters) and all(map(math.isfinite, outcome.losses.values()))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    current.scene.blob_std.fill_(context.settings.blob.at(context.progress))
    return finite


class Pace:
    """Speed, remaining time and counts of a stage, from the last steps."""

    def __init__(self, current: Run, stages: tuple[int, ...]):
        self.began = time.monotonic()
        self.recent: deque[float] = deque([self.began], maxlen=50)
        self.counts: Counter[str] = Counter()
        self.later = sum(current.recipe.stage(s).steps for s in stages if s > current.stage)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def info(self, outcome: hybrid.Outcome, current: Run) -> StepInfo:
        self.recent.append(time.monotonic())
        self.counts[outcome.branch] += 1
        each = (self.recent[-1] - self.recent[0]) / (len(self.recent) - 1)
        if self.counts.total() == 1:
            self.recent.popleft()  # the first step may compile: no measure of those to come
        steps = current.recipe.stage(current.stage).steps
        left = each * (steps - current.step)
        unit = 1024**2 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        return StepInfo(
            current.stage, current.step, steps, outcome.branch, outcome.losses, 1 / max(each, 1e-9), left, left + each * self.later, memory,
            dict(self.counts),
        )  # fmt: skip


def finish(current: Run, stages: tuple[int, ...], events: Events) -> Path | None:
    """Render the orbit if the last stage is done, and mark the run."""
    if stages[-1] != 3:
        write_about(current, f"stage {stages[-1]} done")
        return None
    video = current.folder / "orbit.mp4"
    if not video.exists():
        events.note("rendering the orbit video")
        render.orbit(current.scene, current.recipe, video)
    write_about(current, "done")
    return video

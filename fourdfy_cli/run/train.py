"""A run: three stages of Algorithm 1 in a run folder, resumable anywhere, bitwise the same however it is cut.

All that affects the result is in the recipe, the seed and the checkpoint; schedules and random numbers are pure
functions of (seed, stage, step).
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourdfy_cli import hybrid, memory
from fourdfy_cli.config import Recipe, Stage
from fourdfy_cli.diffusion import sets
from fourdfy_cli.diffusion.lora import load_lora_state, trainable
from fourdfy_cli.errors import DIVERGED, FAILURE, INTERRUPTED, MEMORY, STOPPED, FourdfyError, typed
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.build import build, check_clips, cut_texts
from fourdfy_cli.losses import toward_rest
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import ffmpeg, render
from fourdfy_cli.run.keeper import Bystander, Keeper, lora_network
from fourdfy_cli.run.processors import allowed
from fourdfy_cli.run.progress import Events, Pace
from fourdfy_cli.run.ranks import Ranks, joined
from fourdfy_cli.run.result import RunResult
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import Run, continued, from_checkpoint, new_scene, opened, write_about
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import make_writable, run_folder
from fourdfy_cli.store.lock import RunLock
from fourdfy_cli.store.optimizer import load_optimizer

BAD_STEPS, RETRIES = 5, 3  # non-finite steps in a row after which a run goes back, and how often it does


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

    With `resume`, the scene comes from that checkpoint. Raises FourdfyError: wrong stage, a folder that holds something else or that
    another process works in (2), models missing (3), out of memory (4), diverged (5), damaged checkpoint (6), stopped (75, 129, 130, 143),
    another rank gone (1).
    """
    began, folder = time.monotonic(), run_folder(out, prompt, seed)
    with joined(machine) as ranks:
        if not ranks.first:
            return RunResult(folder, *follow(folder, stages, machine, events, ranks), time.monotonic() - began, [], prompt)
        new = not folder.exists()
        make_writable(folder)
        try:
            with RunLock(folder) as lock, StopSignals() as signals:
                current = opened(prompt, recipe, out, seed, machine, events.note, ranks.views)
                if resume is not None:
                    current = continued(resume, current, stages[0])
                current.ranks, current.views = ranks, ranks.views
                ranks.shared(current.state())
                current.vram = machine.gigabytes()
                video = run_stages(current, stages, events, signals, lock)
        finally:
            if new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return RunResult(folder, current.finished(stages[-1]), video, time.monotonic() - began, files, prompt)


def follow(folder: Path, stages: tuple[int, ...], machine: Machine, events: Events, ranks: Ranks) -> tuple[Path, None]:
    """What another rank than the first does: the same stages from the same state, and no files."""
    with StopSignals() as signals:
        current = from_checkpoint(ranks.shared(None), folder, machine)
        current.ranks, current.vram = ranks, machine.gigabytes()
        run_stages(current, stages, events, signals, None)
    return current.finished(stages[-1]), None


def run_stages(current: Run, stages: tuple[int, ...], events: Events, signals: StopSignals, lock: RunLock | None) -> Path | None:
    """All stages, then the orbit; whatever ends a run, run.json tells it truly."""
    try:
        prepare(current, stages, events)
        for stage in stages:
            if stage > current.stage:
                current.stage, current.step, current.optimizer_state, current.threads = stage, 0, None, 0
            if stage == current.stage:
                take_threads(current, events)
            unfinished = current.step < current.recipe.stage(stage).steps or not current.finished(stage).exists()
            while stage == current.stage and unfinished:  # stopped at its last step, a stage still has its checkpoint to write
                unfinished = not run_stage(current, stages, events, signals, lock)
        return finish(current, stages, events)
    except BaseException as error:
        signals.leaving = True
        code = error.code if isinstance(error, FourdfyError) else INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILURE
        if lock is not None and not current.folder.is_dir():
            lock.beat()  # says that the folder is gone
        with contextlib.suppress(FourdfyError, OSError):
            write_about(current, "interrupted" if code in STOPPED else "failed", str(error) or type(error).__name__)
        raise


def prepare(current: Run, stages: tuple[int, ...], events: Events) -> None:
    """What would stop or mislead a run hours later, before its first step: a prompt that is longer than a text encoder reads is told
    of. Raises FourdfyError: exit 3 for models that are missing, or an ffmpeg that cannot make the video."""
    branches = sets.drawn(current.recipe, stages)
    specs = sets.specs(current.recipe.models, sets.roles(branches, current.recipe.vsd))
    check_clips(current.recipe, specs)
    for line in cut_texts(current.recipe, current.text, specs, branches):
        events.note(line)
    if 3 in stages and (missing := ffmpeg.probe()):
        raise missing


def take_threads(current: Run, events: Events) -> None:
    """Compute with what the machine has to spare, but in the middle of a stage with as many threads as before the cut, so that it ends in
    the same bits."""
    if current.machine.threads is not None:
        spare = current.machine.threads()
        number = min(current.threads, allowed()) or spare
        if number != spare:
            what = f"stage {current.stage} goes on with {number} of the CPU's threads, as before, where {spare} would do now"
            events.note(f"{what}; if that is slow: --threads {spare}, which may round differently")
        torch.set_num_threads(number)
    current.threads = torch.get_num_threads()


def run_stage(current: Run, stages: tuple[int, ...], events: Events, signals: StopSignals, lock: RunLock | None) -> bool:
    """One stage from wherever the run stands to its end, with previews, metrics and checkpoints on the way; False if its numbers went bad
    and the run has gone back to its last checkpoint."""
    stage, ranks = current.recipe.stage(current.stage), current.ranks
    if current.vram is not None:
        current.rung = max(current.rung, memory.choose(current.recipe, current.stage, current.vram))
    write_about(current, "running")
    models = load_guidances(current.recipe, current.stage, current.text, current.machine.device, current.rung, current.seed)
    guidances = ranks.score_together(models)
    if (network := lora_network(guidances)) is not None and current.lora:
        load_lora_state(network, current.lora)
    optimizer = make_optimizer(current.scene, current.recipe, current.stage, guidances)
    if current.optimizer_state is not None:
        load_optimizer(optimizer, current.optimizer_state, current.last)
    keeper = Bystander(current, optimizer, guidances) if lock is None else Keeper(current, optimizer, guidances, lock, events)
    events.start(current.stage, stages, stage.steps, current.step)
    pace = Pace(current, stages)
    try:
        while current.step < stage.steps:
            keeper.begin()
            hybrid.maybe_update_occupancy(current.scene, current.context())
            outcome = step_within_memory(current, guidances, optimizer, events)
            ranks.average(optimizer, outcome.losses)
            bad = update(optimizer, current, outcome)
            if bad and not tolerable(current, outcome, bad, events):
                return go_back(current, outcome, bad, events)
            current.step += 1
            keeper.note(outcome, bad, pace)
            keeper.between(signals)
            stop = ranks.stop(signals.raised)  # a signal that comes later is for the next step
            keeper.maybe(stop=stop is not None)
            if stop is not None:
                signals.raised = stop
                raise signals.stop("type the same command again to go on")
    except BaseException as error:
        keeper.rescue(error)
        raise
    finally:
        keeper.close()
    keeper.finish()
    return True


def tolerable(current: Run, outcome: hybrid.Outcome, bad: str, events: Events) -> bool:
    """Count a step that was skipped, and tell of it; False for the last of BAD_STEPS in a row, over the borders of stages."""
    current.skipped += 1
    current.skipped_in_a_row += 1
    events.note(f"step {current.step} of stage {current.stage} skipped: {bad} is not finite ({outcome.branch} branch)")
    return current.skipped_in_a_row < BAD_STEPS


def go_back(current: Run, outcome: hybrid.Outcome, bad: str, events: Events) -> bool:
    """Back to the last good checkpoint, with another stream of noise and half the learning rates; False. Raises FourdfyError (exit 5) with
    what went wrong first, after RETRIES times."""
    level = f" at noise level {outcome.losses['t']:.0f}" if "t" in outcome.losses else ""
    what = f"{BAD_STEPS} steps without a finite gradient: {bad} in the {outcome.branch} branch{level}, step {current.step}"
    if current.retries >= RETRIES:
        hint = typed("fourdfy", "generate", current.prompt, "--seed", current.seed + 1)
        raise FourdfyError(f"diverged, and again after going back {RETRIES} times: {what}", hint, DIVERGED)
    state = current.ranks.shared(checkpoint.recover(current.folder, events.note) if current.ranks.first else None)
    if state is not None:
        good = from_checkpoint(state, current.folder, current.machine)
        here = good.stage == current.stage
        current.scene, current.lora = good.scene, good.lora
        current.step, current.optimizer_state = (good.step, good.optimizer_state) if here else (0, None)
    elif current.stage == 1:
        current.scene, current.step, current.optimizer_state = new_scene(current.recipe, current.seed, current.machine), 0, None
    current.retries, current.skipped_in_a_row = current.retries + 1, 0
    events.note(f"{what}; back to step {current.step} of stage {current.stage}, with half the learning rates")
    return False


def step_within_memory(current: Run, guidances: dict[str, Guidance], optimizer: torch.optim.Optimizer, events: Events) -> hybrid.Outcome:
    """A step of Algorithm 1. If memory does not suffice, the same step again in smaller pieces, which stay for the rest
    of the run; raises FourdfyError (exit 4) below the last rung of the ladder, and where other ranks are in the same step."""
    while True:
        try:
            return hybrid.step(current.scene, guidances, current.context(), replace(memory.LADDER[current.rung], share=current.ranks.share))
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if current.ranks.size > 1:
            raise FourdfyError(f"out of memory with {memory.LADDER[current.rung]}", "smaller pieces, for GB that it has: --vram 16", MEMORY)
        current.rung += 1
        if current.rung == len(memory.LADDER):
            least = memory.estimate(current.recipe, current.stage, memory.LADDER[-1])
            raise memory.out_of_memory(current.stage, least, current.vram)
        events.note(f"out of memory at step {current.step}; from here on {memory.LADDER[current.rung]}")


def load_guidances(recipe: Recipe, stage: int, prompt: str, device: str, rung: int, seed: int) -> dict[str, Guidance]:
    """The guidances that a stage draws, in half precision if on a GPU; on a rung that parks networks they start on the CPU
    (hybrid.make_room fetches what a step needs). Raises FourdfyError (exit 2, 3) as `sets.specs` and `build`."""
    branches = tuple(recipe.stage(stage).chances())
    specs = sets.specs(recipe.models, sets.roles(branches, recipe.vsd))
    dtype = torch.float32 if device == "cpu" else torch.float16
    return build(recipe, prompt, specs, "cpu" if memory.LADDER[rung].park else device, dtype, branches, seed)


def make_optimizer(scene: Scene, recipe: Recipe, stage: int, guidances: dict[str, Guidance]) -> torch.optim.AdamW:
    """AdamW over what a stage trains, LoRA included; betas and eps are the released code's."""
    network = lora_network(guidances)
    lora = [] if network is None else [p for _, p in trainable(network)]
    return torch.optim.AdamW(
        parameter_groups(scene, recipe.stage(stage), lora), betas=(0.9, 0.99), eps=1e-15, weight_decay=recipe.weight_decay, fused=True
    )


def update(optimizer: torch.optim.Optimizer, current: Run, outcome: hybrid.Outcome) -> str:
    """One AdamW step at this step's rates; skipped if a loss or gradient is not finite, whose name is returned then, else "". A gradient is
    asked for its sum, which is finite only if all of it is."""
    context = current.context()
    factor = context.settings.lr_decay.at(context.progress) * 0.5**current.retries
    bad = next((name for name, value in outcome.losses.items() if not math.isfinite(value)), "")
    for group in optimizer.param_groups:
        if not bad and not all(bool(torch.isfinite(p.grad.sum())) for p in group["params"] if p.grad is not None):
            bad = f"the gradient of {group['name']}"
    if not bad:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        optimizer.step()
        for group in optimizer.param_groups:
            if group["name"] == "dynamic" and context.settings.l1_time:
                for features in group["params"]:
                    toward_rest(features, context.settings.l1_time * group["lr"])
        current.skipped_in_a_row = 0
    optimizer.zero_grad(set_to_none=True)
    current.scene.blob_std.fill_(context.settings.blob.at(context.progress))
    return bad


def finish(current: Run, stages: tuple[int, ...], events: Events) -> Path | None:
    """Render the orbit if the last stage is done, and mark the run: the first rank."""
    if not current.ranks.first:
        return None
    if stages[-1] != 3:
        write_about(current, f"stage {stages[-1]} done")
        return None
    video = current.folder / "orbit.mp4"
    if not video.exists():
        events.note("rendering the orbit video")
        render.orbit(current.scene, current.recipe, video)
    write_about(current, "done")
    return video

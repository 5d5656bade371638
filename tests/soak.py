"""`python tests/soak.py RUN --minutes N`: one run after another in the folder RUN, cut at random by kill -9, signals, a full disk and lack
of memory, and gone on with until it is done; each must end with the digests and the metrics of the run that nobody cut.

Numbers that are not finite come at the same steps in both, singly and in pairs: such steps are skipped, which changes the result. Steps
are real ones of the nano models at a tiny size; --drawn has steps that cost nothing. Ends with status 1 at the first promise broken.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from faults import after, cheap, damaged, ended, folder_of, forked, go, place, recipe, result

from fourdfy_cli import hybrid, memory
from fourdfy_cli.config import Recipe
from fourdfy_cli.errors import STOPPED
from fourdfy_cli.output import render
from fourdfy_cli.run.signals import CODES
from fourdfy_cli.store.folder import Metrics

BRANCHES = [f"stage{s}.{branch}" for s in (1, 2, 3) for branch in ("multiview", "image", "video")]
SMALL = [f"{one}.{key}" for one in BRANCHES for key in ("size.0=8", "size.1=8", "fine_from=0")]
MIXED = ["stage1.steps=4", "stage2.steps=6", "stage3.steps=6", "stage3.p_3d=0.4", "stage3.p_image=0.4", "vsd.rank=1", "preview_every=1000"]
POISONED = {(1, 1), (2, 2), (2, 3), (3, 4)}  # stage and step
OUT_OF_MEMORY = 4


def poisoned(real: Callable[..., hybrid.Outcome]) -> Callable[..., hybrid.Outcome]:
    """Steps some of which have a gradient that is not finite."""

    def step(scene: Any, guidances: Any, context: hybrid.StepContext, chunks: Any = memory.DIRECT) -> hybrid.Outcome:
        outcome = real(scene, guidances, context, chunks)
        if (context.stage, context.step) in POISONED:
            next(p for p in scene.parameters() if p.grad is not None).grad.view(-1)[0] = torch.nan
        return outcome

    return step


def full_disk(at: int) -> None:
    """From the at-th write on, this process's disk is full."""
    count = [0]

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] > at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return called

    os.fsync, Path.write_text = refusing(os.fsync), refusing(Path.write_text)
    begin = Metrics.__init__

    def opened(metrics: Any, *args: Any) -> None:
        begin(metrics, *args)
        metrics.file = types.SimpleNamespace(write=refusing(metrics.file.write), fileno=metrics.file.fileno, close=metrics.file.close)

    Metrics.__init__ = opened


def out_of_memory(times: int, at: int) -> None:
    """Memory does not suffice at the at-th step, and then some times more."""
    real, count = hybrid.step, [0]

    def step(*args: Any) -> hybrid.Outcome:
        count[0] += 1
        outcome = real(*args)
        if at <= count[0] < at + times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outcome

    hybrid.step = step


def skipped(metrics: list[dict[str, Any]]) -> int:
    return sum("skipped" in row for row in metrics)


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}


class Soak:
    """Runs in `out` under attack; `seconds` is how long an uncut run takes."""

    def __init__(self, out: Path, wanted: Recipe, seconds: float, seed: int):
        self.out, self.wanted, self.seconds, self.rng = out, wanted, seconds, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.runs, self.failed = 0, ""

    def attempt(self) -> int:
        """Start or go on, with one fault on the way; returns the exit code."""
        kind = self.rng.choice(["kill", "kill", "signal", "signal", "twice", "disk", "memory", "no memory", "none"])
        at, steps = self.rng.uniform(0, self.seconds), self.rng.randrange(1, 20)
        begin = {"disk": lambda: full_disk(steps), "memory": lambda: out_of_memory(2, steps), "no memory": lambda: out_of_memory(99, steps)}
        child = forked(lambda: (begin.get(kind, lambda: None)(), go(self.out, self.wanted)))
        number = self.rng.choice(sorted(CODES))
        if kind == "kill":
            code, right = after(at, child, signal.SIGKILL), (-signal.SIGKILL,)
        elif kind == "signal":  # before the program listens it has done nothing, and the signal ends it
            code, right = after(at, child, number), (CODES[number], -number, 130)
        elif kind == "twice":
            time.sleep(at)
            os.kill(child, signal.SIGINT)
            code, right = after(0.05, child, signal.SIGINT), (130, -signal.SIGINT)
        else:
            code, right = ended(child), {"disk": (1,), "no memory": (OUT_OF_MEMORY,)}.get(kind, ())
        self.faults[kind if code else "none"] += 1
        if code not in (0, *right):
            self.failed = f"{kind}: exit code {code}"
        return code

    def run(self, right: Any) -> None:
        """One run to its end."""
        before, folder = (1, 0), folder_of(self.out)
        while not self.failed:
            was = told(folder)
            code = self.attempt()
            broken = damaged(folder)
            if broken or (folder.exists() and place(folder) < before):
                self.failed = f"after {sum(self.faults.values())} attempts: {broken}, {place(folder)} after {before}"
            before = place(folder) if folder.exists() else before
            about = told(folder)
            if code in STOPPED and about != was and about["status"] not in ("interrupted", "done"):  # the same: left before it began
                self.failed = f"run.json says {about['status']} after exit code {code}"
            if code == 0:
                break
        if not self.failed and (result(folder) != right or list(folder.rglob(".*")) or about["skipped_steps"] != skipped(right[1])):
            self.failed = "the end is not that of the run that nobody cut"
        self.runs += 1


def soak(out: Path, minutes: float, drawn: bool, seed: int) -> dict[str, Any]:
    """What happened in so many minutes, and what was not as promised ("" if all was)."""
    torch.set_num_threads(1)
    memory.LADDER = (memory.Chunks(), memory.Chunks(None, None), memory.Chunks(None, None))  # rungs that compute alike
    if drawn:
        cheap(setattr)
    render.orbit = lambda scene, recipe, path: path.write_bytes(b"") and path
    hybrid.step = poisoned(hybrid.step)
    wanted = recipe() if drawn else recipe(*SMALL, *MIXED)
    for name in ("first", "clean"):  # the first one loads what is loaded when it is needed
        shutil.rmtree(out / name, ignore_errors=True)
        began = time.monotonic()
        go(out / name, wanted)
    seconds, right = time.monotonic() - began, result(folder_of(out / "clean"))
    task = Soak(out / "soaked", wanted, seconds, seed)
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until and not task.failed:
        shutil.rmtree(task.out, ignore_errors=True)
        task.run(right)
    counts = {"runs": task.runs, "attempts": sum(task.faults.values()), "faults": dict(task.faults)}
    return counts | {"digest": right[0][2], "failed": task.failed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="RUN")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = soak(given.out, given.minutes, given.drawn, given.seed)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["failed"]))

"""What a run tells whoever watches it."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fourdfy_cli import hybrid
from fourdfy_cli.run.state import Run


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


@runtime_checkable
class Onlooker(Protocol):
    """Events that may look at the scene between two steps, and keep the run waiting as long as `waiting()` says that it may."""

    def between(self, current: Run, waiting: Callable[[], bool]) -> None: ...


class PrintedEvents:
    """Events as lines of plain text, one every `every` seconds at most and one for every stage, for whoever calls from Python."""

    def __init__(self, every: float = 10.0):
        self.every, self.last = every, -math.inf

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        self.note(f"stage {stage}/3: {steps} steps" + (f", going on after step {done}" if done else ""))

    def step(self, info: StepInfo) -> None:
        now = time.monotonic()
        if now - self.last >= self.every or info.step == info.steps:
            self.last = now
            self.note(f"stage {info.stage}/3 step {info.step}/{info.steps}, {info.rate:.1f} it/s, {info.eta_total:.0f} s left in all")

    def preview(self, path: Path) -> None:
        """Left to the folder."""

    def saved(self, path: Path) -> None:
        """Left to the folder."""

    def note(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")


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
        about = current.stage, current.step, steps, outcome.branch, outcome.losses
        return StepInfo(*about, 1 / max(each, 1e-9), left, left + each * self.later, peak_memory(), dict(self.counts))


def peak_memory() -> float:
    """The most memory this process has had so far, MB; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

"""One training loop for every nano model: AdamW, warm-up and decay, EMA, stateless randomness, resumable."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourdfy_cli.errors import DAMAGED, FourdfyError, typed
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.files import replacing
from fourdfy_cli.store.optimizer import load_optimizer

Loss = Callable[[np.random.Generator, torch.Generator], Tensor]


@dataclass(frozen=True)
class Plan:
    """How long, how fast and on how much one part is trained."""

    steps: int
    batch: int
    rate: float
    pool: int  # things drawn to train on
    ema: float = 0.998
    decay_from: float = 0.35  # fraction of the steps after which the rate falls linearly to 2 %; 1: never


def averaged(folder: Path) -> tuple[dict[str, dict[str, Tensor]], int]:
    """The averaged weights of each module of the training in a folder, and the step they are from."""
    state = read_state(folder / "state.pt")
    return state["average"], state["step"]


def read_state(path: Path) -> dict[str, Any]:
    """What `Fit.save` wrote. Raises FourdfyError (exit 6) for a file that is damaged or something else."""
    try:
        state = torch.load(path, weights_only=True)
    except checkpoint.UNREADABLE:
        state = None
    kinds = {"modules": dict, "optimizer": dict, "average": dict, "step": int}
    if not isinstance(state, dict) or not all(type(state.get(key)) is kind for key, kind in kinds.items()):
        raise FourdfyError(f"{path} is damaged, or holds no training", typed("ls", "-l", path), DAMAGED)
    return state


@dataclass
class Fit:
    """A training run in `folder`: `state.pt` to resume from, `log.jsonl`, and the averaged weights at the end."""

    name: str
    modules: dict[str, nn.Module]
    plan: Plan
    folder: Path
    seed: int = 0
    save_seconds: float = 60.0
    report: Callable[[str], None] = print
    step: int = 0
    average: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.plan.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.average = {n: {k: v.detach().clone() for k, v in m.state_dict().items()} for n, m in self.modules.items()}

    def rate(self) -> float:
        """Learning rate: 100 steps of warm-up, constant, then linear decay; a pure function of the step."""
        done = self.step / self.plan.steps
        fall = max(0.0, done - self.plan.decay_from) / max(1 - self.plan.decay_from, 1e-9)
        return self.plan.rate * min(1.0, (self.step + 1) / 100) * (1 - 0.98 * fall)

    def random(self) -> tuple[np.random.Generator, torch.Generator]:
        """Generators seeded from (seed, part, step): resuming needs no random state."""
        key = (self.seed, zlib.crc32(self.name.encode()), self.step)
        return np.random.default_rng(key), torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def resume(self) -> bool:
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = read_state(path)
        for name, module in self.modules.items():
            for part in ("modules", "average"):
                checkpoint.check_tensors(path, f"{part}.{name}", state[part].get(name), module.state_dict())
            module.load_state_dict(state["modules"][name])
        load_optimizer(self.optimizer, state["optimizer"], path)
        self.average, self.step = state["average"], state["step"]
        return True

    def save(self) -> None:
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        state = {"modules": modules, "optimizer": self.optimizer.state_dict(), "average": self.average, "step": self.step}
        with replacing(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def run(self, loss: Loss) -> None:
        """Train to the plan's last step; leave the averaged weights in the modules."""
        began = saved = time.monotonic()
        first, recent = self.step, []
        while self.step < self.plan.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            value = loss(*self.random())
            self.optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            recent.append(value.item())
            if self.step % 100 == 0 or self.step == self.plan.steps:
                speed = (self.step - first) / (time.monotonic() - began)
                self._log({"step": self.step, "loss": float(np.mean(recent)), "rate": self.rate(), "steps_per_second": speed})
                recent.clear()
            if time.monotonic() - saved > self.save_seconds or self.step == self.plan.steps:
                self.save()
                saved = time.monotonic()
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])
            module.eval()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        for name, module in self.modules.items():
            state = module.state_dict()
            keys = [key for key, value in state.items() if value.is_floating_point()]
            torch._foreach_lerp_([self.average[name][key] for key in keys], [state[key] for key in keys], 1 - keep)

    def _log(self, row: dict[str, float]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (self.plan.steps - self.step) / max(row["steps_per_second"], 1e-9)
        self.report(
            f"{self.name} {self.step}/{self.plan.steps}  loss {row['loss']:.4f}  {row['steps_per_second']:.2f} steps/s  {left:.0f} s left"
        )

"""One training loop for every nano model: AdamW, warm-up and decay, EMA, stateless randomness, resumable; on a GPU, what a step learns
from is drawn ahead by processes beside it."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fourdfy_cli.errors import DAMAGED, FourdfyError, typed
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.files import replacing
from fourdfy_cli.store.optimizer import load_optimizer

Draw = Callable[[np.random.Generator, torch.Generator], tuple]  # what a step learns from: tensors, and numbers
Loss = Callable[..., Tensor]  # of what was drawn, its tensors on the training's device


class Recorded:
    """A loss, a module that makes a number of tensors, and on a GPU its gradients too, as CUDA graphs from the first call on, in bfloat16
    where that is enough: one by one, the thousands of kernels of a small network take five times as long to launch as to run."""

    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.graph: Any = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        if not tensors[0].is_cuda:
            return self.loss(*tensors)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            self.graph = self.graph or torch.cuda.make_graphed_callables(self.loss, tensors, allow_unused_input=True)
            return self.graph(*tensors)


@dataclass(frozen=True)
class Plan:
    """How long, how fast and on how much one part is trained."""

    steps: int
    batch: int
    rate: float
    pool: int  # things drawn to train on
    ema: float = 0.998
    decay_from: float = 0.35  # fraction of the steps after which the rate falls linearly to 2 %; 1: never


class Drawn(Dataset):
    """Item i is make(first + i), up to make(last - 1)."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int):
        self.make, self.first, self.count = make, first, max(0, last - first)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.make(self.first + i)


def ahead(make: Callable[[int], Any], first: int, last: int, device: str) -> Iterator[Any]:
    """make(first) to make(last - 1) in order; for a GPU, made by processes that run ahead, one for each of torch's threads but two."""
    gpu = device != "cpu"
    workers = max(0, torch.get_num_threads() - 2) if gpu and "fork" in get_all_start_methods() else 0
    context = "fork" if workers else None  # which shares what `make` draws from with them
    data = Drawn(make, first, last)
    return iter(DataLoader(data, None, num_workers=workers, pin_memory=gpu, multiprocessing_context=context, generator=torch.Generator()))


def averaged(folder: Path) -> tuple[dict[str, dict[str, Tensor]], int]:
    """The averaged weights of each module of the training in a folder, and the step they are from."""
    state = read_state(folder / "state.pt")
    return state["average"], state["step"]


def read_state(path: Path) -> dict[str, Any]:
    """What `Fit.save` wrote. Raises FourdfyError (exit 6) for a file that is damaged or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except checkpoint.UNREADABLE:
        state = None
    kinds = {"modules": dict, "optimizer": dict, "average": dict, "step": int}
    if not isinstance(state, dict) or not all(type(state.get(key)) is kind for key, kind in kinds.items()):
        raise FourdfyError(f"{path} is damaged, or holds no training", typed("ls", "-l", path), DAMAGED)
    return state


@dataclass
class Fit:
    """A training run in `folder`: `state.pt` to resume from, `log.jsonl`, and the averaged weights, on the CPU, at the end."""

    name: str
    modules: dict[str, nn.Module]
    plan: Plan
    folder: Path
    seed: int = 0
    device: str = "cpu"
    save_seconds: float = 60.0
    report: Callable[[str], None] = print
    step: int = 0
    average: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for module in self.modules.values():
            module.to(self.device)
        self.parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.plan.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.average = {n: {k: v.detach().clone() for k, v in m.state_dict().items()} for n, m in self.modules.items()}

    def rate(self) -> float:
        """Learning rate: 100 steps of warm-up, constant, then linear decay; a pure function of the step."""
        done = self.step / self.plan.steps
        fall = max(0.0, done - self.plan.decay_from) / max(1 - self.plan.decay_from, 1e-9)
        return self.plan.rate * min(1.0, (self.step + 1) / 100) * (1 - 0.98 * fall)

    def random(self, step: int) -> tuple[np.random.Generator, torch.Generator]:
        """Generators seeded from (seed, part, step): resuming needs no random state."""
        key = (self.seed, zlib.crc32(self.name.encode()), step)
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
        self.average = {n: {k: v.to(self.device) for k, v in tensors.items()} for n, tensors in state["average"].items()}
        self.step = state["step"]
        return True

    def save(self) -> None:
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        state = {"modules": modules, "optimizer": self.optimizer.state_dict(), "average": self.average, "step": self.step}
        with replacing(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def run(self, draw: Draw, loss: Loss) -> None:
        """Train to the plan's last step; leave the averaged weights in the modules."""
        began = saved = time.monotonic()
        first, recent, pairs = self.step, [], self._pairs()
        for drawn in ahead(lambda step: draw(*self.random(step)), self.step, self.plan.steps, self.device):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            value = loss(*(x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for x in drawn))
            self.optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(*pairs, 1 - keep)
            recent.append(value.detach().clone())
            if self.step % 100 == 0 or self.step == self.plan.steps:
                mean = torch.stack(recent).mean().item()
                speed = (self.step - first) / (time.monotonic() - began)
                self._log({"step": self.step, "loss": mean, "rate": self.rate(), "steps_per_second": speed})
                recent.clear()
            if time.monotonic() - saved > self.save_seconds or self.step == self.plan.steps:
                self.save()
                saved = time.monotonic()
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])
            module.to("cpu").eval()

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averaged tensors and those they follow."""
        states = {name: module.state_dict() for name, module in self.modules.items()}
        keys = [(name, key) for name, state in states.items() for key, value in state.items() if value.is_floating_point()]
        return [self.average[name][key] for name, key in keys], [states[name][key] for name, key in keys]

    def _log(self, row: dict[str, float]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (self.plan.steps - self.step) / max(row["steps_per_second"], 1e-9)
        self.report(
            f"{self.name} {self.step}/{self.plan.steps}  loss {row['loss']:.4f}  {row['steps_per_second']:.2f} steps/s  {left:.0f} s left"
        )

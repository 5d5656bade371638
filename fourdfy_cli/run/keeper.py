"""What a run keeps on disk while it works, and how it takes an optimizer up again."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fourdfy_cli.diffusion.lora import lora_state
from fourdfy_cli.errors import DAMAGED, FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.run.progress import Events
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import Run, write_about
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.lock import RunLock

HEARTBEAT = 30.0  # seconds


class Keeper:
    """Saves a stage's run: every `save_minutes`, when it is to stop, and what can be saved when something goes wrong."""

    def __init__(self, current: Run, optimizer: torch.optim.Optimizer, guidances: dict[str, Guidance], lock: RunLock, events: Events):
        self.current, self.optimizer, self.guidances, self.lock, self.events = current, optimizer, guidances, lock, events
        self.step, self.saved = current.step, time.monotonic()
        self.beat = self.saved

    def collect(self) -> None:
        """Bring LoRA and optimizer into the run's state."""
        if (network := lora_network(self.guidances)) is not None:
            self.current.lora = lora_state(network)
        self.current.optimizer_state = self.optimizer.state_dict()

    def maybe(self, stop: bool) -> None:
        """Save if it is time, or to `stop`; tell every HEARTBEAT seconds that somebody runs."""
        now = time.monotonic()
        if now - self.beat > HEARTBEAT:
            self.lock.beat()
            write_about(self.current, "running")
            self.beat = now
        if stop or now - self.saved > 60 * self.current.recipe.save_minutes:
            self.save()

    def patient(self, signals: StopSignals) -> bool:
        """Whether a run that is kept waiting may wait on; tells meanwhile that it lives."""
        self.maybe(stop=False)
        return signals.raised is None

    def save(self) -> None:
        self.lock.beat()
        self.collect()
        checkpoint.save_last(self.current.folder, self.current.state())
        self.events.saved(self.current.last)
        self.step, self.saved = self.current.step, time.monotonic()

    def rescue(self, error: BaseException) -> None:
        """Save what has been done since the last time, unless that is what failed, or somebody wants to leave at once."""
        if isinstance(error, (KeyboardInterrupt, OSError)) or self.current.step == self.step:
            return
        try:
            self.optimizer.zero_grad(set_to_none=True)
            self.save()
        except FourdfyError as failure:
            self.events.note(f"could not save: {failure.message}")


def lora_network(guidances: dict[str, Guidance]) -> nn.Module | None:
    """The network that Eq. 5 trains beside the scene, if the stage draws single pictures."""
    return cast(VariationalGuidance, guidances["image"]).lora_unet if "image" in guidances else None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, path: Path) -> None:
    """Give the optimizer its moments, each compared with its parameter first: AdamW would read and write beyond them. Rates come from the
    recipe. Raises FourdfyError (exit 6)."""
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = state.get("state") if isinstance(state, dict) else None
    if not isinstance(kept, dict) or not all(type(k) is int and 0 <= k < len(parameters) and isinstance(v, dict) for k, v in kept.items()):
        raise FourdfyError(f"{path} is damaged: its optimizer is none of this recipe", f"fourdfy info {shlex.quote(str(path))}", DAMAGED)
    for index, moments in kept.items():
        like, scalar = parameters[index].detach().to("meta"), torch.empty((), device="meta")
        checkpoint.check_tensors(path, f"optimizer.{index}", moments, {"step": scalar, "exp_avg": like, "exp_avg_sq": like})
    optimizer.load_state_dict({"state": kept, "param_groups": own["param_groups"]})

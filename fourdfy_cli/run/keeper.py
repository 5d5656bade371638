"""What a run keeps on disk while it works."""

from __future__ import annotations

import time
from typing import cast

from torch import nn
from torch.optim import Optimizer

from fourdfy_cli.diffusion.lora import lora_state
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.run.progress import Events
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import Run, write_about
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import Metrics
from fourdfy_cli.store.lock import RunLock

HEARTBEAT = 30.0  # seconds


class Keeper:
    """Saves a stage's run: every `save_minutes`, when it is to stop, and what can be saved when something goes wrong."""

    def __init__(
        self,
        current: Run,
        optimizer: Optimizer,
        guidances: dict[str, Guidance],
        lock: RunLock,
        metrics: Metrics,
        events: Events,
    ):
        self.current, self.optimizer, self.guidances = current, optimizer, guidances
        self.lock, self.metrics, self.events = lock, metrics, events
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
        self.metrics.sync()
        checkpoint.save_last(self.current.folder, self.current.state())
        self.events.saved(self.current.last)
        self.step, self.saved = self.current.step, time.monotonic()

    def rescue(self, error: BaseException) -> None:
        """Save what has been done since the last time, unless somebody wants to leave at once."""
        if isinstance(error, KeyboardInterrupt) or self.current.step == self.step:
            return
        try:
            self.optimizer.zero_grad(set_to_none=True)
            self.save()
        except (FourdfyError, OSError) as failure:
            self.events.note(f"could not save: {failure}")


def lora_network(guidances: dict[str, Guidance]) -> nn.Module | None:
    """The network that Eq. 5 trains beside the scene, if the stage draws single pictures."""
    return cast(VariationalGuidance, guidances["image"]).lora_unet if "image" in guidances else None

"""What a run keeps on disk while it works."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

from torch import nn
from torch.optim import Optimizer

from fourdfy_cli import hybrid
from fourdfy_cli.diffusion.lora import lora_state
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.output import render
from fourdfy_cli.run.progress import Events, Onlooker, Pace
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import Run, write_about
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import Metrics
from fourdfy_cli.store.lock import RunLock

HEARTBEAT = 30.0  # seconds


class Keeper:
    """Writes down a stage's run: each step, a preview now and then, a checkpoint every `save_minutes`, when it is to stop and at the end,
    and what can be saved when something goes wrong. Of several ranks only the first writes."""

    def __init__(self, current: Run, optimizer: Optimizer, guidances: dict[str, Guidance], lock: RunLock, events: Events):
        self.current, self.optimizer, self.guidances = current, optimizer, guidances
        self.lock, self.events = lock, events
        earlier = [current.recipe.stage(number).steps for number in range(1, current.stage)]
        self.metrics = Metrics(current.folder / "metrics.jsonl", current.stage, current.step, events.note, earlier)
        self.step, self.saved = current.step, time.monotonic()
        self.beat = self.saved
        self.begin()

    def begin(self) -> None:
        """A step begins: should it not end, the scene is to be as it is now."""
        self.begun = self.current.step
        self.occupancy = {name: value.clone() for name, value in self.current.scene.occupancy.state_dict().items()}

    def note(self, outcome: hybrid.Outcome, bad: str, pace: Pace) -> None:
        """A step has been done, or skipped because `bad` was not finite."""
        current = self.current
        info = pace.info(outcome, current)
        row = {"stage": current.stage, "step": current.step - 1, "branch": outcome.branch, **outcome.losses}
        skipped = {"skipped": bad} if bad else {}
        self.metrics.write({**row, **skipped, "rung": current.rung, "seconds": round(pace.elapsed, 2)})
        self.events.step(info)
        if current.step % current.recipe.preview_every == 0 or current.step == info.steps or current.step == 10:
            self.events.preview(preview(current))

    def between(self, signals: StopSignals) -> None:
        """Whoever looks on may look at the scene now, and wait."""
        if isinstance(self.events, Onlooker):
            self.events.between(self.current, lambda: self.patient(signals))

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

    def finish(self) -> None:
        """The stage's end: its own checkpoint, and the last one."""
        self.collect()
        self.current.optimizer_state = None
        self.lock.beat()
        checkpoint.save(self.current.finished(self.current.stage), self.current.state())
        checkpoint.save_last(self.current.folder, self.current.state())
        self.events.saved(self.current.finished(self.current.stage))

    def close(self) -> None:
        self.metrics.close()

    def rescue(self, error: BaseException) -> None:
        """Save what has been done since the last time, unless somebody wants to leave at once."""
        if isinstance(error, KeyboardInterrupt) or self.current.step == self.step:
            return
        if self.current.step == self.begun:
            self.current.scene.occupancy.load_state_dict(self.occupancy)
        try:
            self.optimizer.zero_grad(set_to_none=True)
            self.save()
        except (FourdfyError, OSError) as failure:
            self.events.note(f"could not save: {failure}")


class Bystander(Keeper):
    """On a rank that writes nothing."""

    def __init__(self, current: Run, optimizer: Optimizer, guidances: dict[str, Guidance]):
        self.current, self.optimizer, self.guidances = current, optimizer, guidances

    def begin(self) -> None:
        pass

    def note(self, outcome: hybrid.Outcome, bad: str, pace: Pace) -> None:
        pass

    def between(self, signals: StopSignals) -> None:
        pass

    def maybe(self, stop: bool) -> None:
        pass

    def finish(self) -> None:
        self.collect()
        self.current.optimizer_state = None

    def close(self) -> None:
        pass

    def rescue(self, error: BaseException) -> None:
        pass


def preview(current: Run) -> Path:
    """A sheet of four sides by four times (one in the static stages)."""
    path = current.folder / "previews" / f"stage{current.stage}-{current.step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    return render.preview(current.scene, current.recipe, path, times=4 if current.recipe.stage(current.stage).moving else 1)


def lora_network(guidances: dict[str, Guidance]) -> nn.Module | None:
    """The network that Eq. 5 trains beside the scene, if the stage draws single pictures."""
    return cast(VariationalGuidance, guidances["image"]).lora_unet if "image" in guidances else None

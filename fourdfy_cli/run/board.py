"""`generate --log tensorboard`: scalars by branch, previews and the recipe as TensorBoard's event files in RUN/tensorboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourdfy_cli.config import Recipe, to_dict
from fourdfy_cli.output.extras import require
from fourdfy_cli.run.progress import StepInfo

FOLDER = "tensorboard"


class TensorBoard:
    """Writes one file a process; a run that goes on from an earlier step takes the place of what the file before said of later ones.
    Steps are counted through all stages."""

    def __init__(self, run: Path, prompt: str, recipe: Recipe):
        require("tensorboard", "tensorboard")
        self.folder, self.prompt, self.recipe = run / FOLDER, prompt, recipe
        self.writer: Any = None
        self.stage, self.at = 1, 0

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        self.stage, self.at = stage, self._place(stage, done)
        if self.writer is None:
            self._open()

    def _place(self, stage: int, step: int) -> int:
        return sum(self.recipe.stage(number).steps for number in range(1, stage)) + step

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=self.at + 1, flush_secs=10)
        self.writer.add_text("prompt", _plain(self.prompt), self.at)
        self.writer.add_text("recipe", _plain(json.dumps(to_dict(self.recipe), indent=2)), self.at)

    def step(self, info: StepInfo) -> None:
        self.at = self._place(info.stage, info.step)
        for name, value in info.losses.items():
            self.writer.add_scalar(f"{name}/{info.branch}", value, self.at)
        self.writer.add_scalar("run/steps a second", info.rate, self.at)
        self.writer.add_scalar("run/memory MB", info.memory_mb, self.at)

    def preview(self, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.writer.add_image("preview", np.asarray(picture.convert("RGB")), self.at, dataformats="HWC")

    def saved(self, path: Path) -> None:
        self.writer.flush()

    def note(self, text: str) -> None:
        if self.writer is not None:
            self.writer.add_text("note", _plain(text), self.at)


def _plain(text: str) -> str:
    """Text that TensorBoard, which reads Markdown, shows as it is: a block of code."""
    return "".join(f"    {line}\n" for line in text.splitlines())

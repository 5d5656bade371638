"""Where a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fourdfy_cli.output.inline import film

if TYPE_CHECKING:
    from fourdfy_cli.output.loaded import LoadedScene


@dataclass(frozen=True)
class RunResult:
    """A run's folder, newest checkpoint, video (None before it is rendered), wall seconds, files, and prompt. In a notebook it shows its
    video."""

    run_dir: Path
    checkpoint: Path
    video: Path | None
    seconds: float
    files: list[Path]
    prompt: str = ""

    def scene(self, device: str = "cpu") -> LoadedScene:
        """The scene of the newest checkpoint; raises FourdfyError as `output.loaded.load`."""
        from fourdfy_cli.output.loaded import load

        return load(self.checkpoint, device)

    def _repr_html_(self) -> str:
        """The video, or the folder where there is none."""
        if self.video is None or not self.video.is_file():
            return f"<code>{escape(str(self.run_dir))}</code>"
        return film(self.video, self.prompt)

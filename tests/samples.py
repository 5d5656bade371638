"""What several tests start from: tiny recipes, scenes, checkpoints, videos, rays, and a command that is to fail."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from fourdfy_cli import __version__, config, presets
from fourdfy_cli.cli import main
from fourdfy_cli.config import Field, Grid, March, Recipe
from fourdfy_cli.output import render
from fourdfy_cli.presets import preset
from fourdfy_cli.scene.field import Deformed
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.scene.volume import Samples
from fourdfy_cli.store import checkpoint

GRID = config.Grid(2, 2, 8, 4, 2.0)


TINY = replace(
    presets.nano(), field=config.Field(GRID, GRID, hidden=8, init=1e-2), march=config.March(samples=24, resolution=8, alpha_thre=0.003)
)


def scene(seed: int = 0) -> Scene:
    return Scene(TINY.field, TINY.background, TINY.march, seed)


class Matter(torch.nn.Module):
    """A field that is dense where `distance`, of points [N 3] and times [N], is below zero; coloured by place."""

    def __init__(self, distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dense: float = 400.0):
        super().__init__()
        self.distance, self.dense = distance, dense

    def forward(self, x: torch.Tensor, time: torch.Tensor, blob_std: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self.density(x, time, blob_std), (x + 1) / 2

    def density(self, x: torch.Tensor, time: torch.Tensor, blob_std: float) -> torch.Tensor:
        return self.dense * torch.sigmoid(-self.distance(x, time) / 0.002)


def ball(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Distance to a ball of radius 0.4 that goes from (0.2, 0, 0) to (0.2, 0, 0.4) and back."""
    centre = torch.stack([torch.full_like(time, 0.2), 0 * time, 0.4 * torch.sin(torch.pi * time) ** 2], 1)
    return (x - centre).norm(dim=1) - 0.4


def matter(distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = ball) -> Scene:
    """A scene of dense matter with a sharp edge."""
    made = Scene(TINY.field, TINY.background, replace(TINY.march, samples=384), 0)
    made.field = Matter(distance)
    return made


class Bent(Deformed):
    """A ball in the static scene that is bent, moved and squeezed over time."""

    def decode(self, features: torch.Tensor, x: torch.Tensor, blob_std: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self.density_of(features, x, blob_std), (features[:, -3:] + 1) / 2

    def density_of(self, features: torch.Tensor, x: torch.Tensor, blob_std: float) -> torch.Tensor:
        return 400 * torch.sigmoid((0.4 - features[:, -3:].norm(dim=1)) / 0.002)


def bent() -> Scene:
    made = scene()
    made.field = Bent(replace(TINY.field, kind="deformation"), torch.Generator().manual_seed(0))

    def displacement(x: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(torch.pi * x[:, 3]) ** 2
        return torch.stack([-0.1 * wave, 0.1 * wave * torch.sin(6 * x[:, 2]), 0.4 * wave * (x[:, 2] - 0.5)], 1)

    made.field.dynamic.displacement = displacement
    return made


def save(path: Path, stage: int = 1, seed: int = 0, recipe: config.Recipe = TINY) -> Path:
    state = {"prompt": "a red dog", "seed": seed, "recipe": config.to_dict(recipe), "stage": stage, "step": 5, "models": "nano"}
    checkpoint.save(path, state | {"scene": scene(seed).state_dict(), "lora": {}, "optimizer": None})
    return path


def decode(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def film(path: Path, frames: int = 4, size: tuple[int, int] = (32, 32), fps: float = 15, seed: int = 0) -> Path:
    """A video of smooth pictures of height and width `size`, different for each seed."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin((x + 3 * k) / 9 + seed) + np.cos((y + 2 * k) / 7 + 2 * seed) for k in range(frames)]
    pictures = [np.stack([127 + 60 * wave, 127 - 60 * wave, np.full_like(wave, 40.0 * (seed % 6))], -1).astype(np.uint8) for wave in waves]
    return render.write_video(path, iter(pictures), fps)


SMALL = Grid(levels=3, features=2, log2_table=6, base=3, growth=1.7)  # dense, then hashed, in 3 and 4 dimensions


def some_rays(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from outside, most of them through the box, the first along an axis and the last missing it."""
    g = torch.Generator().manual_seed(seed)
    origin = 2.5 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g, dtype=torch.float64), dim=-1)
    target = torch.rand(count, 3, generator=g, dtype=torch.float64) * 2 - 1
    origin[0], target[0] = torch.tensor([2.5, 0.1, 0.2]), torch.tensor([0.0, 0.1, 0.2])
    origin[-1], target[-1] = torch.tensor([0.0, 0.0, 2.5]), torch.tensor([0.0, 3.0, 2.0])
    return origin, torch.nn.functional.normalize(target - origin, dim=-1)


def packed(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Samples]:
    g, total = torch.Generator().manual_seed(seed), sum(counts)
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    t = torch.cat([torch.zeros(0).double(), *(torch.rand(c, generator=g, dtype=torch.float64).sort().values for c in counts)])
    density = 3 * torch.rand(total, generator=g, dtype=torch.float64)
    rgb = torch.rand(total, 3, generator=g, dtype=torch.float64)
    return density, rgb, Samples(ray, t, 0.3)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FOURDFY_")]:
        monkeypatch.delenv(name)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], args: list[str], code: int, *words: str) -> None:
    """The command line ends with this code, one line of error with these words, one hint; the folder stays as it is."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main.run(args) == code
    captured = capsys.readouterr()
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint:  ") and len(hint) > 8 and captured.out == ""
    assert all(word in error + hint for word in words), (error, hint)
    assert sorted(Path.cwd().rglob("*")) == before
    assert main.run([*args, "--json"]) == code
    envelope = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        envelope["ok"] is False and envelope["error"]["code"] == code and envelope["error"]["hint"] and envelope["version"] == __version__
    )


class Watch:
    """Events that count, and pull the plug after some steps."""

    def __init__(self, stop_after: int | None = None, how: int = signal.SIGINT):
        self.steps, self.stop_after, self.how, self.seen = 0, stop_after, how, []

    def start(self, stage, stages, steps, done):
        self.seen.append((stage, done))

    def step(self, info):
        assert info.memory_mb > 0 and info.eta_total >= info.eta_stage >= 0
        self.steps += 1
        if self.steps == self.stop_after:
            os.kill(os.getpid(), self.how)

    def preview(self, path):
        assert path.is_file()

    def saved(self, path):
        assert path.is_file()

    def note(self, text):
        pass


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def tiny_recipe() -> Recipe:
    nano = presets.each_branch(preset("nano"), lambda branch: dataclasses.replace(branch, size=(8, 8), coarse=None, fine_from=0.0))
    stages = {
        "stage1": dataclasses.replace(nano.stage1, steps=2),
        "stage2": dataclasses.replace(nano.stage2, steps=4),
        "stage3": dataclasses.replace(nano.stage3, steps=5, p_3d=0.4, p_image=0.4),
    }
    return dataclasses.replace(
        nano,
        **stages,
        name="tiny",
        field=Field(Grid(2, 2, 8, 4, 2.0), Grid(2, 2, 8, 3, 2.0), hidden=8),
        march=March(samples=24, resolution=8, update_every=2, warmup_steps=4),
        preview_every=100,
    )


@dataclasses.dataclass(frozen=True)
class Talkative:
    """A job with more to tell than a pipe holds."""

    prompt: str = "a red dog"
    seed: int = 0
    out: Path = Path()
    start: Path | None = None
    folder: Path = Path()

    def go(self, machine, events) -> None:
        for _ in range(1000):
            events.note("x" * 1000)

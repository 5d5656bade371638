"""How near small encoders' gradients are, on encoders whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from samples import isolated, save  # noqa: F401

from fourdfy_cli.bench import encoders
from fourdfy_cli.cli import main
from fourdfy_cli.diffusion.encoders import Pictures


class Linear(Pictures):
    """Latents that are a factor of the pictures' means over 8 x 8 pixels, red with another sign at wish."""

    def step(self, rgb, state):
        factor, flip = self.vae
        return factor * torch.nn.functional.avg_pool2d(rgb * torch.tensor([flip, 1.0, 1.0])[:, None, None], 8), None, None


def test_cosine_and_length_are_those_of_the_gradients() -> None:
    rgb = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    for row in encoders.compare(Linear((2.0, 1.0)), Linear((1.0, 1.0)), rgb, (16, 16)):
        assert row["cosine"] == pytest.approx(1) and row["length"] == pytest.approx(0.5) and row["latents"] == pytest.approx(0.5)
    turned = list(encoders.compare(Linear((2.0, 1.0)), Linear((2.0, -1.0)), rgb, (16, 16)))
    assert [row["picture"] for row in turned] == [0, 1, 2] and all(abs(row["cosine"]) < 0.9 for row in turned)


def test_bench_compares_them_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "run" / "stage3.pt", stage=3)
    small = [f"--set=stage3.{branch}.{key}.{side}=32" for branch in ("image", "video") for key in ("size", "model_size") for side in (0, 1)]
    assert main.run(["bench", "--encoder=run", "--preset=wan", "--size=tiny", "--set=frames=5", *small, "--json", "--threads=1"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert [row["branch"] for row in data["encoders"]] == ["image", *["video"] * 5]
    assert all(-1 <= row["cosine"] <= 1 and row["length"] > 0 for row in data["encoders"])

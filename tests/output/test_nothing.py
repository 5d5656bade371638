"""Scenes with nothing in them, pictures of one pixel, places that cannot be written to: films, pages and the viewer's pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import decode, fails, save
from samples import isolated as isolated

import fourdfy_cli as fourdfy
from fourdfy_cli.cli import main
from fourdfy_cli.output.visitor import View, shown
from fourdfy_cli.store import checkpoint


@pytest.fixture
def empty(isolated: Path) -> Path:
    """A checkpoint whose grid of occupied cells is empty."""
    state = checkpoint.load(save(isolated / "run" / "stage3.pt", 3))
    state["scene"]["occupancy.binary"] = torch.zeros_like(state["scene"]["occupancy.binary"])
    checkpoint.save(isolated / "run" / "stage3.pt", {k: v for k, v in state.items() if k not in ("format", "digest", "version")})
    return isolated / "run"


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp"])
def test_films_of_nothing_and_of_one_pixel(empty: Path, name: str, capsys: pytest.CaptureFixture[str]):
    line = ["render", "run", "--path", "turntable", "--fps", "2", "--out", name]
    fails(capsys, [*line, "--size", "1"], 2, "--size", "16", "fourdfy render --help")
    assert not Path(name).exists() and main.run([*line, "--size", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["size"] == 16 and Path(name).stat().st_size > 0
    if name.endswith("mp4"):
        assert np.ptp(decode(Path(name))) < 8  # the backdrop alone


def test_the_viewer_shows_nothing(empty: Path):
    scene, c2w = fourdfy.load(empty), fourdfy.cameras(0, 0).c2w[0].numpy()
    for height in (1, 8):
        colour, depth, opacity = (shown(scene, View(c2w, 0.7, 1.0, 0.5), height, mode) for mode in ("colour", "depth", "opacity"))
        assert colour.shape == depth.shape == (height, height, 3) and np.ptp(colour) == 0 and not depth.any() and not opacity.any()


def test_a_report_of_nothing(empty: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["render", "run", "--orbit", "--size", "16", "--fps", "2"]) == 0
    assert main.run(["report", "run"]) == 0
    page = (empty / "report.html").read_text()
    assert "a red dog" in page and "Traceback" not in page


def test_places_that_cannot_be_written_to(empty: Path, capsys: pytest.CaptureFixture[str]):
    Path("file").write_text("")
    fails(capsys, ["render", "run", "--out", "file/a.mp4"], 2, "file")
    fails(capsys, ["render", "run", "--frames", "file/frames"], 2, "file")
    fails(capsys, ["report", "run", "--out", "file/a.html"], 2, "cannot write in")
    fails(capsys, ["render", "run", "--out", "a.avi"], 2, ".avi")
    assert Path("file").read_text() == ""

"""The table of kernels: what it asks, of whom, and that its figures are those of what it ran."""

from __future__ import annotations

import json

import pytest
import torch

from fourdfy_cli import kernels
from fourdfy_cli.bench import kernels as bench
from fourdfy_cli.cli import main
from fourdfy_cli.config import Grid
from fourdfy_cli.presets import preset
from fourdfy_cli.scene.hashgrid import HashGrid

KEYS = {"op", "dims", "log2_table", "levels", "points", "backend", "mpts_fwd", "mpts_fwd_bwd"}


@pytest.mark.long
def test_every_backend_of_this_machine_at_every_grid():
    rows = list(bench.measure("cpu", repeats=1, points=64))
    assert all(KEYS <= set(row) and row["mpts_fwd"] > 0 and row["mpts_fwd_bwd"] > 0 for row in rows)
    asked = {(row["op"], row["dims"], row["log2_table"], row["levels"]) for row in rows}
    nano = preset("nano").field
    grids = {(3, 19, 16), (4, 19, 16), (3, 15, 16), (4, 15, 16), (3, nano.static.log2_table, nano.static.levels)}
    assert {("hash encoding", *grid) for grid in grids} <= asked and ("render", 4, 16, 4) in asked
    for grid in asked:
        measured = [row["backend"] for row in rows if (row["op"], row["dims"], row["log2_table"], row["levels"]) == grid]
        assert measured == ["eager", "torch", "numba"]


def test_what_they_are_measured_against_is_right():
    module = HashGrid(4, Grid(3, 2, 6, 3, 1.8), 1.0, torch.Generator().manual_seed(0))
    x, grad = torch.rand(50, 4, generator=torch.Generator().manual_seed(1)), torch.ones(50, 6)
    for eager, plain in zip(bench.EAGER.encoding, kernels.TORCH.encoding, strict=True):
        given = (x, module.table.detach(), module.levels, grad)[: 3 if plain is kernels.TORCH.encoding.lookup else 4]
        torch.testing.assert_close(eager(*given), plain(*given))


def test_figures_are_points_over_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "seconds", lambda action, device, repeats: 0.5)
    row = bench.encoding(kernels.TORCH, 3, Grid(2, 2, 6, 4, 2.0), 1000, "cpu", 1)
    assert row["mpts_fwd"] == row["mpts_fwd_bwd"] == pytest.approx(0.002)


def test_both_backends_render_the_same_ball():
    recipe = preset("nano")
    scenes = [bench.ball(recipe, backend, "cpu") for backend in bench.backends("cpu")]
    assert torch.equal(scenes[0].occupancy.binary, scenes[1].occupancy.binary) and not scenes[0].occupancy.binary.all()


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    rows = [bench.encoding(kernels.TORCH, 3, Grid(2, 2, 6, 4, 2.0), 32, "cpu", 1)]
    monkeypatch.setattr(bench, "measure", lambda device, repeats: iter(rows))
    assert main.run(["bench", "--kernels", "--device", "cpu", "--json"]) == 0
    *notes, envelope = map(json.loads, capsys.readouterr().out.splitlines())
    assert envelope["data"] == {"machine": bench.machine("cpu"), "kernels": rows} and set(rows[0]) == KEYS and len(notes) == 1

"""`fourdfy export`: files read back by the libraries that others open them with; whole files or none; one line when it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from samples import bent, fails, isolated, matter, save, scene  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.output import export, extras, render
from fourdfy_cli.output.mesh import densities
from fourdfy_cli.output.sequence import MeshOptions
from fourdfy_cli.output.splats import SPREAD, peaks, splats
from fourdfy_cli.store import checkpoint

CHOICE, METADATA = MeshOptions(frames=3, fps=6, resolution=32), export.Metadata({"prompt": "a ball"}, True)


def plainly(items, *_):
    return items


@pytest.mark.parametrize("suffix", [".usdc", ".usdz"])
@pytest.mark.parametrize("made", [matter, bent])
def test_usd_is_read_back(tmp_path: Path, suffix: str, made):
    from pxr import Usd, UsdGeom

    path = tmp_path / f"a{suffix}"
    found = export.export(made(), path, CHOICE, METADATA, plainly)
    stage = Usd.Stage.Open(str(path))
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode(), stage.GetTimeCodesPerSecond()) == (0, 2, 6)
    assert UsdGeom.GetStageUpAxis(stage) == "Z" and stage.GetRootLayer().customLayerData["prompt"] == "a ball"
    mesh = UsdGeom.Mesh(stage.GetDefaultPrim())
    points = [np.array(mesh.GetPointsAttr().Get(k)) for k in range(3)]
    assert [len(each) for each in points] == [row["vertices"] for row in found["meshes"]] and found["one_topology"] == (made is bent)
    for k, each in enumerate(points):
        assert np.allclose(mesh.GetExtentAttr().Get(k), [each.min(0), each.max(0)])
        assert np.array(mesh.GetFaceVertexIndicesAttr().Get(k)).max() == len(each) - 1
        assert len(mesh.GetDisplayColorPrimvar().Get(k)) == len(mesh.GetNormalsAttr().Get(k)) == len(each)
    assert np.abs(points[0] - points[1]).max() > 0.05 if made is bent else points[1][:, 2].max() > points[0][:, 2].max() + 0.2
    assert bool(mesh.GetFaceVertexIndicesAttr().GetTimeSamples()) == (made is matter)


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_a_numbered_sequence_is_read_back(tmp_path: Path, suffix: str):
    found = export.export(matter(), tmp_path / f"ball{suffix}", CHOICE, METADATA, plainly)
    told = json.loads((tmp_path / "ball" / "sequence.json").read_text())
    assert os.listdir(tmp_path) == ["ball"] and (told["fps"], told["up"], told["loops"], told["prompt"]) == (6, "z", True, "a ball")
    assert [frame["time"] for frame in told["frames"]] == pytest.approx([0, 1 / 3, 2 / 3])
    for frame, row in zip(told["frames"], found["meshes"], strict=True):
        body = trimesh.load(tmp_path / "ball" / frame["file"], process=False)
        assert (len(body.vertices), len(body.faces)) == (row["vertices"], row["faces"]) and row["watertight"] and body.is_watertight
        assert np.abs(body.visual.vertex_colors[:, :3] / 255 - (body.vertices + 1) / 2).max() < 0.06
        assert (np.array(told["box"][0]) <= body.vertices.min(0) + 1e-5).all() and body.volume > 0


def test_one_moment_is_one_file(tmp_path: Path):
    export.export(matter(), tmp_path / "ball.ply", replace(CHOICE, frames=1), METADATA, plainly)
    assert os.listdir(tmp_path) == ["ball.ply"] and trimesh.load(tmp_path / "ball.ply").is_watertight


def test_splats_are_as_thick_as_the_fog():
    """Along random lines through a plane of cells, what the Gaussians take of the light against what the fog takes."""
    density, cell, rng = 9.0, 0.02, np.random.default_rng(0)
    (peak,) = peaks(np.array([density]), cell)
    grid = (np.stack(np.meshgrid(*[np.arange(-12, 13)] * 2), -1) * cell).reshape(-1, 2)
    lines = rng.uniform(-cell, cell, (4000, 2))
    bell = np.exp(-((lines[:, None] - grid) ** 2).sum(2) / 2 / (SPREAD * cell) ** 2)
    assert -np.log(1 - peak * bell).sum(1).mean() == pytest.approx(density * cell, rel=0.01)


def test_splats_in_a_ply(tmp_path: Path):
    made = scene()
    path = tmp_path / "a.ply"
    found = export.export_splats(made, path, MeshOptions(frames=1, resolution=24), METADATA, plainly)
    head, _, body = path.read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in head.decode().splitlines() if line.startswith("property")]
    table = dict(zip(names, np.frombuffer(body, "<f4").reshape(-1, len(names)).T, strict=True))
    assert b"not optimised as splats" in head and len(table["x"]) == found["splats"][0]["splats"]
    cloud = splats(made, 0.0, 24)
    assert np.allclose(1 / (1 + np.exp(-table["opacity"])), cloud.opacity, atol=1e-5) and np.allclose(np.exp(table["scale_1"]), cloud.sigma)
    x = torch.from_numpy(np.stack([table["x"], table["y"], table["z"]], 1))
    rgb = made.field(x, torch.zeros(len(x)), 0.5)[1].detach().numpy()
    assert np.allclose(0.5 + 0.28209479 * np.stack([table[f"f_dc_{k}"] for k in range(3)], 1), rgb, atol=1e-5)
    assert (table["rot_0"] == 1).all() and len(x) < (densities(made, 0.0, 24) > 0).sum()


@pytest.fixture
def run(isolated: Path) -> Path:
    save(isolated / "run" / "stage3.pt", 3)
    save(isolated / "run 1" / "stage1.pt", 1)
    return isolated


SMALL = ["--resolution", "16", "--frames", "2"]


@pytest.mark.parametrize("name", ["a.glb", "a.usdc", "a.usdz", "a.ply", "a.obj"])
def test_the_command(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(["export", "run", f"new/{name}", *SMALL, "--faces", "200", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert data["frames"] == 2 and data["watertight"] in (0, 0.5, 1) and all(0 < row["faces"] <= 200 for row in data["table"])
    assert data["bytes"] > 1000 and Path(data["file"]).exists() and len(os.listdir("new")) == 1
    assert main.run(["export", "run 1", f"still/{name}", "--resolution", "16", "--json"]) == 0
    still = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert still["frames"] == 1 and os.listdir("still") == [name]


def test_what_cannot_be(run: Path, capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["export", "run", "a.fbx"], 2, ".fbx", "fourdfy export run a.glb")
    fails(capsys, ["export", "run 1", "a"], 2, "without a suffix", "'run 1'")
    fails(capsys, ["export", "run", "a.usdc", "--splats"], 2, ".glb, .ply")
    fails(capsys, ["export", "none", "a.glb"], 2, "none")
    fails(capsys, ["export", "run", "run/stage3.pt/a.glb"], 2, "cannot write")
    fails(capsys, ["export", "run", "a.glb", "--threshold", "1e6", *SMALL], 1, "denser")
    fails(capsys, ["export", "run", "a.glb", "--device", "tpu"], 2, "tpu")
    state = checkpoint.load(Path("run/stage3.pt"))
    state["scene"]["occupancy.binary"] = torch.zeros_like(state["scene"]["occupancy.binary"])
    checkpoint.save(Path("empty.pt"), {key: value for key, value in state.items() if key not in ("format", "digest", "version")})
    for name in ("a.glb", "a.usdz", "a.ply", "a.obj"):
        fails(capsys, ["export", "empty.pt", name, *SMALL], 1, "nothing to cut", "fourdfy render empty.pt --grid 4x8")
    fails(capsys, ["export", "empty.pt", "a.ply", "--splats", *SMALL], 1, "nothing to see")
    Path("a").mkdir()
    Path("a", "other.ply").touch()
    fails(capsys, ["export", "run", "a.ply", *SMALL], 2, "holds other files", "fourdfy export run a-2.ply")


@pytest.mark.parametrize("name, package", [("a.glb", "skimage"), ("a.usdc", "pxr"), ("a.obj", "trimesh"), ("a.ply", "fast_simplification")])
def test_an_extra_that_is_not_there(
    run: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    fails(capsys, ["export", "run", name], 3, package, "pip install 'fourdfy[export]'")


@pytest.mark.parametrize("name", ["a.glb", "a.ply"])
def test_nothing_under_a_final_name_when_it_is_killed(run: Path, name: str):
    code = f"""
import time
from fourdfy_cli.output import export, gltf
def slow(*args):
    open("ready", "w").close(); time.sleep(60)
export.save_mesh = slow
export.Path.write_bytes = slow
from fourdfy_cli.cli import main, options
main.run(["export", "run", {name!r}, "--resolution", "12", "--frames", "2"])
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not Path("ready").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert Path("ready").exists() and not Path("a.glb").exists() and not Path("a").exists()
    assert main.run(["export", "run", name, "--resolution", "12", "--frames", "2"]) == 0 and render.locate(Path("run")).is_file()


def test_contact_sheet_and_alpha(run: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    assert main.run(["render", "run", "--grid", "2x3", "--size", "16", "--depth"]) == 0
    assert Image.open("run/grid-depth.png").size == (2 * 3 * 16, 2 * 16)
    assert main.run(["render", "run", "--grid", "1x2", "--size", "16", "--alpha", "--out", "g.png"]) == 0
    assert Image.open("g.png").mode == "RGBA"
    capsys.readouterr()
    assert main.run(["render", "run", "--path", "turntable", "--alpha", "--size", "16", "--fps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["video"] == "run/turntable-alpha.webm"
    fails(capsys, ["render", "run", "--alpha", "--out", "a.mp4"], 2, "without background", "a.webm")
    fails(capsys, ["render", "run", "--grid", "4", "--size", "16"], 2, "4x8")
    fails(capsys, ["render", "run", "--out", "a.avi"], 2, ".mp4, .webm", "a.avi.mp4")

"""`fourdfy render` takes no name and no folder that is something else's, and leaves nothing half done under a final name."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import fails, isolated, save  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output import render

CAMERA = {"azimuth": 0, "elevation": 0, "distance": 3, "fovy": 40, "time": 0}


@pytest.fixture
def run(isolated: Path) -> Path:
    """A run folder with its own video, and camera paths of many names beside it."""
    folder = isolated / "my run-s0"
    folder.mkdir()
    save(folder / "stage1.pt")
    (folder / "orbit.mp4").write_bytes(b"the run's own")
    for name in ("orbit", "mav3d", "Fixed", "stage1-orbit", "orbit-depth", "dolly"):
        (isolated / f"{name}.json").write_text(json.dumps({**CAMERA, "size": 16, "frames": [{}, {"azimuth": 20}]}))
    return folder


@pytest.mark.parametrize("name", ["orbit", "mav3d", "Fixed", "stage1-orbit", "orbit-depth"])
def test_a_path_from_a_file_takes_no_name_of_our_own(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["render", str(run), "--path", f"{name}.json"], 2, f"{name}.mp4", f"{name}-path.mp4")
    assert main.run(["render", str(run), "--path", f"{name}.json"]) == 2
    hint = capsys.readouterr().err.splitlines()[-1].removeprefix("hint:  ")
    assert main.run(shlex.split(hint)[1:]) == 0 and (run / f"{name}-path.mp4").is_file()
    assert (run / "orbit.mp4").read_bytes() == b"the run's own"


def test_other_names_are_free_and_the_orbit_may_be_made_again(run: Path, capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["render", str(run), "--path", "dolly.json", "--out", str(run / "orbit.mp4")], 2, "own video")
    fails(capsys, ["render", str(run), "--path", "fixed", "--out", str(run / "orbit.mp4")], 2, "own video")
    assert main.run(["render", str(run), "--path", "dolly.json"]) == 0 and (run / "dolly.mp4").is_file()
    assert main.run(["render", str(run), "--size", "16"]) == 0 and (run / "orbit.mp4").read_bytes() != b"the run's own"


def test_frames_want_a_folder_of_their_own(run: Path, capsys: pytest.CaptureFixture[str]):
    Path("used").mkdir()
    Path("used", "0061.png").touch()
    Path("new").mkdir()
    Path("a file").touch()
    line = ["render", str(run), "--path", "dolly.json", "--frames"]
    for folder in ("used", ".", "a file", str(run)):
        fails(capsys, [*line, folder], 2, "--frames", "-2")
    for folder in ("new", "newer/still"):
        assert main.run([*line, folder]) == 0
        assert sorted(os.listdir(folder)) == ["depth", "images", "transforms.json"]
        assert sorted(os.listdir(Path(folder, "images"))) == sorted(os.listdir(Path(folder, "depth"))) == ["0000.png", "0001.png"]
    fails(capsys, [*line, "new"], 2, "new holds other files", "--frames new-2")
    assert not [path for path in Path.cwd().rglob(".*")]


def test_nothing_under_a_final_name_when_it_fails(run: Path, monkeypatch: pytest.MonkeyPatch):
    looks = render.rendered_views

    def failing(*args: object):
        yield next(looks(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "rendered_views", failing)
    before = sorted(Path.cwd().rglob("*"))
    assert main.run(["render", str(run), "--path", "dolly.json", "--frames", "png"]) == 130
    assert sorted(Path.cwd().rglob("*")) == before


def test_nothing_under_a_final_name_when_it_is_killed(run: Path):
    code = f"""
import os, time
from fourdfy_cli.output import render
looks = render.rendered_views
def slow(*args):
    for k, pair in enumerate(looks(*args)):
        yield pair
        if k == 1:
            open("ready", "w").close(); time.sleep(60)
render.rendered_views = slow
from fourdfy_cli.cli import main
main.run(["render", {str(run)!r}, "--path", "mav3d", "--size", "16", "--frames", "png"])
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not Path("ready").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (run / "mav3d.mp4").exists() and not Path("png").exists()
    assert main.run(["render", str(run), "--path", "dolly.json", "--frames", "png"]) == 0
    assert sorted(os.listdir("png/depth")) == ["0000.png", "0001.png"] and not list(Path.cwd().glob(".part-*"))


@pytest.mark.parametrize(
    "told, word",
    [
        ({"frames": [CAMERA] * 20_001}, "20001 frames"), ({"frames": [CAMERA], "size": 10**400}, "size"),
        ({"frames": [CAMERA | {"azimuth": 10**400}]}, "azimuth"), ({"frames": [CAMERA], "fps": "9" * 10_000}, "fps"),
        ({"frames": [CAMERA | {"azimuth": 1e300}]}, "azimuth"), ({"frames": {"0": CAMERA}}, "frames"),
    ],
)  # fmt: skip
def test_paths_beyond_all_bounds(run: Path, told: dict, word: str, capsys: pytest.CaptureFixture[str]):
    Path("p.json").write_text(json.dumps(told))
    fails(capsys, ["render", str(run), "--path", "p.json"], 2, word)
    assert main.run(["render", str(run), "--path", "p.json"]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_camera_file_of_a_terabyte_or_of_windows(run: Path, capsys: pytest.CaptureFixture[str]):
    text = json.dumps({**CAMERA, "size": 16, "frames": [{}]})
    Path("bom.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert main.run(["render", str(run), "--path", "bom.json"]) == 0
    Path("wide.json").write_bytes(text.encode("utf-16"))
    fails(capsys, ["render", str(run), "--path", "wide.json"], 2, "UTF-16", "iconv")
    with open("hole.json", "wb") as file:
        file.truncate(2**40)
    fails(capsys, ["render", str(run), "--path", "hole.json"], 2, "larger")
    Path("deep.json").write_text("[" * 10**6)
    fails(capsys, ["render", str(run), "--path", "deep.json"], 2, "deep.json")


def test_lack_of_memory_while_rendering(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def full(*_: object):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(render, "rendered_views", full)
    fails(capsys, ["render", str(run), "--path", "dolly.json"], 4, "out of memory", "--size 128")


def test_hints_name_the_run_as_it_is_called(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["info", str(run), "--json"]) == 0
    words = shlex.split(json.loads(capsys.readouterr().out)["data"]["next"])
    assert words[0] == "fourdfy" and words[-1] == str(run / "stage1.pt")
    (run / "stage1.pt").unlink()
    with pytest.raises(FourdfyError) as error:
        render.locate(run)
    assert shlex.split(error.value.hint) == ["ls", str(run)]

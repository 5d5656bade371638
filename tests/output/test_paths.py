"""Camera paths by name and from a file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import save

from fourdfy_cli import presets
from fourdfy_cli.cli import main
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate.videos import frames, probe
from fourdfy_cli.output import paths, render
from fourdfy_cli.scene.cameras import mav3d, orbit_camera

NANO = presets.nano()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def test_orbit_and_mav3d_are_the_known_ones():
    orbit, known = paths.film("orbit", NANO, paths.PathOptions(40)), render.orbit_of(NANO, 40).shot()
    assert torch.equal(orbit.shot.c2w, known.c2w) and torch.equal(orbit.shot.time, known.time) and (orbit.name, orbit.fps) == ("orbit", 16)
    film = paths.film("mav3d", NANO)
    assert (film.name, film.fps, film.shot.size) == ("mav3d", 15, (256, 256)) and torch.equal(film.shot.c2w, mav3d(256).c2w)
    assert paths.film("mav3d", NANO, paths.PathOptions(32)).shot.size == (32, 32)


def test_fixed_stands_where_the_orbit_starts():
    fixed, orbit = paths.film("fixed", NANO, paths.PathOptions(40)).shot, render.orbit_of(NANO, 40).shot()
    assert all(same(c2w, orbit.c2w[0]) for c2w in fixed.c2w) and torch.equal(fixed.time, orbit.time) and len(fixed) == 64


def test_a_file_says_the_same_as_the_code(tmp_path: Path):
    azimuths = [(360 - 90 * block) - 6 * max(0, k - 15) for block in range(4) for k in range(31)]
    views = [{"azimuth": azimuth, "time": (k % 62) / 63} for k, azimuth in enumerate(azimuths)]
    path = tmp_path / "my path.json"
    path.write_text(json.dumps({"fps": 15, "size": 256, "elevation": 15, "distance": 3, "fovy": 40, "frames": views}))
    film, known = paths.film(str(path), NANO), mav3d(256)
    assert (film.name, film.fps, film.shot.size) == ("my path", 15, (256, 256))
    assert same(film.shot.c2w, known.c2w) and same(film.shot.time, known.time) and same(film.shot.fovy, known.fovy)
    views[1]["elevation"] = -30
    path.write_text(json.dumps({"elevation": 15, "distance": 3, "fovy": 40, "frames": views[:2]}))
    film = paths.film(str(path), NANO, paths.PathOptions(48))
    assert film.shot.size == (48, 48) and film.fps == 15
    assert same(torch.rad2deg(film.shot.elevation()), torch.tensor([15.0, -30.0]))
    assert math.degrees(float(film.shot.fovy[0])) == pytest.approx(40)


FRAME = {"azimuth": 0, "elevation": 0, "distance": 3, "fovy": 40, "time": 0}


@pytest.mark.parametrize(
    "content, word",
    [
        ("{", "line 1"), ("[]", "object"), ("{}", "frames"), ('{"frames": []}', "frames"), ('{"frames": [1]}', "frames"),
        (json.dumps({"frames": [FRAME | {"time": 1.5}]}), "frame 0: time"),
        (json.dumps({"frames": [FRAME, FRAME | {"azimuth": "x"}]}), "frame 1: azimuth"),
        (json.dumps({"frames": [FRAME | {"distance": 0}]}), "distance"),
        (json.dumps({"frames": [FRAME | {"fovy": True}]}), "fovy"),
        (json.dumps({"frames": [{**FRAME, "roll": 3}]}), "'roll'"),
        (json.dumps({"frames": [{k: v for k, v in FRAME.items() if k != "time"}]}), "time"),
        (json.dumps({"frames": [FRAME], "fps": 0}), "fps"),
        (json.dumps({"frames": [FRAME], "size": 5000}), "size"),
        ('{"frames": [{"azimuth": NaN}]}', "azimuth"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_path(content: str, word: str, tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(FourdfyError) as error:
        paths.film(str(path), NANO)
    assert error.value.code == 2 and word in error.value.message and "p.json" in error.value.message and "\n" not in error.value.message


@pytest.mark.parametrize("name", ["mav4d", "none.json", ""])
def test_a_path_that_does_not_exist(name: str):
    with pytest.raises(FourdfyError) as error:
        paths.film(name, replace(NANO), paths.PathOptions(32))
    assert error.value.code == 2 and error.value.hint


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "stage1.pt")
    (tmp_path / "dolly.json").write_text(json.dumps({**FRAME, "fps": 12, "size": 16, "frames": [{"azimuth": 10}, {"azimuth": 20}]}))
    assert main.run(["render", "stage1.pt", "--path", "dolly.json", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data == {"video": "stage1-dolly.mp4", "frames": None, "count": 2, "size": 16, "fps": 12, "there_and_back": False}
    assert str(probe(tmp_path / "stage1-dolly.mp4")) == "16x16 at 12 fps" and len(list(frames(tmp_path / "stage1-dolly.mp4"))) == 2
    for wrong in (["--path", "mav4d"], ["--path", "gone.json"], ["--orbit", "--path", "mav3d"]):
        assert main.run(["render", "stage1.pt", *wrong]) == 2
        assert capsys.readouterr().err.count("hint:") == 1


def test_turntable_stands_still_and_films_last_four_seconds():
    turn, orbit = paths.film("turntable", NANO, paths.PathOptions(40, time=0.3)).shot, render.orbit_of(NANO, 40).shot()
    assert torch.equal(turn.c2w, orbit.c2w) and same(turn.time, torch.full((64,), 0.3))
    for name in ("orbit", "fixed", "turntable"):
        film = paths.film(name, NANO, paths.PathOptions(40, fps=30))
        assert film.fps == 30 and len(film.shot) == 120
    assert len(paths.film("mav3d", NANO, paths.PathOptions(fps=30)).shot) == 124


POSE = [*[0.0, 0.0, 1.0, 3.0], *[1.0, 0.0, 0.0, 0.0], *[0.0, 1.0, 0.0, 0.0], *[0.0, 0.0, 0.0, 1.0]]  # on +x, looking at the origin
THEIRS = {"render_height": 32, "render_width": 48, "fps": 24, "camera_type": "perspective", "keyframes": []}


def test_a_camera_path_of_nerfstudio(tmp_path: Path):
    path = tmp_path / "theirs.json"
    views = [{"camera_to_world": POSE, "fov": 50, "aspect": 1.5, "render_time": 0.25}, {"camera_to_world": POSE, "fov": 40.0}]
    path.write_text(json.dumps(THEIRS | {"camera_path": views}))
    film = paths.film(str(path), NANO)
    assert film.fps == 24 and film.shot.size == (32, 48) and same(torch.rad2deg(film.shot.fovy), torch.tensor([50.0, 40.0]))
    assert same(film.shot.c2w[0], orbit_camera(*torch.tensor([[0.0], [0.0], [3.0]]))[0]) and film.shot.time.tolist() == [0.25, 0.5]
    assert paths.film(str(path), NANO, paths.PathOptions(64, 12.0)).shot.size == (64, 96)


@pytest.mark.parametrize(
    "told, word",
    [
        ({"camera_path": []}, "camera_path"), ({"camera_path": [{"fov": 50}]}, "camera_to_world"),
        ({"camera_path": [{"camera_to_world": [1.0] * 16, "fov": 50}]}, "turn"),
        ({"camera_path": [{"camera_to_world": POSE}]}, "fov"),
        ({"camera_path": [{"camera_to_world": POSE, "fov": 50, "render_time": 2}]}, "render_time"),
        ({"camera_path": [{"camera_to_world": POSE, "fov": 50}], "camera_type": "fisheye"}, "fisheye"),
        ({"camera_path": [{"camera_to_world": POSE, "fov": 50}], "render_height": 1, "render_width": 1}, "render_height"),
    ],
)  # fmt: skip
def test_a_path_of_nerfstudio_that_is_none(tmp_path: Path, told: dict, word: str):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(THEIRS | told))
    with pytest.raises(FourdfyError) as error:
        paths.film(str(path), NANO)
    assert error.value.code == 2 and word in error.value.message and "\n" not in error.value.message

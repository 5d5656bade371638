"""GLB files: what the Khronos validator says, what a browser shows, and what the bytes mean."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Stage, node_packages, validate
from samples import TINY, ball, bent, matter

from fourdfy_cli.output import gltf, render
from fourdfy_cli.output.sequence import MeshOptions, meshes
from fourdfy_cli.output.splats import splats
from fourdfy_cli.scene.scene import Scene

CHOICE = MeshOptions(frames=4, fps=4, resolution=48)
SIZE = 200


def made(kind: str) -> tuple[Scene, bytes]:
    scene = bent() if kind == "morphing" else matter(ball)
    cut = meshes(scene, CHOICE, lambda items, *_: items)
    return scene, gltf.morphing(cut, 4, {}, True) if kind == "morphing" else gltf.in_turn(cut, 4, {"prompt": "a ball"})


def parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<I", content[12:16])[0]
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def values(told: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    accessor = told["accessors"][index]
    kind = {gltf.FLOAT: "<f4", gltf.USHORT: "<u2", gltf.UINT: "<u4"}[accessor["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    offset = told["bufferViews"][accessor["bufferView"]]["byteOffset"]
    return np.frombuffer(binary, kind, accessor["count"] * width, offset).reshape(-1, width)


def test_meshes_in_turn():
    told, binary = parsed(made("in turn")[1])
    (animation,) = told["animations"]
    times = values(told, binary, animation["samplers"][0]["input"])[:, 0]
    shown = np.stack([values(told, binary, one["output"])[:, 0] for one in animation["samplers"]])
    assert times.tolist() == [0, 0.25, 0.5, 0.75, 1] and (shown[:, :4] == np.eye(4)).all() and shown[3, 4] == 1
    assert all(one["interpolation"] == "STEP" for one in animation["samplers"])
    assert [node.get("scale") for node in told["nodes"]] == [None, [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert told["asset"]["extras"] == {"prompt": "a ball"}
    top = values(told, binary, told["meshes"][2]["primitives"][0]["attributes"]["POSITION"])
    assert top[:, 1].max() == pytest.approx(0.8, abs=0.03) and top[:, 2].max() == pytest.approx(0.6, abs=0.03)  # up is y, ahead is z


@pytest.mark.parametrize("closed", [True, False])
def test_one_mesh_that_morphs(closed: bool):
    cut = meshes(bent(), CHOICE, lambda items, *_: items)
    told, binary = parsed(gltf.morphing(cut, 4, {}, closed))
    (mesh,) = told["meshes"]
    (primitive,) = mesh["primitives"]
    (sampler,) = told["animations"][0]["samplers"]
    weights = values(told, binary, sampler["output"]).reshape(5, 3)
    assert sampler["interpolation"] == "LINEAR" and mesh["weights"] == [0, 0, 0]
    assert (weights[1:4] == np.eye(3)).all() and not weights[0].any() and weights[4].tolist() == ([0, 0, 0] if closed else [0, 0, 1])
    start = values(told, binary, primitive["attributes"]["POSITION"])
    for target, each in zip(primitive["targets"], cut[1:], strict=True):
        assert np.allclose(start + values(told, binary, target["POSITION"]), each.vertices[:, [1, 2, 0]], atol=1e-6)


def test_colours_are_linear():
    known = {0.0: 0.0, 0.04045: 0.0031308, 0.2: 0.0331048, 0.5: 0.2140411, 0.735357: 0.5, 1.0: 1.0}
    assert np.allclose(gltf.linear(np.array(list(known))), list(known.values()), atol=1e-5)
    assert gltf.rgba(np.array([[1.0, 0.0, 0.5]])).tolist() == [[65535, 0, round(0.2140411 * 65535), 65535]]


@pytest.fixture
def packages(request: pytest.FixtureRequest) -> Path:
    return node_packages(request.config.cache.mkdir("node"))


def test_the_validator_has_nothing_to_say(packages: Path, tmp_path: Path):
    for kind in ("in turn", "morphing"):
        (tmp_path / "a.glb").write_bytes(made(kind)[1])
        report = validate(packages, tmp_path / "a.glb")
        assert report["issues"]["numErrors"] == report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
        assert report["info"]["animationCount"] == 1 and report["info"]["hasMorphTargets"] == (kind == "morphing")


def test_splats_are_valid_but_for_the_extension_that_the_validator_does_not_know(packages: Path, tmp_path: Path):
    (tmp_path / "a.glb").write_bytes(gltf.splatted([splats(matter(), time, 24) for time in (0.0, 0.5)], 2, {}))
    messages = validate(packages, tmp_path / "a.glb")["issues"]["messages"]
    assert {one["code"] for one in messages} <= {"UNSUPPORTED_EXTENSION", "MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
    assert all("KHR_gaussian_splatting" in one["message"] + one["pointer"] for one in messages), messages


@pytest.fixture
def opened() -> Iterator[list[Stage]]:
    stages: list[Stage] = []
    yield stages
    for stage in stages:
        stage.driver.quit()


@pytest.mark.parametrize("kind", ["in turn", "morphing"])
def test_a_browser_shows_what_is_rendered(packages: Path, tmp_path: Path, opened: list[Stage], kind: str):
    scene, content = made(kind)
    (tmp_path / "a.glb").write_bytes(content)
    opened.append(Stage(packages, tmp_path, tmp_path / "a.glb", SIZE))
    assert opened[0].about == {"duration": 1, "materials": 1}
    shot = render.shot(torch.tensor([0.6, 0.6]), torch.tensor([0.0, 0.5]), render.orbit_of(TINY, SIZE))
    pictures = [opened[0].shoot(t, shot.c2w[k].numpy(), float(shot.fovy[k])) for k, t in ((0, 0.0), (1, 0.5))]
    for picture, view in zip(pictures, render.rendered_views(scene, TINY, shot), strict=True):
        drawn, seen = picture[..., 3] > 127, view.opacity > 0.5
        assert (drawn & seen).sum() / (drawn | seen).sum() > 0.9
        assert np.abs(picture[drawn & seen][:, :3].astype(int) - view.picture[drawn & seen]).mean() < 8
    first, second = (picture[..., 3] > 127 for picture in pictures)
    assert (first ^ second).sum() > 0.2 * first.sum()

"""Scenes as files that other programs open: the suffix picks the writer. Whole files or none, whole folders or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourdfy_cli import __version__
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import gltf, usd
from fourdfy_cli.output.extras import require
from fourdfy_cli.output.mesh import Mesh
from fourdfy_cli.output.sequence import Counted, MeshOptions, meshes, one_topology
from fourdfy_cli.output.splats import splats, write_ply
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store import files

WANTED = {".glb": (), ".usdc": ("pxr",), ".usdz": ("pxr",), ".ply": ("trimesh",), ".obj": ("trimesh",)}  # beside what meshes want
WITH_SPLATS = (".glb", ".ply")


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself: where it is from, and whether the end of time leads into the beginning."""

    origin: dict[str, Any]
    closed: bool


def check(path: Path, as_splats: bool) -> None:
    """Raises FourdfyError: exit 2 for a suffix that no writer has, exit 3 for packages that are not installed."""
    can = WITH_SPLATS if as_splats else tuple(WANTED)
    if path.suffix not in can:
        what = f"{'splats go' if as_splats else 'a scene goes'} to {', '.join(can)}, not to {path.suffix or 'a name without a suffix'!r}"
        raise FourdfyError(what, typed("fourdfy", "export", "RUN", path.with_suffix(can[0])), USAGE)
    require("export", *(() if as_splats else ("skimage", "fast_simplification", *WANTED[path.suffix])))


def place(path: Path, frames: int) -> Path:
    """Where it goes: the file itself, or, for several .ply or .obj, the folder of that name."""
    return path.with_suffix("") if path.suffix in (".ply", ".obj") and frames > 1 else path


def export(scene: Scene, path: Path, choice: MeshOptions, metadata: Metadata, counted: Counted) -> dict[str, Any]:
    """Write the meshes of a scene; what they are like. Raises FourdfyError as `check` and `mesh`, exit 1 where the disk refuses."""
    check(path, False)
    cut = meshes(scene, choice, counted)
    origin = metadata.origin | {"threshold": cut[0].threshold}
    rows = [_row(each, time) for each, time in zip(cut, choice.times, strict=True)]
    if path.suffix == ".glb":
        one = len(cut) > 1 and one_topology(cut)
        _write(path, gltf.morphing(cut, choice.fps, origin, metadata.closed) if one else gltf.in_turn(cut, choice.fps, origin))
    elif path.suffix in (".usdc", ".usdz"):
        with files.replacing(path) as temporary:
            usd.write_usd(temporary, cut, choice.fps, origin)
    else:
        points = np.concatenate([each.vertices for each in cut])
        _numbered(path, cut, save_mesh, rows, _about(choice, metadata, origin, points))
    return {"threshold": cut[0].threshold, "one_topology": one_topology(cut), "meshes": rows}


def export_splats(scene: Scene, path: Path, choice: MeshOptions, metadata: Metadata, counted: Counted) -> dict[str, Any]:
    """Write the scene as Gaussians, converted from its field. Raises as `export`."""
    check(path, True)
    clouds = list(counted((splats(scene, time, choice.resolution) for time in choice.times), choice.frames, "splats"))
    origin = metadata.origin | {"made": "a radiance field converted to Gaussians, not optimised as such"}
    rows = [{"time": time, "splats": len(each.centres)} for each, time in zip(clouds, choice.times, strict=True)]
    if path.suffix == ".glb":
        _write(path, gltf.splatted(clouds, choice.fps, origin))
    else:
        _numbered(path, clouds, write_ply, rows, _about(choice, metadata, origin, np.concatenate([each.centres for each in clouds])))
    return {"splats": rows}


def _row(each: Mesh, time: float) -> dict[str, Any]:
    return {"time": time, "vertices": len(each.vertices), "faces": len(each.faces), "watertight": each.watertight}


def _write(path: Path, content: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


def _about(choice: MeshOptions, metadata: Metadata, origin: dict[str, Any], points: np.ndarray) -> dict[str, Any]:
    """What sequence.json says beside its frames; `box` is the lower and the upper corner."""
    box = [points.min(0).tolist(), points.max(0).tolist()]
    about = {"generator": f"fourdfy {__version__}", "fps": choice.fps, "up": "z", "front": "x", "loops": metadata.closed, "box": box}
    return about | origin


def _numbered(path: Path, shapes: list, save: Callable[[Path, Any], None], rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """One file, or a folder of numbered ones and sequence.json."""
    if len(shapes) == 1:
        with files.replacing(path) as temporary:
            save(temporary, shapes[0])
        return
    with files.filled(place(path, len(shapes))) as folder:
        assert folder
        names = [f"{path.stem}-{k:04}{path.suffix}" for k in range(len(shapes))]
        for name, shape in zip(names, shapes, strict=True):
            save(folder / name, shape)
        listed = [{"file": name, **row} for name, row in zip(names, rows, strict=True)]
        (folder / "sequence.json").write_text(json.dumps(about | {"frames": listed}, indent=1), encoding="utf-8")


def save_mesh(path: Path, each: Mesh) -> None:
    """A .ply (binary) or .obj file with normals and colours, 8 bits each."""
    from trimesh.exchange.obj import export_obj
    from trimesh.exchange.ply import export_ply

    body = each.trimesh()
    if path.suffix == ".ply":
        path.write_bytes(export_ply(body, vertex_normal=True))
    else:
        path.write_text(str(export_obj(body, include_normals=True)), encoding="utf-8")

"""Animated GLB files (glTF 2.0) that play without plugins. The format: Khronos' specification, sections 3.6 (buffers), 3.7.2.2 (morph
targets), 3.11 (animations) and 4.4 (GLB).

glTF is y up with fronts along +z, the world z up with fronts along +x: (x, y, z) becomes (y, z, x). Colours are linear there. The material
is unlit, as the field's light is in its colours already.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from fourdfy_cli import __version__
from fourdfy_cli.output.mesh import Mesh
from fourdfy_cli.output.splats import Splats

FLOAT, USHORT, UINT = 5126, 5123, 5125  # component types
VERTICES, INDICES = 34962, 34963  # buffer targets
SHAPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


class Builder:
    """A glTF file in the making: its JSON, and the bytes of its one buffer."""

    def __init__(self, told: dict[str, Any]):
        self.binary = bytearray()
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": f"fourdfy {__version__}", "extras": told},
            "accessors": [], "bufferViews": [], "nodes": [], "meshes": [],
        }  # fmt: skip

    def append(self, key: str, value: dict[str, Any]) -> int:
        """The index of a new entry of a list."""
        entries = self.json.setdefault(key, [])
        entries.append(value)
        return len(entries) - 1

    def accessor(self, values: np.ndarray, target: int | None = None, bounds: bool = False) -> int:
        """An array [N] or [N C] of float32, uint16 (fractions of 65535) or uint32."""
        values = np.ascontiguousarray(values)
        kind = {"f": FLOAT, "H": USHORT, "I": UINT}[values.dtype.char]
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes}
        self.binary += values.tobytes() + bytes(-values.nbytes % 4)
        shape = SHAPES[1 if values.ndim == 1 else values.shape[1]]
        entry: dict[str, Any] = {"componentType": kind, "count": len(values), "type": shape}
        entry["bufferView"] = self.append("bufferViews", view | ({"target": target} if target else {}))
        if kind == USHORT:
            entry["normalized"] = True
        if bounds:
            entry |= {"min": np.atleast_1d(values.min(0)).tolist(), "max": np.atleast_1d(values.max(0)).tolist()}
        return self.append("accessors", entry)

    def shape(self, primitive: dict[str, Any], name: str, **more: Any) -> int:
        """A node with a mesh of one primitive."""
        mesh = self.append("meshes", {"name": name, "primitives": [primitive], **more})
        return self.append("nodes", {"name": name, "mesh": mesh})

    def bytes(self) -> bytes:
        """The whole file."""
        everything = list(range(len(self.json["nodes"])))
        whole = self.json | {"scene": 0, "scenes": [{"nodes": everything}], "buffers": [{"byteLength": len(self.binary)}]}
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def y_up(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N 3] of the world in glTF's axes."""
    return vectors[:, [1, 2, 0]].astype(np.float32)


def linear(colors: np.ndarray) -> np.ndarray:
    """rgb [N 3] of pictures (sRGB, in [0,1]) as linear ones."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def rgba(colors: np.ndarray) -> np.ndarray:
    """Opaque vertex colours, uint16."""
    return (np.pad(linear(colors), ((0, 0), (0, 1)), constant_values=1) * 65535).round().astype(np.uint16)


def in_turn(cut: list[Mesh], fps: float, told: dict[str, Any]) -> bytes:
    """A GLB of meshes that are shown one after another: STEP keyframes of their nodes' scale, one or nothing."""
    builder = Builder(told)
    nodes = [builder.shape(primitive(builder, each), f"frame-{k:04}") for k, each in enumerate(cut)]
    flip_book(builder, nodes, fps)
    return builder.bytes()


def flip_book(builder: Builder, nodes: list[int], fps: float) -> None:
    """Show nodes one after another, each for a frame; where nothing plays, the first one is seen."""
    if len(nodes) == 1:
        return
    for node in nodes[1:]:
        builder.json["nodes"][node]["scale"] = [0, 0, 0]
    shown = np.eye(len(nodes), dtype=np.float32)[:, [*range(len(nodes)), -1]]  # the last key ends the last frame
    rows = [(node, "scale", builder.accessor(np.repeat(row[:, None], 3, 1))) for node, row in zip(nodes, shown, strict=True)]
    animate(builder, len(nodes), fps, "STEP", rows)


def animate(builder: Builder, frames: int, fps: float, how: str, rows: list[tuple[int, str, int]]) -> None:
    """One animation with a key a frame and one at the end: (node, path, accessor of its values) for each channel."""
    times = builder.accessor((np.arange(frames + 1) / fps).astype(np.float32), bounds=True)
    samplers = [{"input": times, "interpolation": how, "output": values} for *_, values in rows]
    channels = [{"sampler": k, "target": {"node": node, "path": path}} for k, (node, path, _) in enumerate(rows)]
    builder.append("animations", {"name": "motion", "samplers": samplers, "channels": channels})


def primitive(builder: Builder, each: Mesh) -> dict[str, Any]:
    """Triangles with normals and colours, unlit."""
    if "materials" not in builder.json:
        plain = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1}
        builder.append("materials", {"name": "as seen", "pbrMetallicRoughness": plain, "extensions": {"KHR_materials_unlit": {}}})
        builder.json["extensionsUsed"] = ["KHR_materials_unlit"]
    attributes = {
        "POSITION": builder.accessor(y_up(each.vertices), VERTICES, bounds=True),
        "NORMAL": builder.accessor(y_up(each.normals), VERTICES),
        "COLOR_0": builder.accessor(rgba(each.colors), VERTICES),
    }
    return {"attributes": attributes, "indices": builder.accessor(each.faces.astype(np.uint32).ravel(), INDICES), "material": 0}


def morphing(cut: list[Mesh], fps: float, told: dict[str, Any], closed: bool) -> bytes:
    """A GLB of one mesh that goes through the shapes of all: morph targets, LINEAR between frames. `closed`: the last leads into the first;
    otherwise it stays."""
    builder, first = Builder(told), cut[0]
    body, targets = primitive(builder, first), cut[1:]
    for each in targets:
        gap = {"POSITION": (each.vertices - first.vertices, True), "NORMAL": (each.normals - first.normals, False)}
        entry = {name: builder.accessor(y_up(values), VERTICES, bounds) for name, (values, bounds) in gap.items()}
        body.setdefault("targets", []).append(entry)
    names = [f"frame-{k:04}" for k in range(1, len(cut))]
    more = {"weights": [0] * len(targets), "extras": {"targetNames": names}} if targets else {}
    node = builder.shape(body, "thing", **more)
    if targets:
        weights = np.eye(len(cut), dtype=np.float32)[[*range(len(cut)), 0 if closed else -1], 1:]
        animate(builder, len(cut), fps, "LINEAR", [(node, "weights", builder.accessor(weights.ravel()))])
    return builder.bytes()


def splatted(clouds: list[Splats], fps: float, told: dict[str, Any]) -> bytes:
    """A GLB of Gaussians (KHR_gaussian_splatting; points where it is not known), shown one after another."""
    builder = Builder(told)
    builder.json["extensionsUsed"] = ["KHR_gaussian_splatting"]
    flip_book(builder, [builder.shape(_cloud(builder, each), f"frame-{k:04}") for k, each in enumerate(clouds)], fps)
    return builder.bytes()


def _cloud(builder: Builder, each: Splats) -> dict[str, Any]:
    count = len(each.centres)
    values = {
        "SCALE": np.full((count, 3), each.sigma, np.float32),
        "ROTATION": np.tile(np.array([0, 0, 0, 1], np.float32), (count, 1)),
        "OPACITY": each.opacity.astype(np.float32),
        "SH_DEGREE_0_COEF_0": each.harmonics.astype(np.float32),
    }
    attributes = {f"KHR_gaussian_splatting:{name}": builder.accessor(array, VERTICES) for name, array in values.items()}
    attributes |= {"POSITION": builder.accessor(y_up(each.centres), VERTICES, bounds=True)}
    attributes |= {"COLOR_0": builder.accessor(rgba(each.colors), VERTICES)}
    kind = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "sortingMethod": "cameraDistance", "projection": "perspective"}
    return {"mode": 0, "attributes": attributes, "extensions": {"KHR_gaussian_splatting": kind}}

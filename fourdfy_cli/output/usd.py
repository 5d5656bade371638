"""USD files: one mesh with time samples, z up. Of meshes that share their faces only points and normals change."""

# pxr tells no types:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fourdfy_cli.errors import FAILURE, FourdfyError
from fourdfy_cli.output.gltf import linear
from fourdfy_cli.output.mesh import Mesh
from fourdfy_cli.output.sequence import one_topology
from fourdfy_cli.output.textfile import typed


def write_usd(path: Path, cut: list[Mesh], fps: float, told: dict[str, Any]) -> None:
    """A .usdc or .usdz file. Raises FourdfyError (exit 1) where it cannot be written."""
    from pxr import Sdf, Tf, UsdUtils

    stage = _stage(cut, fps, told)
    try:
        if path.suffix == ".usdc":
            done = stage.Export(str(path))
        else:
            with tempfile.TemporaryDirectory() as folder:
                layer = str(Path(folder) / "scene.usdc")
                done = stage.Export(layer) and UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(layer), str(path))
    except Tf.ErrorException:
        done = False
    if not done:
        raise FourdfyError(f"USD cannot write {path.name}", typed("df", "-h", path.parent), FAILURE)


def _stage(cut: list[Mesh], fps: float, told: dict[str, Any]) -> Any:
    """A stage in memory: /Thing, shown by its own colours."""
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetMetadata("customLayerData", {name: str(value) for name, value in told.items()})
    mesh = UsdGeom.Mesh.Define(stage, "/Thing")
    stage.SetDefaultPrim(mesh.GetPrim())
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    colour = mesh.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
    _material(stage, mesh)
    for name in ("TimeCodesPerSecond", "FramesPerSecond"):
        getattr(stage, f"Set{name}")(fps)
    if len(cut) > 1:
        stage.SetStartTimeCode(0)
        stage.SetEndTimeCode(len(cut) - 1)
    fixed = one_topology(cut)
    for k, each in enumerate(cut):
        when = Usd.TimeCode(k) if len(cut) > 1 else Usd.TimeCode.Default()
        _shape(mesh, each, when)
        if k == 0 or not fixed:
            _topology(mesh, colour, each, Usd.TimeCode.Default() if fixed else when)
    return stage


def _shape(mesh: Any, each: Mesh, when: Any) -> None:
    from pxr import Vt

    mesh.GetPointsAttr().Set(Vt.Vec3fArray.FromNumpy(each.vertices.astype(np.float32)), when)
    mesh.GetNormalsAttr().Set(Vt.Vec3fArray.FromNumpy(each.normals.astype(np.float32)), when)
    box = np.stack([each.vertices.min(0), each.vertices.max(0)]).astype(np.float32)
    mesh.CreateExtentAttr().Set(Vt.Vec3fArray.FromNumpy(box), when)


def _topology(mesh: Any, colour: Any, each: Mesh, when: Any) -> None:
    from pxr import Vt

    mesh.GetFaceVertexCountsAttr().Set(Vt.IntArray.FromNumpy(np.full(len(each.faces), 3, np.int32)), when)
    mesh.GetFaceVertexIndicesAttr().Set(Vt.IntArray.FromNumpy(each.faces.astype(np.int32).ravel()), when)
    colour.Set(Vt.Vec3fArray.FromNumpy(linear(each.colors).astype(np.float32)), when)


def _material(stage: Any, mesh: Any) -> None:
    """A material that shows the vertex colours, for renderers that do not do so by themselves."""
    from pxr import Sdf, UsdShade

    material = UsdShade.Material.Define(stage, "/Thing/AsSeen")
    reader = UsdShade.Shader.Define(stage, "/Thing/AsSeen/Colour")
    reader.CreateIdAttr("UsdPrimvarReader_float3")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
    shader = UsdShade.Shader.Define(stage, "/Thing/AsSeen/Surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    found = reader.CreateOutput("result", Sdf.ValueTypeNames.Float3)
    shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(found)
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)

"""`fourdfy export`: a scene as meshes or splats that other programs open."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.cli.options import Source
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output.textfile import typed

Target = Annotated[Path, typer.Argument(metavar="OUT", help="The file: .glb, .usdc, .usdz, .ply or .obj.", show_default=False)]


@dataclass(frozen=True)
class ExportOptions(options.Common):
    """Options of `export`."""

    frames: Annotated[int | None, typer.Option("--frames", min=1, max=512, help="Moments.", show_default="16; 1 of a still scene")] = None
    fps: Annotated[float, typer.Option("--fps", min=0.1, max=240, help="Moments a second.")] = 16
    faces: Annotated[int | None, typer.Option("--faces", min=4, help="Triangles of a mesh, at most.", show_default="all")] = None
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Density on the surface.", show_default="where silhouettes fit best")
    ] = None
    resolution: Annotated[int, typer.Option("--resolution", min=8, max=512, help="Points of the grid along an axis.")] = 128
    splats: Annotated[bool, typer.Option("--splats", help="Gaussians converted from the field instead: .ply or .glb.")] = False
    device: options.Device = "cpu"


@options.grouped
def export(source: Source, out: Target, wanted: ExportOptions) -> None:
    """Hand a scene over as animated meshes or splats, from a checkpoint alone.

    .glb plays anywhere; .usdc and .usdz hold time samples; several .ply or .obj are numbered in the folder of that name."""
    from fourdfy_cli.output import export as library
    from fourdfy_cli.output.limits import within_memory
    from fourdfy_cli.output.render import load_scene

    again = ("fourdfy", "export", source)
    try:
        library.check(out, wanted.splats)
        options.check_device(wanted.device)
        options.check_writable(out.parent)
        with within_memory(out, typed(*again, out, "--resolution", "64")):
            scene, recipe, meta = load_scene(source, wanted.device)
            frames = wanted.frames or (16 if recipe.stage(meta["stage"]).moving else 1)
            target = library.place(out, frames)
            if target != out:
                options.check_free(target, "a sequence's files", lambda free: typed(*again, free.with_name(free.name + out.suffix)))
            wanted.output.finish(_written(out, scene, recipe, meta, frames, wanted))
    except FourdfyError as error:
        hint = re.sub(r"(?<= )RUN(?= |$)", lambda _: typed(source), error.hint)  # what cuts the field does not know where it is from
        raise FourdfyError(error.message, hint, error.code) from None


def _written(out: Path, scene: Any, recipe: Any, meta: dict[str, Any], frames: int, wanted: ExportOptions) -> dict[str, Any]:
    """Write it; the result for people and programs."""
    from fourdfy_cli.output import export as library
    from fourdfy_cli.output.render import closes
    from fourdfy_cli.output.sequence import MeshOptions

    choice = MeshOptions(frames, wanted.fps, wanted.faces, wanted.threshold, wanted.resolution)
    told = library.Metadata({name: meta[name] for name in ("prompt", "seed", "stage")}, frames == 1 or closes(scene, recipe))
    write = library.export_splats if wanted.splats else library.export
    found = write(scene, out, choice, told, wanted.output.counted)
    rows = found["splats" if wanted.splats else "meshes"]
    target = library.place(out, frames)
    size = sum(file.stat().st_size for file in (target.iterdir() if target.is_dir() else [target]))
    summary: dict[str, Any] = {"file": target, "frames": frames, "bytes": size}
    if not wanted.splats:
        tight = sum(row["watertight"] for row in rows)
        summary |= {"threshold": found["threshold"], "one_topology": found["one_topology"], "watertight": tight / len(rows)}
    return summary | {"table": rows}

"""`fourdfy view`: look around a scene in the browser."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import complete, options
from fourdfy_cli.console import emit
from fourdfy_cli.errors import INTERRUPTED, FourdfyError
from fourdfy_cli.output.textfile import typed

if TYPE_CHECKING:
    from fourdfy_cli.output.viewer import Viewer

Source = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT", help="A checkpoint or a run folder.", show_default=False, autocompletion=complete.sources),
]


@dataclass(frozen=True)
class ViewOptions(options.Common):
    """Options of `view`."""

    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Where the page is served.", show_default="8080, or the next free one")
    ] = None
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets everybody in the network wanted.")] = "127.0.0.1"
    size: Annotated[int, typer.Option("--size", min=16, max=2048, help="Largest height of a picture, pixels.")] = 512
    device: options.Device = "cpu"


@options.grouped
def view(source: Source, wanted: ViewOptions) -> None:
    """Look around a scene in the browser, through time; Ctrl-C ends it.

    No diffusion model is loaded."""
    from fourdfy_cli.output.extras import require

    require("viewer", "viser")
    options.check_device(wanted.device)
    from fourdfy_cli.output.loaded import load
    from fourdfy_cli.output.viewer import Still, serve
    from fourdfy_cli.run.signals import StopSignals

    scene = load(source, wanted.device)
    with StopSignals() as signals:
        viewer = serve(Still(scene), scene.recipe, wanted.host, wanted.port, wanted.size)
        _tell(wanted, viewer)
        while signals.raised is None:
            time.sleep(0.1)
        viewer.stop()
    if signals.raised != INTERRUPTED:
        raise FourdfyError("stopped by a signal", typed("fourdfy", "view", source), signals.raised)
    wanted.output.finish({"url": viewer.url, **measured(list(viewer.times))})


def _tell(wanted: ViewOptions, viewer: Viewer) -> None:
    """Where to wanted, and who else may."""
    if wanted.json:
        emit({"event": "viewer", "url": viewer.url})
    else:
        wanted.output.note(f"open {viewer.url} in a browser; Ctrl-C ends it")
    if wanted.host not in ("127.0.0.1", "localhost", "::1"):
        wanted.output.note(f"everybody who reaches {viewer.url} may wanted: there is no password")


def measured(times: list[float]) -> dict[str, Any]:
    """How many pictures were drawn, and how long they took."""
    if len(times) < 2:
        return {"pictures": len(times)}
    return {"pictures": len(times), "median_ms": 1000 * statistics.median(times), "p95_ms": 1000 * statistics.quantiles(times, n=20)[-1]}

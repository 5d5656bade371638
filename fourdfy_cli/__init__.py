"""fourdfy: a sentence becomes a moving 3D scene, by hybrid score distillation sampling (4D-fy, CVPR 2024).

    import fourdfy_cli as fourdfy

    run = fourdfy.generate("a red dog jumping", preset="nano")      # in a notebook, `run` shows its video
    scene = fourdfy.load(run.run_dir)                               # or any run folder or checkpoint
    frames = scene.render(fourdfy.cameras(azimuth=[0, 90]), times=0.5)
    mesh = scene.mesh(time=0.5)
    density, rgb = scene.field([[0, 0, 0]], t=0.5)

Importing this loads nothing else: each name comes when it is asked for. What goes wrong is a FourdfyError with `message`, `hint`, `code`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourdfy_cli.errors import FourdfyError
    from fourdfy_cli.output.loaded import Cameras, LoadedScene, cameras, load
    from fourdfy_cli.run.api import generate
    from fourdfy_cli.run.result import RunResult

__version__ = "0.1.0"
__all__ = ["Cameras", "FourdfyError", "LoadedScene", "RunResult", "cameras", "generate", "load"]

HOMES = {
    "generate": "run.api",
    "RunResult": "run.result",
    "load": "output.loaded",
    "LoadedScene": "output.loaded",
    "Cameras": "output.loaded",
    "cameras": "output.loaded",
    "FourdfyError": "errors",
}


def __getattr__(name: str) -> Any:
    """A name of the Python interface, from the module where it lives."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

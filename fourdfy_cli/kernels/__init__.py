"""Fast backends of the scene's inner loops, and the choice among them. The plain torch one is the oracle that tests compare every
other one with.
"""

from __future__ import annotations

from importlib.util import find_spec

from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.scene.backend import TORCH, Backend

NAMES = ("auto", "torch", "numba", "triton", "tcnn")


def choose(name: str, device: str) -> Backend:
    """The backend of that name for a device ("cpu", "cuda", "cuda:1"); "auto" is numba on a CPU, and on a GPU triton, or torch
    where there is no triton.

    Raises FourdfyError: exit 2 for an unknown name or one that cannot use the device, 3 for a missing package.
    """
    if name not in NAMES:
        raise FourdfyError(f"there is no backend {name!r}", f"one of {', '.join(NAMES)}: --backend auto", USAGE)
    kind = device.split(":")[0]
    if name == "auto":
        name = "numba" if kind == "cpu" else "triton" if kind == "cuda" and find_spec("triton") else "torch"
    if name == "torch":
        return TORCH
    if kind != (wanted := "cpu" if name == "numba" else "cuda"):
        raise FourdfyError(f"the {name} backend runs on a {wanted} device, not on {device}", "--backend auto", USAGE)
    if name != "tcnn" and not find_spec(name):
        raise FourdfyError(f"the package {name} is not installed", f"or --backend torch: pip install {name}", ENVIRONMENT)
    return _imported(name)


def _imported(name: str) -> Backend:
    """The modules of a backend, imported when it is wanted."""
    if name == "numba":
        import numba

        from fourdfy_cli.kernels import numba_hashgrid, numba_volume

        # One vector of the two or four features of a row.
        numba.config.SLP_VECTORIZE = True  # pyright: ignore[reportAttributeAccessIssue]
        return Backend(name, numba_hashgrid.ENCODING, numba_volume.VOLUME)
    from fourdfy_cli.kernels import triton_hashgrid, triton_volume

    if name == "triton":
        return Backend(name, triton_hashgrid.ENCODING, triton_volume.VOLUME)
    from fourdfy_cli.kernels import tcnn

    tcnn.bindings()
    return Backend(name, tcnn.ENCODING, triton_volume.VOLUME)

"""What a scene computes its inner loops with; the fast ones are in kernels/."""

from __future__ import annotations

from typing import NamedTuple

from fourdfy_cli.scene import hashgrid, volume


class Backend(NamedTuple):
    """One implementation of every inner loop: the three functions of `hashgrid.Encoding` and the four of `volume.Volume`."""

    name: str
    encoding: hashgrid.Encoding
    volume: volume.Volume


TORCH = Backend("torch", hashgrid.TORCH, volume.TORCH)

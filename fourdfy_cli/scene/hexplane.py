"""Feature planes instead of hash grids: the HexPlane of the paper's ablation.

Space-time has six coordinate planes: xy, xz and yz hold what stays, zt, yt and xt, each the complement of one of them, what moves.
Each plane is a dense multiresolution grid in two dimensions, in the conventions of hashgrid.py. Sources: "HexPlane: A Fast
Representation for Dynamic Scenes", Cao and Johnson 2023 (the planes, their pairing, pairs summed and the three sums concatenated,
one of its fusions), and 4D-fy, Sec. 4.1 (static and dynamic features are added, at several resolutions). How the authors of 4D-fy
built theirs is not published; ours spends what the hash grids spend.
"""

from __future__ import annotations

import bisect
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli import config
from fourdfy_cli.scene.hashgrid import HashGrid, levels

PAIRS = {3: ((0, 1), (0, 2), (1, 2)), 4: ((2, 3), (1, 3), (0, 3))}  # axes of xy, xz, yz, and of their complements zt, yt, xt
FINE = 1024  # growth factors are multiples of 1 / FINE, so that they are the same numbers on every machine


class HexPlane(nn.Module):
    """Three planes of points in 3 or 4 dimensions; takes the place of a HashGrid of the same arguments."""

    def __init__(self, dims: int, grid: config.Grid, init: float, generator: torch.Generator):
        super().__init__()
        self.pairs = PAIRS[dims]
        plane = matched(dims, grid)
        self.planes = nn.ModuleList(HashGrid(2, plane, init, generator) for _ in self.pairs)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Features [N 3*levels*features], plane by plane, of points in [0,1]^D; differentiable in the planes and in x."""
        return torch.cat([plane(x[:, pair]) for plane, pair in zip(self.planes, self.pairs, strict=True)], 1)

    def attach(self, known: Float[Tensor, "N C"], x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """As HashGrid.attach."""
        parts = zip(self.planes, known.chunk(3, 1), self.pairs, strict=True)
        return torch.cat([plane.attach(part, x[:, pair]) for plane, part, pair in parts], 1)  # pyright: ignore[reportCallIssue]


def size(dims: int, grid: config.Grid) -> int:
    """Floats in a grid."""
    last = levels(dims, grid)[-1]
    return (last.offset + last.entries) * grid.features


def matched(dims: int, grid: config.Grid) -> config.Grid:
    """The dense plane three of which have as many floats as the hash grid: its levels, features and coarsest resolution, another
    growth (the largest that does not cost more, at least 1)."""

    def cost(growth: int) -> int:
        return 3 * size(2, replace(grid, log2_table=60, growth=growth / FINE))

    choices = range(FINE, 64 * FINE)
    found = bisect.bisect(choices, size(dims, grid), key=cost)
    return replace(grid, log2_table=60, growth=choices[max(found - 1, 0)] / FINE)

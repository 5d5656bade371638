"""Motion as displacement: where a point of space at a moment was in the static scene.

Source: the released code of 4D-fy, its deformation variant: a coarse 4D hash grid and a small network give a displacement, in units
of the box's side. Mended here: it starts at exactly zero (there: near it), and the displaced point stays inside the box (there: it
may leave it); field.py evaluates the density's bias at the displaced point (there: at the undisplaced one).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli import config
from fourdfy_cli.scene.hashgrid import TORCH, Encoding, HashGrid
from fourdfy_cli.scene.mlp import mlp


class Deformation(nn.Module):
    """4D hash grid -> two hidden layers of `hidden` without biases -> displacement; the last layer starts at zero."""

    def __init__(self, grid: config.Grid, hidden: int, init: float, generator: torch.Generator, encoding: Encoding = TORCH):
        super().__init__()
        self.grid = HashGrid(4, grid, init, generator, encoding)
        self.net = mlp((grid.levels * grid.features, hidden, hidden, 3), generator)
        *_, last = self.net.parameters()
        nn.init.zeros_(last)

    def displacement(self, x: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3"]:
        """How far from points of [0,1]^4 (place and time) those lie that they come from."""
        return self.net(self.grid(x))

    def forward(self, x: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3"]:
        """The points of [0,1]^3 that those of [0,1]^4 (place and time) come from."""
        return (x[:, :3] + self.displacement(x)).clamp(0, 1)

    @torch.no_grad()
    def inverse(self, origin: Float[Tensor, "N 3"], time: Float[Tensor, " N"], rounds: int = 40) -> Float[Tensor, "N 3"]:
        """Where the points of [0,1]^3 that come from `origin` lie at their times: the fixed point of x = origin - displacement(x), from
        damped rounds, of which each point keeps its best."""
        x, best = origin.clone(), origin.clone()
        least = torch.full_like(time, torch.inf)
        for _ in range(rounds):
            gap = origin - self(torch.cat([x, time[:, None]], 1))
            error = gap.norm(dim=1)
            best, least = torch.where((error < least)[:, None], x, best), torch.minimum(error, least)
            x = (x + 0.7 * gap).clamp(0, 1)
        return best

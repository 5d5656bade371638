"""The 4D radiance field: density and colour at a point of space and a moment.

Notation: N points `x` [N 3] in the scene box [-1,1]^3, times [N] in [0,1], features [N C]; `density` [N] per world
unit, `rgb` [N 3] in [0,1]. Source: 4D-fy, Sec. 4.1 (static and dynamic hash grids, added) and its released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli import config
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.scene.hashgrid import HashGrid
from fourdfy_cli.scene.mlp import mlp


class Field(nn.Module):
    """Static 3D grid + dynamic 4D grid -> a density net and a colour net of one hidden layer each, without biases."""

    def __init__(self, cfg: config.Field, generator: torch.Generator):
        super().__init__()
        channels = cfg.static.levels * cfg.static.features
        if channels != cfg.dynamic.levels * cfg.dynamic.features:
            raise FourdfyError(
                f"the grids' features are added, but the static one gives {channels} and the dynamic one "
                f"{cfg.dynamic.levels} x {cfg.dynamic.features}",
                f"--set field.dynamic.levels={cfg.static.levels} --set field.dynamic.features={cfg.static.features}",
                USAGE,
            )
        self.blob_height = cfg.blob_height
        self.static = HashGrid(3, cfg.static, cfg.init, generator)
        self.dynamic = HashGrid(4, cfg.dynamic, cfg.init, generator)
        self.density_net = mlp((channels, cfg.hidden, 1), generator)
        self.colour_net = mlp((channels, cfg.hidden, 3), generator)

    def features(self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """static(x) + dynamic(x, t), whatever the stage: a dynamic grid that is not trained yet is nearly zero."""
        unit = (x + 1) / 2
        return self.static(unit) + self.dynamic(torch.cat([unit, time[:, None]], 1))

    def attach(self, known: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Features that `features(x, time)` gave earlier without a graph, now with one to both grids (not to x)."""
        unit = (x + 1) / 2
        return self.dynamic.attach(self.static.attach(known, unit), torch.cat([unit, time[:, None]], 1))

    def density(self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"], blob_std: float) -> Float[Tensor, " N"]:
        """Density [N] >= 0; see `density_of`."""
        return self.density_of(self.features(x, time), x, blob_std)

    def forward(
        self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"], blob_std: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density [N] and colour sigmoid(net) [N 3]."""
        features = self.features(x, time)
        return self.density_of(features, x, blob_std), self.colour_of(features)

    def density_of(self, features: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], blob_std: float) -> Float[Tensor, " N"]:
        """softplus(net + blob_height (1 - |x| / blob_std)); the bias, a cone, starts the scene as a blob at the origin."""
        blob = self.blob_height * (1 - x.norm(dim=-1) / blob_std)
        return F.softplus(self.density_net(features)[:, 0] + blob)

    def colour_of(self, features: Float[Tensor, "N C"]) -> Float[Tensor, "N 3"]:
        """Colour sigmoid(net), the same from every side."""
        return torch.sigmoid(self.colour_net(features))

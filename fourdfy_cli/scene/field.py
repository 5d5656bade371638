"""The 4D radiance field: density and colour at a point of space and a moment.

Notation: N points `x` [N 3] in the scene box [-1,1]^3, times [N] in [0,1], features [N C]; `density` [N] per world
unit, `rgb` [N 3] in [0,1]. Source: 4D-fy, Sec. 4.1 (static and dynamic hash grids, added) and its released code.

Three kinds of field (`config.Field.kind`) share all but their `static` and `dynamic` part: "hashgrid" and "hexplane" add the features
of a point and those of a point at a moment; "deformation" looks the point that it came from up in a static grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli import config
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.scene import hashgrid
from fourdfy_cli.scene.deformation import Deformation
from fourdfy_cli.scene.hashgrid import Encoding, HashGrid
from fourdfy_cli.scene.hexplane import HexPlane
from fourdfy_cli.scene.mlp import activated, decode, mlp


class Field(nn.Module):
    """Static and dynamic part -> a density net and a colour net of one hidden layer each, without biases."""

    def __init__(self, cfg: config.Field, generator: torch.Generator, encoding: Encoding = hashgrid.TORCH):
        super().__init__()
        self.blob_height, self.density_power = cfg.blob_height, cfg.density_power
        self.static, self.dynamic, channels = self.parts(cfg, generator, encoding)
        self.density_net = mlp((channels, cfg.hidden, 1), generator)
        self.colour_net = mlp((channels, cfg.hidden, 3), generator)

    @staticmethod
    def parts(cfg: config.Field, generator: torch.Generator, encoding: Encoding):
        """Static part, dynamic part, and how many features a point gets. Raises FourdfyError (exit 2) if the two parts do not agree."""
        channels = cfg.static.levels * cfg.static.features
        if channels != cfg.dynamic.levels * cfg.dynamic.features:
            raise FourdfyError(
                f"the grids' features are added, but the static one gives {channels} and the dynamic one "
                f"{cfg.dynamic.levels} x {cfg.dynamic.features}",
                f"--set field.dynamic.levels={cfg.static.levels} --set field.dynamic.features={cfg.static.features}",
                USAGE,
            )
        if cfg.kind == "hexplane":
            return HexPlane(3, cfg.static, cfg.init, generator), HexPlane(4, cfg.dynamic, cfg.init, generator), 3 * channels
        parts = (HashGrid(dims, grid, cfg.init, generator, encoding) for dims, grid in ((3, cfg.static), (4, cfg.dynamic)))
        return *parts, channels

    def features(self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """static(x) + dynamic(x, t), whatever the stage: a dynamic grid that is not trained yet is nearly zero."""
        unit = (x + 1) / 2
        return self.static(unit).add_(self.dynamic(torch.cat([unit, time[:, None]], 1)))

    def attach(self, known: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Features that `features(x, time)` gave earlier without a graph, now with one to both parts (not to x)."""
        unit = (x + 1) / 2
        return self.dynamic.attach(self.static.attach(known, unit), torch.cat([unit, time[:, None]], 1))

    def density(self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"], blob_std: float) -> Float[Tensor, " N"]:
        """Density [N] >= 0; see `density_of`."""
        return self.density_of(self.features(x, time), x, blob_std)

    def forward(
        self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"], blob_std: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density [N] and colour sigmoid(net) [N 3]."""
        return self.decode(self.features(x, time), x, blob_std)

    def decode(
        self, features: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], blob_std: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density [N] = softplus(net + bias)^density_power and colour [N 3] = sigmoid(net), the same from every side, of points with these
        features."""
        features, x = self._placed(features, x)
        out = decode(features, self.density_net, self.colour_net)
        return activated(self._positive, out[:, 0] + self._bias(x, blob_std)), activated(torch.sigmoid, out[:, 1:])

    def density_of(self, features: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], blob_std: float) -> Float[Tensor, " N"]:
        """The density of `decode` alone."""
        features, x = self._placed(features, x)
        return activated(self._positive, decode(features, self.density_net)[:, 0] + self._bias(x, blob_std))

    def _positive(self, x: Tensor) -> Tensor:
        """softplus(x)^density_power: the higher the power, the steeper density leaps at a surface."""
        return F.softplus(x) if self.density_power == 1 else F.softplus(x) ** self.density_power

    def _placed(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and points as the nets and the bias want them."""
        return features, x

    def _bias(self, x: Tensor, blob_std: float) -> Tensor:
        """blob_height (1 - |x| / blob_std): a cone, which starts the scene as a blob at the origin."""
        return self.blob_height * (1 - x.norm(dim=-1) / blob_std)


class Deformed(Field):
    """A static grid alone, looked up at the points that the dynamic part says a moment's points came from."""

    @staticmethod
    def parts(cfg: config.Field, generator: torch.Generator, encoding: Encoding):
        static = HashGrid(3, cfg.static, cfg.init, generator, encoding)
        return static, Deformation(cfg.deformation, cfg.hidden, cfg.init, generator, encoding), cfg.static.levels * cfg.static.features

    def features(self, x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """static(y) and y itself, in the box [-1,1]^3, where y is the point that x came from."""
        origin = self.dynamic(torch.cat([(x + 1) / 2, time[:, None]], 1))
        return torch.cat([self.static(origin), 2 * origin - 1], 1)

    def attach(self, known: Float[Tensor, "N C"], x: Float[Tensor, "N 3"], time: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Looked up again, as the static part's gradient reaches the points."""
        return self.features(x, time)

    def _placed(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The density's bias goes along with the point."""
        return features[:, :-3], features[:, -3:]


def make(cfg: config.Field, generator: torch.Generator, encoding: Encoding = hashgrid.TORCH) -> Field:
    """The field of a kind; raises FourdfyError as `Field.parts`."""
    return (Deformed if cfg.kind == "deformation" else Field)(cfg, generator, encoding)

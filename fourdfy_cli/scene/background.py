"""What rays see that pass the scene by: a colour for every direction.

Notation: unit directions `d` [N 3], rgb [N 3] in [0,1]. Source: released code of 4D-fy (neural environment map).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli.scene.mlp import mlp


def spherical_harmonics(direction: Float[Tensor, "N 3"]) -> Float[Tensor, "N 9"]:
    """Real spherical harmonics of bands 0 to 2 at unit directions, orthonormal on the sphere, signs as in
    tiny-cuda-nn's encoding of degree 3."""
    x, y, z = direction.unbind(-1)
    constant = torch.full_like(x, 0.28209479177387814)
    linear = (-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x)
    quadratic = (
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
    )
    return torch.stack([constant, *linear, *quadratic], -1)


class Background(nn.Module):
    """Spherical harmonics -> two hidden layers without biases -> sigmoid."""

    def __init__(self, hidden: int, generator: torch.Generator):
        super().__init__()
        self.net = mlp((9, hidden, hidden, 3), generator)

    def forward(self, direction: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """rgb in [0,1] of unit directions."""
        return torch.sigmoid(self.net(spherical_harmonics(direction)))

"""The (3,1,1) convolutions of `UNet3DConditionModel` as 2D convolutions over (frames, pixels): the same numbers,
faster on a CPU. Weights and their names stay as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConvolution(nn.Conv3d):
    """A Conv3d of kernel (3,1,1), padding (1,0,0), computed as a Conv2d over [F, H*W]."""

    def forward(self, input: Tensor) -> Tensor:
        flat = F.conv2d(input.flatten(3), self.weight[..., 0], self.bias, padding=(1, 0))
        return flat.unflatten(3, input.shape[3:])


def flatten_temporal_convolutions(unet: nn.Module) -> None:
    """Replace every (3,1,1) convolution of a video UNet, keeping its parameters."""
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv3d and child.kernel_size == (3, 1, 1) and child.padding == (1, 0, 0):
                twin = TemporalConvolution(child.in_channels, child.out_channels, (3, 1, 1), padding=(1, 0, 0), device="meta")
                twin.weight, twin.bias = child.weight, child.bias
                setattr(module, name, twin)

"""Convolutions of the stock UNets as other operations of the same result, faster on a CPU. Weights and their names stay as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConvolution(nn.Conv3d):
    """A Conv3d of kernel (3,1,1), padding (1,0,0), computed as a Conv2d over [F, H*W]."""

    def forward(self, input: Tensor) -> Tensor:
        flat = F.conv2d(input.flatten(3), self.weight[..., 0], self.bias, padding=(1, 0))
        return flat.unflatten(3, input.shape[3:])


class PointwiseConvolution(nn.Conv2d):
    """A Conv2d of kernel 1 as a matrix product, which, unlike oneDNN's convolution, gives the same bits on any number of threads."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight[..., 0, 0].expand(len(input), -1, -1)
        flat = torch.bmm(weight, input.flatten(2)) if self.bias is None else torch.baddbmm(self.bias[:, None], weight, input.flatten(2))
        return flat.unflatten(2, input.shape[2:])


# What a convolution must be for its replacement to do the same.
TEMPORAL = {"groups": 1, "kernel_size": (3, 1, 1), "padding": (1, 0, 0), "stride": (1, 1, 1), "dilation": (1, 1, 1)}
POINTWISE = {"groups": 1, "kernel_size": (1, 1), "padding": (0, 0), "stride": (1, 1)}
REPLACEMENTS = ((nn.Conv3d, TemporalConvolution, TEMPORAL), (nn.Conv2d, PointwiseConvolution, POINTWISE))


def flatten_convolutions(unet: nn.Module) -> None:
    """Replace every (3,1,1) and every (1,1) convolution of a UNet, keeping its parameters."""
    for module in list(unet.modules()):
        for name, child in module.named_children():
            for kind, replacement, about in REPLACEMENTS:
                if type(child) is kind and all(getattr(child, key) == value for key, value in about.items()):
                    made = replacement(child.in_channels, child.out_channels, **about, bias=child.bias is not None, device="meta")
                    made.weight, made.bias = child.weight, child.bias
                    setattr(module, name, made)

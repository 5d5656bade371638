"""Small fully connected networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def mlp(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Linear layers without biases, ReLU between them; weights start in U(-1/sqrt(fan in), 1/sqrt(fan in)), which is
    nn.Linear's own start but drawn from `generator`."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = torch.nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=False)
        nn.init.uniform_(layer.weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])

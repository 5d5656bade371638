"""Small fully connected networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mlp(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Linear layers without biases, ReLU between them; weights start in U(-1/sqrt(fan in), 1/sqrt(fan in)), which is
    nn.Linear's own start but drawn from `generator`."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = torch.nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=False)
        (weight,) = layer.parameters()
        nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def decode(features: Float[Tensor, "N C"], *nets: nn.Sequential) -> Float[Tensor, "N K"]:
    """Outputs, side by side, of nets of one hidden layer as `mlp` makes them; differentiable.

    The hidden layers are one matrix product, their activations are overwritten by the ReLU and, on the way back, by their
    gradient: half the memory traffic of the modules one after another, which is what such small layers cost.
    """
    hidden, outer = zip(*(net.parameters() for net in nets), strict=True)
    return _Decode.apply(features, torch.cat(hidden), torch.block_diag(*outer))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, first: Tensor, last: Tensor) -> Tensor:
        hidden = (features @ first.t()).relu_()
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(features, first, last, hidden)
        return hidden @ last.t()

    @staticmethod
    def backward(ctx, grad: Tensor):
        features, first, last, hidden = ctx.saved_tensors
        to_last = grad.t() @ hidden
        to_hidden = torch.ops.aten.threshold_backward(grad @ last, hidden, 0)
        return to_hidden @ first, to_hidden.t() @ features, to_last

"""Small fully connected networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 2**13  # points; two hidden layers of 32 are 2 MB then
SLICES = 16  # of the points that a weight's gradient is a sum over


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

    The hidden layers are one matrix product. A CPU takes BLOCK points at a time, whose hidden layers never leave its cache, and works
    them out again on the way back: memory traffic is what such small layers cost.
    """
    hidden, outer = zip(*(net.parameters() for net in nets), strict=True)
    return _Decode.apply(features, torch.cat(hidden), torch.block_diag(*outer))


def activated(function: Callable[[Tensor], Tensor], x: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
    """An elementwise function of x, on a CPU BLOCK rows of up to three at a time: torch leaves so few elements to one thread. Of more, each
    thread gets a part, whose last elements are worked out one by one by other instructions: bits would depend on how many there are."""
    return function(x) if x.device.type != "cpu" else torch.cat([function(part.contiguous()) for part in x.split(BLOCK)])


def _blocks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor [N ...], BLOCK at a time on a CPU, all at once elsewhere."""
    size = BLOCK if rows[0].device.type == "cpu" else max(len(rows[0]), 1)
    return zip(*(part.split(size) for part in rows), strict=True)


def weight_gradient(to_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N C"]) -> Float[Tensor, "K C"]:
    """to_outputs^T inputs. On a CPU of slices first, each of which one thread sums: on some processors MKL shares out a long sum among its
    threads, and bits would depend on how many there are."""
    if inputs.device.type != "cpu":
        return to_outputs.t() @ inputs
    each = len(inputs) // SLICES
    g, x = (rows[: SLICES * each].reshape(SLICES, each, rows.shape[1]) for rows in (to_outputs, inputs))
    return torch.bmm(g.transpose(1, 2), x).sum(0).addmm_(to_outputs[SLICES * each :].t(), inputs[SLICES * each :])


def precision(x: Tensor) -> torch.dtype:
    """What the matrix products are computed in: bfloat16 for float32 on GPUs that multiply it (compute capability 8.0 and above;
    sums within a product stay float32), else x's own. tiny-cuda-nn computes in float16, the released code of 4D-fy in float32."""
    native = x.is_cuda and x.dtype == torch.float32 and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return torch.bfloat16 if native else x.dtype


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, first: Tensor, last: Tensor) -> Tensor:
        ctx.save_for_backward(features, first, last)
        kind, out = precision(features), features.new_empty(len(features), len(last))
        first, last = first.to(kind), last.to(kind)
        for inputs, outputs in _blocks(features, out):
            outputs.copy_((inputs.to(kind) @ first.t()).relu_() @ last.t())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        features, first, last = ctx.saved_tensors
        to_features, to_first, to_last = torch.empty_like(features), torch.zeros_like(first), torch.zeros_like(last)
        kind = precision(features)
        first, last = first.to(kind), last.to(kind)
        for inputs, to_outputs, to_inputs in _blocks(features, grad, to_features):
            inputs, to_outputs = inputs.to(kind), to_outputs.to(kind)
            hidden = (inputs @ first.t()).relu_()
            to_last += weight_gradient(to_outputs, hidden)
            to_hidden = to_outputs @ last
            torch.ops.aten.threshold_backward.grad_input(to_hidden, hidden, 0, grad_input=to_hidden)
            to_first += weight_gradient(to_hidden, inputs)
            to_inputs.copy_(to_hidden @ first)
        return to_features, to_first, to_last

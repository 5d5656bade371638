"""The hash grid by tiny-cuda-nn, where its torch bindings are installed; the functions of `scene.hashgrid`, on CUDA devices.

The bindings are called as their own `tinycudann/modules.py` does: a native encoding has `fwd(points, parameters)`, which keeps
what `bwd` needs only if one of the two wants a gradient, and `bwd(context, points, parameters, output, gradient)`, which
gives the gradients that are wanted; batches are multiples of `batch_size_granularity()`; output may be wider than asked for.
Parameters are all levels one after another, entry by entry, feature by feature (`encodings/grid.h`): our table, flat. Rows
are taken modulo a level's size there, which is our one wrap. Both works are by NVIDIA, BSD licence.
There the scale is worked out in float32 from the growth, so features differ from ours by about 1e-6 of the finest
resolution in place. Where that makes another table of it (a level's scale all but whole), it is refused.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourdfy_cli import config
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.scene import hashgrid
from fourdfy_cli.scene.hashgrid import Encoding, Level

INSTALL = 'or --backend triton: pip install "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"'


def bindings() -> ModuleType:
    """The compiled part of `tinycudann`. Raises FourdfyError (exit 3) where it is missing or was not built for this GPU."""
    try:
        return import_module("tinycudann.modules")._C
    except (ImportError, OSError) as error:
        raise FourdfyError(f"tiny-cuda-nn cannot be used: {error}", INSTALL, ENVIRONMENT) from error


def configuration(dims: int, levels: list[Level], features: int) -> dict[str, Any]:
    """What tiny-cuda-nn calls these levels. Raises FourdfyError (exit 2) if no configuration of it has them: it knows 2, 3 or 4
    dimensions, 1, 2, 4 or 8 features, a whole base, one growth for all levels and one largest table."""
    base = round(levels[0].scale + 1)
    growth = ((levels[-1].scale + 1) / base) ** (1 / max(len(levels) - 1, 1))
    log2_table = (max(level.entries for level in levels) - 1).bit_length()
    again = hashgrid.levels(dims, config.Grid(len(levels), features, log2_table, base, growth))
    same = [
        math.isclose(a.scale, b.scale, rel_tol=1e-9) and (a.offset, a.entries) == (b.offset, b.entries)
        for a, b in zip(levels, again, strict=True)
    ]
    if dims not in (2, 3, 4) or features not in (1, 2, 4, 8) or not all(same):
        raise FourdfyError(
            f"tiny-cuda-nn has no {dims}D grid of these {len(levels)} levels and {features} features", "--backend triton", USAGE
        )
    return {
        "otype": "HashGrid",
        "n_levels": len(levels),
        "n_features_per_level": features,
        "log2_hashmap_size": log2_table,
        "base_resolution": base,
        "per_level_scale": growth,
        "interpolation": "Linear",
    }


@lru_cache(maxsize=16)
def _native(dims: int, levels: tuple[Level, ...], features: int, device: torch.device) -> Any:
    """A native encoding of these levels on a device, made once."""
    try:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            native = bindings().create_encoding(dims, configuration(dims, list(levels), features), bindings().Precision.Fp32)
    except RuntimeError as error:
        raise FourdfyError(f"tiny-cuda-nn refuses the grid: {error}", "--backend triton", USAGE) from error
    ours = (levels[-1].offset + levels[-1].entries) * features
    if native.n_params() != ours:
        raise FourdfyError(f"tiny-cuda-nn wants {native.n_params()} table entries where ours has {ours}", "--backend triton", USAGE)
    return native


def _encoding(x: Tensor, table: Tensor, levels: list[Level]) -> Any:
    return _native(x.shape[1], tuple(levels), table.shape[1], x.device)


def _padded(rows: Tensor, width: int) -> Tensor:
    """Rows [N C] as float32 [n width], zeros added; n is a multiple, at least one, of the batch granularity."""
    block = int(bindings().batch_size_granularity())
    missing = max(math.ceil(len(rows) / block), 1) * block - len(rows)
    return F.pad(rows.detach().float(), (0, width - rows.shape[1], 0, missing)).contiguous()


def lookup(x: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """Features [N L*F] of points x [N D] in [0,1]^D in a table [entries F]."""
    native = _encoding(x, table, levels)
    with torch.cuda.device_of(x):
        _, out = native.fwd(_padded(x, x.shape[1]), table.detach().float().flatten())
    return out[: len(x), : len(levels) * table.shape[1]].to(table.dtype)


def table_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """Gradient in the table [entries F] for a gradient [N L*F] in the features."""
    points, parameters = _padded(x, x.shape[1]), table.detach().float().flatten().requires_grad_()
    return _backward(_encoding(x, table, levels), points, parameters, grad)[1].view_as(table).to(table.dtype)


def points_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """Gradient in the points [N D] for a gradient [N L*F] in the features."""
    points, parameters = _padded(x, x.shape[1]).requires_grad_(), table.detach().float().flatten()
    return _backward(_encoding(x, table, levels), points, parameters, grad)[0][: len(x)].to(x.dtype)


def _backward(native: Any, points: Tensor, parameters: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in points and parameters; of these the one that wants none is nothing."""
    with torch.cuda.device_of(points):
        context, out = native.fwd(points, parameters)
        return native.bwd(context, points, parameters, out, _padded(grad, out.shape[1]))


ENCODING = Encoding(lookup, table_gradient, points_gradient)

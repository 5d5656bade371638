"""TAEHV's encoders (Ollin Boer Bohan, MIT): small networks that give the latents of video models' autoencoders, scaled as the models want.

The layout of taehv.py at github.com/madebyollin/taehv, encoder alone, rgb in [0,1]: three times a pool over frames, a strided convolution
and three blocks that see the frame before. `taew2_1.safetensors` is Wan 2.1's, `taew2_2` Wan 2.2's 5B, `taecvx` CogVideoX's; which it is
shows in the shapes. A clip that is not a multiple of 4 frames goes on with its last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourdfy_cli.diffusion import network, shards
from fourdfy_cli.diffusion.encoders import State, merged, whole_clips_only
from fourdfy_cli.store import gate

WIDTH, STRIDES = 64, (2, 2, 1)  # channels; frames that each level pools
LAST = 17  # the encoder's layers are numbered 0 to 17
FRAMES = math.prod(STRIDES)  # to a latent frame


class Memory(nn.Module):
    """A residual block over a frame and the one before it."""

    def __init__(self) -> None:
        super().__init__()
        widths = (2 * WIDTH, WIDTH, WIDTH)
        convolutions = [layer for width in widths for layer in (nn.Conv2d(width, WIDTH, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*convolutions[:-1])

    def forward(self, x: Float[Tensor, "T C h w"], before: Float[Tensor, "1 C h w"]) -> Float[Tensor, "T C h w"]:
        return F.relu(self.conv(torch.cat([x, torch.cat([before, x[:-1]])], 1)) + x)


class Pool(nn.Module):
    """`stride` frames to one."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.conv = stride, nn.Conv2d(WIDTH * stride, WIDTH, 1, bias=False)

    def forward(self, x: Float[Tensor, "T C h w"]) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class Taehv(nn.Module):
    """The encoder: frames [T 3 H W] in groups of 4 to latents [T/4 C h w]."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        levels = [
            layer
            for stride in STRIDES
            for layer in (Pool(stride), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2, bias=False), Memory(), Memory(), Memory())
        ]
        first, last = nn.Conv2d(3 * patch**2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.encoder = nn.Sequential(first, nn.ReLU(), *levels, last)

    def forward(self, rgb: Float[Tensor, "T 3 H W"], state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        x, kept = F.pixel_unshuffle(rgb, self.patch), []
        for layer in self.encoder:
            if isinstance(layer, Memory):
                before = torch.zeros_like(x[:1]) if state is None else state[len(kept)]
                kept.append(x[-1:])
                x = layer(x, before)
            else:
                x = layer(x)
        return x, kept


@dataclass(frozen=True)
class TaehvEncoder:
    """Four frames at a time, or more: exact in pieces, gradient included."""

    vae: Any

    def pieces(self, pictures: int, most: int | None) -> list[int]:
        return merged([min(FRAMES, pictures - first) for first in range(0, pictures, FRAMES)], most)

    def step(self, rgb: Float[Tensor, "N 3 H W"], state: State) -> tuple[Tensor, Tensor | None, State]:
        x = torch.cat([rgb, rgb[-1:].expand(-len(rgb) % FRAMES, -1, -1, -1)])
        z, state = self.vae(x.to(self.vae.encoder[0].weight.dtype), state)
        return z.to(rgb.dtype), None, state

    def decode(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        raise whole_clips_only()


def load(path: Path, device: torch.device | str, dtype: torch.dtype) -> TaehvEncoder:
    """An encoder from TAEHV's safetensors file; raises FourdfyError (exit 3)."""
    shapes = {name: shape for name, (_, shape) in gate.header(path).items()}
    first, last = shapes.get("encoder.0.weight", ()), shapes.get(f"encoder.{LAST}.weight", ())
    if len(first) != 4 or len(last) != 4 or first[1] not in (3, 12) or not 1 <= last[0] <= 256:
        raise network.broken(f"{path} is not an encoder of TAEHV's")
    with torch.device("meta"):
        made = Taehv(last[0], math.isqrt(first[1] // 3))
    state = shards.read([path], {name: tuple(value.shape) for name, value in made.state_dict().items()}, r"decoder\..*")
    network.fill(made, {name: value.to(dtype) for name, value in state.items()}, path)
    return TaehvEncoder(made.to(device).eval().requires_grad_(False))

"""From pictures to latents, in pieces. An `Encoder` takes the pictures of a shot piece by piece, so that no more than one piece needs a
graph at a time; what a piece must know of those before it is its state, a tree of tensors that the gradient passes through too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.diffusion.models import Vae, decode, encode
from fourdfy_cli.errors import USAGE, FourdfyError

State = Any  # a tree (lists, dictionaries) of tensors and None; None before the first piece


@runtime_checkable
class Encoder(Protocol):
    """An autoencoder as score distillation uses it. `vae` is its network."""

    @property
    def vae(self) -> Vae: ...

    def pieces(self, pictures: int, most: int | None) -> list[int]:
        """How many pictures each piece has, if no more than `most` are to be taken at once (None: all), as far as that can be."""
        ...

    def step(self, rgb: Float[Tensor, "N 3 H W"], state: State) -> tuple[Tensor, Tensor | None, State]:
        """Mean and standard deviation (None: none) of the next piece's latents [n C h w], and the state for the piece after it."""
        ...

    def decode(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Pictures of latents; raises FourdfyError (exit 2) if a piece cannot be decoded by itself."""
        ...


@dataclass(frozen=True)
class Pictures:
    """An autoencoder that treats each picture by itself."""

    vae: Vae

    def pieces(self, pictures: int, most: int | None) -> list[int]:
        most = most or pictures
        return [min(most, pictures - first) for first in range(0, pictures, most)]

    def step(self, rgb: Float[Tensor, "N 3 H W"], state: State) -> tuple[Tensor, Tensor | None, State]:
        return *encode(self.vae, rgb), None

    def decode(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        return decode(self.vae, z)


def merged(pieces: list[int], most: int | None) -> list[int]:
    """Neighbouring pieces put together while they stay within `most` pictures (None: all of them)."""
    if most is None:
        return [sum(pieces)]
    ends = [0]
    for end in accumulate(pieces):
        if len(ends) > 1 and end - ends[-2] <= most:
            ends[-1] = end
        else:
            ends.append(end)
    return [end - start for start, end in pairwise(ends)]


def whole_clips_only() -> FourdfyError:
    return FourdfyError(
        "an autoencoder that is causal in time gives no pictures back piece by piece", "--set stage3.video.pixel_weight=0", USAGE
    )

"""Which cells of the scene box hold anything: a running record of density on a coarse grid.

Notation: the box [-1,1]^3 in R^3 cells, index [x y z]; `value` = density times step length, the optical depth of one
sample, decayed by DECAY at each visit and raised to what is found; a cell is occupied above min(mean value, CEILING).
Source: nerfacc's occupancy grid estimator as the released code of 4D-fy uses it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

DECAY = 0.95
CEILING = 0.01


def lookup(binary: Bool[Tensor, "R R R"], x: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Whether points of the world lie in an occupied cell; outside the box nothing is occupied."""
    cells = len(binary)
    cell = ((x + 1) * (cells / 2)).floor_().int()
    inside = ((cell >= 0) & (cell < cells)).all(-1)
    i, j, k = cell.clamp_(0, cells - 1).unbind(-1)
    return binary.flatten()[(i * cells + j) * cells + k] & inside


def dilated(occupied: Bool[Tensor, "R R R"], cells: int) -> Bool[Tensor, "R R R"]:
    """Cells within `cells` of an occupied one."""
    return F.max_pool3d(occupied[None].float(), 2 * cells + 1, 1, cells)[0] > 0 if cells else occupied


def bounds(binary: Bool[Tensor, "R R R"]) -> Float[Tensor, "2 3"]:
    """Lower and upper corner of the smallest box around the occupied cells; both zero if there are none."""
    cells = binary.nonzero()
    if not len(cells):
        return torch.zeros(2, 3, device=binary.device)
    return torch.stack([cells.amin(0), cells.amax(0) + 1]).float() * (2 / len(binary)) - 1


class Occupancy(nn.Module):
    """Buffers `value` [R R R] and `binary` [R R R]; every cell counts as occupied until the first update."""

    value: Tensor
    binary: Tensor

    def __init__(self, cells: int):
        super().__init__()
        self.cells = cells
        self.register_buffer("value", torch.zeros(cells, cells, cells))
        self.register_buffer("binary", torch.ones(cells, cells, cells, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Tensor], Tensor],
        step_length: float,
        step: int,
        warmup: int,
        generator: torch.Generator,
        dilation: int = 0,
    ) -> None:
        """One round of visits, `density` taking points [n 3] to densities [n]: every cell before step `warmup`, later a
        quarter as many cells at random and as many again of the occupied ones, at a random point inside each. Cells
        within `dilation` of an occupied one count as occupied too."""
        cell = self._all() if step < warmup else self._some(generator)
        corner = torch.stack([cell // self.cells**2, cell // self.cells % self.cells, cell % self.cells], -1)
        inside = torch.rand(corner.shape, generator=generator, device=generator.device, dtype=self.value.dtype)
        x = (corner + inside.to(cell.device)) * (2 / self.cells) - 1
        found = (density(x) * step_length).to(self.value.dtype)
        value = self.value.flatten()
        faded = value.scatter(0, cell, DECAY * value[cell])  # a cell drawn twice fades once
        self.value.copy_(faded.scatter_reduce(0, cell, found, "amax").view_as(self.value))
        self.binary.copy_(dilated(self.value > self.threshold(), dilation))

    def threshold(self) -> Float[Tensor, ""]:
        """The value above which a cell is occupied."""
        return self.mean().clamp(max=CEILING)

    def mean(self) -> Float[Tensor, ""]:
        """The mean value. Of slices first, each of which one thread sums: the same bits on any number of them."""
        return self.value.mean((1, 2)).mean()

    def bounds(self) -> Float[Tensor, "2 3"]:
        """Of the occupied cells, as `bounds`."""
        return bounds(self.binary).to(self.value.dtype)

    def _all(self) -> Int[Tensor, " n"]:
        return torch.arange(self.cells**3, device=self.value.device)

    def _some(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """A quarter of all cells, drawn with replacement, and at most as many occupied ones."""
        count = max(1, self.cells**3 // 4)
        occupied = self.binary.flatten().nonzero()[:, 0]
        anywhere = torch.randint(self.cells**3, (count,), generator=generator, device=generator.device).to(self.value.device)
        if len(occupied) > count:
            chosen = torch.randint(len(occupied), (count,), generator=generator, device=generator.device)
            occupied = occupied[chosen.to(occupied.device)]
        return torch.cat([anywhere, occupied])

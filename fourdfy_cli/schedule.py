"""Numbers that change over a stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A schedule: `start` up to progress `begin`, `end` from progress `until`, linear between; progress is in [0,1]."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 0.0

    def at(self, progress: float) -> float:
        if progress >= self.until or progress <= self.begin:
            return self.end if progress >= self.until else self.start
        return self.start + (self.end - self.start) * (progress - self.begin) / (self.until - self.begin)


def constant(value: float) -> Ramp:
    return Ramp(value, value)

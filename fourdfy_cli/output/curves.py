"""Line charts as SVG, by hand: a page needs no library for them, and they stay sharp on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 190, 58, 10, 10, 26
COLOURS = ("#3b7dd8", "#d1553a", "#2e9e6b", "#8d5fc9", "#c28a1e", "#777777")
POINTS = 300  # of a line; more steps than that are shown by the mean of as many neighbours
WIDE = 30.0  # largest over smallest value from which an axis is logarithmic

Line = Sequence[tuple[float, float]]


def chart(title: str, lines: Mapping[str, Line], borders: Iterable[float] = (), colours: Mapping[str, str] | None = None) -> str:
    """A figure with one line for each name over a shared axis, and upright lines at the borders; "" where no number is finite."""
    kept = {name: thinned([p for p in line if math.isfinite(p[1])]) for name, line in lines.items()}
    points = [point for line in kept.values() for point in line]
    if not points:
        return ""
    axes = Axes(points)
    colours = colours or palette(kept)
    marks = "".join(_upright(axes.x(at)) for at in borders if axes.low[0] < at < axes.high[0])
    drawn = "".join(_line(axes, line, colours[name], name) for name, line in kept.items() if line)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{axes.ticks()}{marks}{drawn}</svg>'
    return f"<figure class=chart><figcaption>{escape(title)}{' (log)' if axes.log else ''}</figcaption>{svg}</figure>"


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def legend(colours: Mapping[str, str]) -> str:
    """What the colours mean."""
    items = (f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f"<p class=legend>{''.join(items)}</p>"


def thinned(line: Line) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of neighbours."""
    size = -(-len(line) // POINTS)
    if size <= 1:
        return list(line)
    pieces = (line[k : k + size] for k in range(0, len(line), size))
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


class Axes:
    """From numbers to places in the picture; the upright axis is logarithmic where values are positive and span WIDE."""

    def __init__(self, points: Line):
        values = [y for _, y in points]
        self.log = min(values) > 0 and max(values) / min(values) > WIDE
        heights = [self._height(y) for y in values]
        self.low = min(x for x, _ in points), min(heights)
        self.high = max(x for x, _ in points), max(heights)

    def _height(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def x(self, value: float) -> float:
        return LEFT + (value - self.low[0]) / ((self.high[0] - self.low[0]) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self._place(self._height(value))

    def _place(self, height: float) -> float:
        share = (height - self.low[1]) / ((self.high[1] - self.low[1]) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> str:
        """Level lines with their values, and the first and last step."""
        found = []
        for share in (0, 0.25, 0.5, 0.75, 1):
            height = self.low[1] + share * (self.high[1] - self.low[1])
            y, value = self._place(height), 10**height if self.log else height
            found.append(f'<line class=grid x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            found.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        ends = ((LEFT, "start", self.low[0]), (WIDTH - RIGHT, "end", self.high[0]))
        found += [f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{side}">step {value:.0f}</text>' for x, side, value in ends]
        return "".join(found)


def _upright(x: float) -> str:
    return f'<line class=border x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def _line(axes: Axes, line: Line, colour: str, name: str) -> str:
    """One polyline; a single point is a dot."""
    where = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
    told = f"<title>{escape(name)}</title>"
    if len([*groupby(line)]) == 1:
        x, y = where.split(",")
        return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}">{told}</circle>'
    return f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="1.4">{told}</polyline>'

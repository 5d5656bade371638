"""Charts: where a number stands in the picture."""

from __future__ import annotations

import math
import re

from fourdfy_cli.output import curves


def places(svg: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', svg)[1].split()]  # type: ignore[misc]


def test_ends_lie_in_the_corners_and_the_middle_between():
    left, bottom = curves.LEFT, curves.HEIGHT - curves.BOTTOM
    right, top = curves.WIDTH - curves.RIGHT, curves.TOP
    svg = curves.chart("t", {"a": [(0, -1.0), (5, 0.0), (10, 1.0)]})
    assert places(svg) == [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert "(log)" not in svg and "step 0<" in svg and "step 10<" in svg


def test_wide_positive_values_are_logarithmic():
    svg = curves.chart("t", {"a": [(0, 1.0), (1, 10.0), (2, 100.0)]})
    (_, low), (_, middle), (_, high) = places(svg)
    assert "(log)" in svg and math.isclose(middle, (low + high) / 2, abs_tol=0.1)
    assert "(log)" not in curves.chart("t", {"a": [(0, 0.0), (1, 10.0), (2, 100.0)]})


def test_many_steps_become_means():
    line = [(float(k), float(k % 2)) for k in range(100_000)]
    thin = curves.thinned(line)
    assert len(thin) <= curves.POINTS and all(abs(y - 0.5) < 0.01 for _, y in thin)
    assert math.isclose(sum(x for x, _ in thin) / len(thin), 49_999.5, rel_tol=1e-2)
    assert curves.thinned(line[:5]) == line[:5]


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart():
    assert curves.chart("t", {"a": [(0, math.nan)], "b": []}) == ""
    svg = curves.chart("t", {"a": [(0, 1.0), (1, math.inf), (2, 2.0)]})
    assert len(places(svg)) == 2
    assert "<circle" in curves.chart("t", {"a": [(3, 2.0)]})


def test_borders_inside_are_marked_and_names_escaped():
    svg = curves.chart("<t>", {"<a>": [(0, 1.0), (10, 2.0)]}, borders=(5, 20))
    assert svg.count("class=border") == 1 and "<a>" not in svg and "<t>" not in svg and "&lt;a&gt;" in svg

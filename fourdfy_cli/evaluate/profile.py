"""clip-profile.png: CLIP by azimuth and by time, one line for each folder. Drawn with PIL alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fourdfy_cli.evaluate.measures import Curve
from fourdfy_cli.output.render import write_png

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, ROW = 640, 220, 60, 26, 40, 16
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (90, 90, 90))
INK, PAPER, LINE = (40, 40, 40), (255, 255, 255), (225, 225, 225)


def picture(path: Path, panels: dict[str, dict[str, Curve]]) -> Path:
    """Write panels (title: {name: curve}) one under another as PNG, atomically. Azimuths run to 360, times to 1; curves share their
    panel's axes."""
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(panels) + ROW * len(names) + 8), PAPER)
    draw = ImageDraw.Draw(sheet)
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    for k, (title, curves) in enumerate(panels.items()):
        _panel(draw, k * HEIGHT, title, curves, colours)
    for k, name in enumerate(names):
        y = HEIGHT * len(panels) + ROW * k
        draw.line([(LEFT, y + 6), (LEFT + 24, y + 6)], fill=colours[name], width=2)
        draw.text((LEFT + 32, y), _plain(name), fill=INK)
    return write_png(path, np.array(sheet))


def _panel(draw: ImageDraw.ImageDraw, y: int, title: str, curves: dict[str, Curve], colours: dict[str, tuple[int, int, int]]) -> None:
    """One plot with its top left corner at (0, y)."""
    points = np.array([point for curve in curves.values() for point in curve])
    low, high = points.min(0), points.max(0)
    low[0], high[0] = 0, 1 if high[0] <= 1 else 360
    high[1] = max(high[1], low[1] + 1e-3)
    size = np.array([WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (np.array(point) - low) / (high - low) * size
        return LEFT + across, y + TOP + size[1] - up

    draw.text((LEFT, y + 8), title, fill=INK)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        (x, row), (left, bottom) = place(tuple(value)), place(tuple(low))
        draw.line([(left, row), (LEFT + size[0], row)], fill=LINE)
        draw.text((LEFT - 48, row - 6), f"{value[1]:.3g}", fill=INK)
        draw.text((x - 8, bottom + 6), f"{value[0]:.4g}", fill=INK)
    for name, curve in curves.items():
        draw.line([place(point) for point in curve], fill=colours[name], width=2)


def _plain(name: str) -> str:
    return name.encode("ascii", "replace").decode()

"""Depth as colour: equal steps of distance look equally far apart. A path through OKLCH (Ottosson 2020): lightness falls evenly from near
to far while the hue turns evenly from yellow to violet."""

from __future__ import annotations

import functools

import numpy as np

TO_LMS = ((1.0, 0.3963377774, 0.2158037573), (1.0, -0.1055613458, -0.0638541728), (1.0, -0.0894841775, -1.2914855480))
TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)
LIGHTNESS, HUE, CHROMA = (0.93, 0.30), (110.0, 290.0), 0.085


@functools.lru_cache(1)
def ramp() -> np.ndarray:
    """256 colours from near to far, uint8 [256 3]."""
    share = np.linspace(0, 1, 256)
    light = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * share
    hue = np.deg2rad(HUE[0] + (HUE[1] - HUE[0]) * share)
    lab = np.stack([light, CHROMA * np.cos(hue), CHROMA * np.sin(hue)], 1)
    flat = ((lab @ np.array(TO_LMS).T) ** 3 @ np.array(TO_RGB).T).clip(0, 1)
    shown = np.where(flat <= 0.0031308, 12.92 * flat, 1.055 * flat ** (1 / 2.4) - 0.055)
    return (shown * 255).round().astype(np.uint8)


def depth_picture(distance: np.ndarray, opacity: np.ndarray, near: float, far: float) -> np.ndarray:
    """Distances [H W] from near to far as colours [H W 4]; alpha is opacity in [0,1]."""
    share = ((distance - near) / (far - near)).clip(0, 1)
    alpha = (opacity.clip(0, 1) * 255).round().astype(np.uint8)
    return np.dstack([ramp()[(share * 255).round().astype(int)], alpha])


def over_black(picture: np.ndarray) -> np.ndarray:
    """A picture [H W 4] without its alpha, on black [H W 3]."""
    return (picture[..., :3] * (picture[..., 3:] / 255)).round().astype(np.uint8)

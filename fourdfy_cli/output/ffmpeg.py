"""The ffmpeg that videos are written, read and copied with."""

from __future__ import annotations

import re
from typing import NamedTuple

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

_STREAM = re.compile(r"Stream #0:\d+.*?: Video: (\w+).*?, ([a-z]\w+).*?, (\d+)x(\d+)\b.*?, ([\d.]+) fps")


class Stream(NamedTuple):
    """A video stream as ffmpeg describes it: size in pixels, frames a second."""

    codec: str
    pixels: str
    width: int
    height: int
    fps: float


def stream(told: str) -> Stream | None:
    """The first video stream in what ffmpeg says of its input on stderr."""
    found = _STREAM.search(told)
    return Stream(found[1], found[2], int(found[3]), int(found[4]), float(found[5])) if found else None


def ffmpeg() -> str:
    """Path of the ffmpeg that imageio-ffmpeg brings; raises FourdfyError (exit 3) if it has none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise FourdfyError("there is no ffmpeg for videos", "pip install --force-reinstall imageio-ffmpeg", ENVIRONMENT) from None

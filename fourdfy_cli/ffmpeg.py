"""The ffmpeg that videos are written, read and copied with."""

from __future__ import annotations

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError


def ffmpeg() -> str:
    """Path of the ffmpeg that imageio-ffmpeg brings; raises FourdfyError (exit 3) if it has none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise FourdfyError("there is no ffmpeg for videos", "pip install --force-reinstall imageio-ffmpeg", ENVIRONMENT) from None

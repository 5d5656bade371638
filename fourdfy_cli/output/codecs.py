"""How ffmpeg is asked for each kind of film that leaves: by suffix, with or without alpha."""

from __future__ import annotations

PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:alpha_threshold=128"  # frame by frame: nothing piles up
WITH_ALPHA = (".webm", ".gif", ".webp")  # of a gif: all or nothing
SUFFIXES = (".mp4", *WITH_ALPHA)


def codec(suffix: str, alpha: bool) -> list[str]:
    """Options between ffmpeg's input and its output's name; those of .mp4 for any other suffix."""
    transparent = "yuva420p" if alpha else "yuv420p"
    plain = [
        "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart",
        "-f", "mp4",
    ]  # fmt: skip
    return {
        ".webm": ["-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0", "-auto-alt-ref", "0", "-pix_fmt", transparent, "-f", "webm"],
        ".gif": ["-filter_complex", PALETTE, "-loop", "0", "-f", "gif"],
        ".webp": ["-c:v", "libwebp_anim", "-quality", "90", "-loop", "0", "-pix_fmt", transparent, "-f", "webp"],
    }.get(suffix, plain)  # fmt: skip
